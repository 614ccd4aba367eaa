"""Direct shares of a logit at every position: what they sum to, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from oracle import pair, tokens

import neox_lab as nl
from neox_lab.errors import HookError, InputError, NeoxLabWarning


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


@pytest.mark.parametrize("minus", [None, 9])
def test_the_parts_sum_to_the_logit_and_heads_to_their_attention(model: Any, minus: Any) -> None:
    result = nl.lens.direct(model, tokens(), 7, minus)
    logits = model(tokens()).logits.detach()
    wanted = logits[..., 7] - (0 if minus is None else logits[..., minus])
    frame = result.frame
    assert len(frame) == len(result.parts) * 36
    summed = frame[frame["kind"].isin(["embed", "attention", "mlp", "bias"])]
    total = torch.tensor(summed.groupby(["text", "pos"])["share"].sum().to_numpy()).reshape(3, 12)
    torch.testing.assert_close(total, wanted.double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(result.logit, wanted)
    assert 0 < result.error < 1e-4 and result.error >= float((total - wanted).abs().max()) - 1e-6
    inner = frame[frame["kind"].isin(["head", "attention_bias"])]
    whole = frame[frame["kind"] == "attention"].set_index(["layer", "text", "pos"])["share"]
    parts = inner.groupby(["layer", "text", "pos"])["share"].sum()
    assert (parts - whole).abs().max() < 1e-4


def test_the_last_position_is_that_of_direct_logit_attribution(model: Any) -> None:
    result = nl.lens.direct(model, tokens(), 7, 9)
    known = nl.attribution.direct_logit_attribution(model, tokens(), 7, 9)
    by_name = {part.name: row for part, row in zip(result.parts, result.shares, strict=True)}
    biases = [
        row
        for part, row in zip(result.parts, result.shares, strict=True)
        if part.kind in ("bias", "attention_bias")
    ]
    by_name["bias"] = torch.stack(biases).sum(dim=0)
    for at, name in enumerate(known.labels["component"]):
        torch.testing.assert_close(by_name[name][:, -1], known.per_row[:, at], atol=1e-4, rtol=1e-4)


def test_the_pictures_hold_the_shares(model: Any) -> None:
    result = nl.lens.direct(model, tokens(), 7)
    view = result.view(1, 3)
    assert view.row_labels == ["embed", "0", "1", "2", "bias"]
    assert view.column_labels == ["all", "attention", "MLP", "H0", "H1", "H2", "H3", "b_O"]
    logit = float(result.logit[1, 3])
    assert view.values[:, 0].sum() == pytest.approx(logit, abs=1e-4)
    for layer in (1, 2, 3):
        row = view.values[layer]
        assert row[0] == pytest.approx(row[1] + row[2], abs=1e-5)
        assert row[1] == pytest.approx(row[3:].sum(), abs=1e-4)
    assert (view.measured == ~torch.tensor(view.values).isnan().numpy()).all()
    assert f"{logit:.4f}, to within {result.error:.1e}" in view.data()["notes"][0]
    below = result.positions(1)
    assert below.values.sum(axis=0) == pytest.approx(result.logit[1].numpy(), abs=1e-4)
    assert below.row_labels[:3] == ["embed", "attention 0", "MLP0"]
    for which in ((3, 0), (0, 12)):
        with pytest.raises(InputError):
            result.view(*which)


def test_half_precision_is_within_its_rounding(model: Any) -> None:
    result = nl.lens.direct(copy.deepcopy(model).to(torch.bfloat16), tokens(), 7)
    assert result.shares.dtype == torch.float32 and math.isfinite(result.error)


def test_hooks_inside_parts_are_seen_and_those_on_sums_are_refused(model: Any) -> None:
    plain = nl.lens.direct(model, tokens(), 7)
    for site in ("blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"):
        with model.hooks([(site, lambda value, hook: value * 2)]):
            bent = nl.lens.direct(model, tokens(), 7)
            assert torch.equal(bent.logit, model(tokens()).logits[..., 7])
        assert bent.error < 1e-3 and not torch.allclose(bent.logit, plain.logit)
    for site in ("blocks.2.hook_resid_post", "blocks.1.hook_attn_out"):
        with model.hooks([(site, lambda value, hook: value * 2)]):
            with pytest.raises(HookError, match="sum to something else"):
                nl.lens.direct(model, tokens(), 7)
    assert nl.lens.direct(model, tokens(), 7) == plain


def test_nan_is_named() -> None:
    model: Any = nl.load()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[model.to_single_token(" dog")] = math.nan
    with pytest.warns(NeoxLabWarning, match="logit is NaN or infinite at text 1, pos 0"):
        result = nl.lens.direct(model, ["The cat sat on the mat", "The dog sat on the mat"], " the")
    alone = nl.lens.direct(model, "The cat sat on the mat", " the")
    own = result.mask[0]
    torch.testing.assert_close(result.shares[:, 0, own], alone.shares[:, 0], atol=1e-5, rtol=0)
    assert result.view(1).to_html() and math.isnan(result.error)


def test_what_cannot_be_asked(model: Any) -> None:
    with pytest.raises(InputError, match="token"):
        nl.lens.direct(model, tokens(), 211)
    with pytest.raises(InputError, match="minus"):
        nl.lens.direct(model, tokens(), 3, -1)
    with pytest.raises(InputError, match="unembedding"):
        nl.lens.direct(pair("GPTNeoXModel")[1], tokens(), 3)


def test_texts_are_escaped() -> None:
    result = nl.lens.direct(nl.load(), "<img src=x> & $a$", "<", "&")
    for view in (result.view(), result.positions()):
        assert "<img src=x" not in view.to_html(standalone=True)
        assert view.to_png().startswith(b"\x89PNG")
