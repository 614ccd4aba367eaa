"""The logit lens against the definition, computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracle import pair, tokens

import neox_lab as nl
from neox_lab.errors import HookNameError, InputError


@pytest.fixture(params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return pair(use_parallel_residual=request.param)[1]


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_every_number_is_its_definition(model: Any, site: str) -> None:
    ids = tokens()
    result = nl.lens.logit_lens(model, ids, site, watch=[7, 9], top_k=3)
    _, cache = model.run_with_cache(ids)
    streams = [cache[site, layer] for layer in range(3)]
    if site == "resid_pre":
        streams.append(cache["resid_post", 2])
    final = model(ids).logits.log_softmax(-1)
    assert len(result.labels) == len(streams) == len(result.top)
    for row, stream in enumerate(streams):
        norm = model.gpt_neox.final_layer_norm
        log_probs = model.embed_out(norm(stream)).log_softmax(-1)
        probs = log_probs.exp()
        torch.testing.assert_close(result.top_probability[row], probs.topk(3).values)
        entropy = torch.distributions.Categorical(probs=probs).entropy()
        torch.testing.assert_close(result.entropy[row], entropy, rtol=1e-4, atol=1e-4)
        kl = torch.nn.functional.kl_div(log_probs, final, reduction="none", log_target=True)
        torch.testing.assert_close(result.kl[row], kl.sum(-1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(result.watched_probability[row], probs[..., [7, 9]])
        order = probs.argsort(-1, descending=True).argsort(-1)
        assert torch.equal(result.watched_rank[row], order[..., [7, 9]])
        following = probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        torch.testing.assert_close(result.next_probability[row, :, :-1], following)
        assert result.next_probability[row, :, -1].isnan().all()
        assert (result.next_rank[row, :, -1] == -1).all()


def test_the_last_row_is_the_prediction(model: Any) -> None:
    result = nl.lens.logit_lens(model, tokens())
    assert result.labels == ["0_pre", "1_pre", "2_pre", "final"]
    assert result.kl[-1].abs().max() < 1e-4
    best = model(tokens()).logits.argmax(-1)
    assert torch.equal(result.top[-1, ..., 0], best)


def test_the_middle_exists_only_in_sequential_blocks(model: Any) -> None:
    if model.config.use_parallel_residual:
        with pytest.raises(HookNameError, match="parallel"):
            nl.lens.logit_lens(model, tokens(), "resid_mid")
    else:
        assert nl.lens.logit_lens(model, tokens(), "resid_mid").labels[0] == "0_mid"


def test_what_cannot_be_asked(model: Any) -> None:
    with pytest.raises(InputError, match="resid_post"):
        nl.lens.logit_lens(model, tokens(), "resid_pos")
    with pytest.raises(InputError, match="unembedding"):
        nl.lens.logit_lens(pair("GPTNeoXModel")[1], tokens())


def test_frame_and_files(model: Any, tmp_path: Any) -> None:
    result = nl.lens.logit_lens(model, tokens(2, 5), watch=[3])
    assert len(result.frame) == 4 * 2 * 5
    assert result.frame["entropy_bits"].tolist() == pytest.approx(
        (result.entropy[result.mask.expand_as(result.entropy)] / np.log(2)).tolist()
    )
    assert {"kl_bits", "entropy_bits", "p(⟨3⟩)", "rank(⟨3⟩)"} <= set(result.frame.columns)
    assert result.to_png(tmp_path / "lens.png").startswith(b"\x89PNG")
    assert "text/html" in result._repr_mimebundle_()
    with pytest.raises(AttributeError, match="nonsense"):
        _ = result.nonsense


def test_a_text_without_a_token_is_named() -> None:
    with pytest.raises(InputError, match=r"Texts \[0\] of this batch are empty"):
        nl.lens.logit_lens(nl.load(), ["", "The cat"])
