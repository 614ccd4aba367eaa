"""Prediction depth and surprise by layer, against loops over another library's hidden states."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError, NeoxLabWarning

SIDES = ("none", "left", "right")
EQUAL = ["The people of the United", "The dog sat on the mat", "We hold these truths to be"]
UNEQUAL = ["The people of the United States have given", "The dog", "We hold these truths"]


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    tokenizer = nl.load().tokenizer
    theirs, ours = pair(use_parallel_residual=request.param, vocab_size=len(tokenizer))
    ours.tokenizer = copy.deepcopy(tokenizer)
    return theirs, ours


def padded(model: Any, side: str) -> tuple[list[str], dict[str, Tensor]]:
    """Texts, and the ids and mask that they become."""
    texts = UNEQUAL if side != "none" else EQUAL
    model.tokenizer.padding_side = "left" if side == "left" else "right"
    inputs = model.prepare_inputs(texts)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    assert side == "none" or (mask[:, 0 if side == "left" else -1] == 0).any()
    return texts, {"input_ids": inputs["input_ids"], "attention_mask": mask}


def readings(theirs: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Log probabilities of the logit lens in float64, row by row; each text is run alone."""
    exact, ids = theirs.double(), inputs["input_ids"]
    norm, head = exact.gpt_neox.final_layer_norm, exact.get_output_embeddings()
    rows = torch.full((4, *ids.shape, len(head.weight)), math.nan, dtype=torch.float64)
    for text, own in enumerate(inputs["attention_mask"].bool()):
        with torch.no_grad():
            output = exact(ids[text, own][None], output_hidden_states=True)
            early = [head(norm(stream)) for stream in output.hidden_states[:-1]]
        rows[:, text, own] = torch.cat([*early, output.logits]).log_softmax(-1)
    return list(rows)


def depth_by_hand(rows: list[Tensor], text: int, pos: int) -> int:
    best = [int(row[text, pos].argmax()) for row in rows]
    depth = len(best)
    while depth and best[depth - 1] == best[-1]:
        depth -= 1
    return depth


@pytest.mark.parametrize("side", SIDES)
def test_depth_is_where_the_last_change_lies(models: tuple[Any, Any], side: str) -> None:
    theirs, model = models
    texts, inputs = padded(model, side)
    result = nl.lens.logit_lens(model, texts)
    rows = readings(theirs, inputs)
    seen = set()
    table = result.depths.set_index(["text", "pos"])
    assert len(table) == int(inputs["attention_mask"].sum())
    for (text, pos), own in np.ndenumerate(inputs["attention_mask"].numpy()):
        wanted = depth_by_hand(rows, text, pos) if own else -1
        assert result.depth[text, pos] == wanted
        seen.add(wanted)
        if own:
            best = int(rows[-1][text, pos].argmax())
            found = table.loc[text, pos]
            assert found["layer"] == result.labels[wanted]
            assert found["prediction"] == model.tokenizer.piece_text(best)
            assert result.prediction[text, pos] == best
        else:
            assert result.prediction[text, pos] == -1
    assert len(seen - {-1}) > 1


def test_the_first_row_can_settle_it_and_a_return_does_not_count() -> None:
    from neox_lab.experiments.lens.depth import settled

    best = torch.tensor([[7, 7, 1, 2, 7, -1], [7, 1, 7, 3, 7, 7], [7, 7, 7, 4, -1, 7]])
    prediction = torch.tensor([7, 7, 7, 9, 7, 7])
    assert settled(best, prediction).tolist() == [0, 2, 1, 3, 3, 1]
    assert settled(best, prediction.fill_(-1)).tolist() == [-1] * 6


@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
def test_a_part_that_never_says_what_the_model_says(models: tuple[Any, Any], site: str) -> None:
    model = models[1]
    result = nl.lens.logit_lens(model, tokens(), site)
    final = model(tokens()).logits.argmax(-1)
    assert torch.equal(result.prediction, final)
    never = result.top[-1, ..., 0] != final
    assert never.any() and torch.equal(result.depth == 3, never)
    assert (result.depths["layer"] == "never").sum() == never.sum()
    assert "never" in result.depth_view(0).to_html()


@pytest.mark.parametrize("side", SIDES)
def test_surprise_is_minus_log2(models: tuple[Any, Any], side: str) -> None:
    theirs, model = models
    texts, inputs = padded(model, side)
    result = nl.lens.logit_lens(model, texts)
    frame = result.frame.set_index(["layer", "text", "pos"])["surprise_bits"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    known = 0
    for label, row in zip(result.labels, readings(theirs, inputs), strict=True):
        for text, pos in mask.nonzero().tolist():
            got = frame[label, text, pos]
            if pos + 1 < mask.shape[1] and mask[text, pos + 1]:
                wanted = -float(row[text, pos, ids[text, pos + 1]]) / math.log(2)
                assert got == pytest.approx(wanted, rel=1e-4, abs=1e-4)
                known += 1
            else:
                assert math.isnan(got)
    assert known == len(result.labels) * int((mask[:, 1:] & mask[:, :-1]).sum())


def test_surprise_is_finite_where_the_probability_is_zero(models: tuple[Any, Any]) -> None:
    model = copy.deepcopy(models[1])
    with torch.no_grad():
        model.embed_out.weight *= 300
    result = nl.lens.logit_lens(model, tokens(), watch=[3, 4])
    followed = result.surprise_bits[..., :-1]
    assert (result.next_probability[..., :-1] == 0).any() and (followed > 200).any()
    assert followed.isfinite().all() and result.watched_log_probability.isfinite().all()
    assert result.mean_surprise()["surprise_bits"].map(math.isfinite).all()


@pytest.mark.parametrize("side", SIDES)
def test_the_mean_is_over_all_positions_of_all_texts(models: tuple[Any, Any], side: str) -> None:
    result = nl.lens.logit_lens(models[1], padded(models[1], side)[0])
    means = result.mean_surprise()
    frame = result.frame.dropna(subset="surprise_bits")
    for layer, group in frame.groupby("layer"):
        row = means.set_index("layer").loc[layer]
        assert row["surprise_bits"] == pytest.approx(group["surprise_bits"].mean(), rel=1e-5)
        assert row["entropy_bits"] == pytest.approx(group["entropy_bits"].mean(), rel=1e-5)
        assert row["positions"] == len(group) and row["texts"] == group["text"].nunique()
        assert row["low"] < row["surprise_bits"] < row["high"]
    assert means.equals(result.mean_surprise(seed=0))
    view = result.surprise_view()
    assert view.x_names == result.labels
    assert view.lines["surprise of the token that follows"].y.tolist() == pytest.approx(
        means["surprise_bits"].tolist(), rel=1e-5
    )
    assert view.levels == {"every token equally likely": math.log2(result.vocab_size)}


def resampled(result: Any, text_wise: bool) -> Iterator[float]:
    """Means of the last layer when texts or positions are drawn again, by a plain loop."""
    random = np.random.default_rng(1)
    rows = [r[~np.isnan(r)] for r in result.surprise_bits[-1].numpy()]
    for _ in range(1000):
        if text_wise:
            yield float(np.concatenate([rows[i] for i in random.integers(3, size=3)]).mean())
        else:
            yield float(random.choice(rows[0], size=len(rows[0])).mean())


@pytest.mark.parametrize("count", [1, 3])
def test_intervals_draw_texts_or_the_positions_of_one(models: tuple[Any, Any], count: int) -> None:
    result = nl.lens.logit_lens(models[1], tokens(count, 12))
    last = result.mean_surprise().iloc[-1]
    wanted = np.quantile(list(resampled(result, count > 1)), [0.025, 0.975])
    width = wanted[1] - wanted[0]
    assert [last["low"], last["high"]] == pytest.approx(wanted, abs=0.1 * width)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_tuned_lens_and_a_lens_under_hooks_answer_the_same_questions(
    models: tuple[Any, Any], site: str, hooked: bool
) -> None:
    theirs, model = models
    random = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(3, *shape, generator=random) for shape in ((64, 64), (64,)))
    lens = nl.lens.TunedLens(0.1 * weight, bias)
    ids = tokens()
    if hooked:
        theirs = copy.deepcopy(theirs)
        theirs.gpt_neox.layers[1].mlp.register_forward_hook(lambda _, inputs, output: -output)
    with model.hooks([("blocks.1.hook_mlp_out", lambda value, hook: -value)] if hooked else []):
        result = nl.lens.tuned_lens(model, ids, lens, site)
    exact = theirs.double()
    with torch.no_grad():
        output = exact(ids, output_hidden_states=True)
        first = 1 if site == "resid_post" else 0
        rows = []
        for layer in range(first, 3):
            stream = output.hidden_states[layer]
            stream = stream + stream @ lens.weight[layer].double().T + lens.bias[layer].double()
            rows.append(exact.get_output_embeddings()(exact.gpt_neox.final_layer_norm(stream)))
        rows = [logits.log_softmax(-1) for logits in [*rows, output.logits]]
    assert len(result.labels) == len(rows)
    frame = result.frame.set_index(["layer", "text", "pos"])["surprise_bits"]
    for text, pos in np.ndindex(3, 11):
        assert result.depth[text, pos] == depth_by_hand(rows, text, pos)
        for label, row in zip(result.labels, rows, strict=True):
            wanted = -float(row[text, pos, ids[text, pos + 1]]) / math.log(2)
            assert frame[label, text, pos] == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    plain = nl.lens.logit_lens(model, ids, site)
    both = nl.lens.compare(plain, result, ("logit lens", "tuned lens")).frame
    final = both[both["layer"] == "final"]
    assert bool(final["differs"].any()) == hooked and both["differs"].any()
    assert result.depth_view().to_html() and result.surprise_view().title.startswith("Tuned lens")


def test_nan_is_unknown_and_does_not_spoil_the_rest() -> None:
    model: Any = nl.load()
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[model.to_single_token(" dog")] = math.nan
    good, bad = "The cat sat on the mat", "The dog sat on the mat"
    with pytest.warns(NeoxLabWarning, match="NaN"):
        both = nl.lens.logit_lens(model, [good, bad])
    alone = nl.lens.logit_lens(model, good)
    own = alone.mask[0]
    assert torch.equal(both.depth[0, : len(own)][own], alone.depth[0])
    at = both.mask[1].nonzero().flatten()
    assert (both.depth[1] == -1).all() and (both.prediction[1] == -1).all()
    assert len(at) == both.depths.query("text == 1")["layer"].isna().sum()
    assert "NaN" in both.depth_view(1).to_html()
    means = both.mean_surprise()
    assert means["texts"].tolist() == [2] * 5
    assert means[["surprise_bits", "low", "high", "entropy_bits"]].isna().all(axis=None)
    assert alone.mean_surprise()["surprise_bits"].notna().all()
    assert both.surprise_view().to_png().startswith(b"\x89PNG")


def test_what_has_no_next_token() -> None:
    result = nl.lens.logit_lens(nl.load(), "The")
    assert result.mask.sum() == 1
    with pytest.raises(InputError, match="No token follows"):
        result.mean_surprise()
    with pytest.raises(InputError, match="text"):
        result.depth_view(1)


def test_pictures_escape_their_texts() -> None:
    result = nl.lens.logit_lens(nl.load(), "</script><img src=x> $a_1$ & the cat")
    for view in (result.depth_view(), result.surprise_view()):
        page = view.to_html(standalone=True)
        assert "<img src=x" not in page and view.to_png().startswith(b"\x89PNG")
