"""Two lenses beside each other, against whole distributions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from oracle import pair, tokens
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import InputError, NeoxLabWarning


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(request: pytest.FixtureRequest) -> list[Any]:
    return [pair(use_parallel_residual=request.param, seed=seed)[1] for seed in (0, 1)]


def distributions(model: Any, ids: Tensor) -> Tensor:
    """Of each row of the lens, in float64, ``[layer, batch, pos, vocab]``."""
    with torch.no_grad():
        _, cache = model.run_with_cache(ids)
        streams = [*(cache["resid_pre", layer] for layer in range(3)), cache["resid_post", 2]]
        norm, head = model.gpt_neox.final_layer_norm, model.embed_out
        return torch.stack([head(norm(stream)).double().softmax(-1) for stream in streams])


@pytest.mark.parametrize("top_k", [1, 2, 5, 40, 211])
def test_total_variation_lies_between_the_two_numbers(models: list[Any], top_k: int) -> None:
    ids = tokens()
    first, second = (nl.lens.logit_lens(model, ids, top_k=top_k) for model in models)
    result = nl.lens.compare(first, second)
    ours, theirs = (distributions(model, ids) for model in models)
    exact = (ours - theirs).abs().sum(-1) / 2
    for text in range(3):
        wanted = exact[:, text]
        assert result.pairs[text] == [(pos, pos) for pos in range(12)]
        assert (result.least[text] <= wanted + 1e-5).all()
        assert (result.most[text] >= wanted - 1e-5).all()
        if top_k == 211:
            torch.testing.assert_close(result.least[text].double(), wanted, atol=1e-5, rtol=0)
            torch.testing.assert_close(result.most[text].double(), wanted, atol=1e-5, rtol=0)
    best = [each.argmax(-1) for each in (ours, theirs)]
    frame = result.frame
    assert len(frame) == 4 * 3 * 12
    at = frame["layer"].map(result.first.labels.index), frame["text"], frame["pos_first"]
    index = tuple(torch.tensor(column.to_numpy()) for column in at)
    assert frame["differs"].tolist() == (best[0] != best[1])[index].tolist()
    assert frame["probability_second"].to_numpy() == pytest.approx(theirs.amax(-1)[index].numpy())


def test_the_two_numbers_by_hand() -> None:
    """0.6 and 0.3 against 0.5 and 0.4: of what each side does not tell, 0.1 is left."""
    lens = nl.lens.logit_lens(nl.load(), "The", top_k=2)
    layers = len(lens.labels)

    def told(tokens: list[int], chances: list[float]) -> Any:
        top = torch.tensor(tokens).expand(layers, 1, 1, 2)
        piece_of = dict.fromkeys(tokens, "x")
        probability = torch.tensor(chances).expand(layers, 1, 1, 2)
        return dataclasses.replace(lens, top=top, top_probability=probability, piece_of=piece_of)

    result = nl.lens.compare(told([5, 6], [0.6, 0.3]), told([5, 7], [0.5, 0.4]))
    # 6 gains at least 0.3 - 0.1 and 5 gains 0.1; of 7 at least 0.4 - 0.1 was gained on the other.
    torch.testing.assert_close(result.least[0], torch.full((layers, 1), 0.3))
    torch.testing.assert_close(result.most[0], torch.full((layers, 1), 0.5))
    other = nl.lens.compare(told([5, 6], [0.6, 0.3]), told([8, 9], [0.5, 0.4]))
    torch.testing.assert_close(other.least[0], torch.full((layers, 1), 0.7))
    torch.testing.assert_close(other.most[0], torch.full((layers, 1), 1.0))


def test_with_more_tokens_the_numbers_come_closer(models: list[Any]) -> None:
    ends = []
    for top_k in (1, 3, 10, 30, 100, 211):
        result = nl.lens.compare(*(nl.lens.logit_lens(m, tokens(), top_k=top_k) for m in models))
        ends.append((torch.stack(result.least), torch.stack(result.most)))
    for (least, most), (larger, smaller) in itertools.pairwise(ends):
        assert (larger >= least - 1e-5).all() and (smaller <= most + 1e-5).all()
    assert float(ends[1][0].mean()) > 0.02 and float((ends[-2][1] - ends[-2][0]).mean()) < 0.2


def test_a_lens_is_no_distance_from_itself(models: list[Any]) -> None:
    lens = nl.lens.logit_lens(models[0], tokens(), top_k=211)
    result = nl.lens.compare(lens, lens)
    assert not result.frame["differs"].any()
    assert result.frame["difference_most"].abs().max() < 1e-5
    assert (result.frame["difference_least"] == 0).all()


def test_tokens_watched_in_both_are_followed(models: list[Any]) -> None:
    ids = tokens()
    lenses = [
        nl.lens.logit_lens(m, ids, watch=w)
        for m, w in zip(models, ([3, 7], [9, 7, 3]), strict=True)
    ]
    frame = nl.lens.compare(*lenses).frame
    ours, theirs = (distributions(model, ids) for model in models)
    assert [name for name in frame.columns if name.startswith("change")] == [
        "change of p(⟨3⟩)",
        "change of p(⟨7⟩)",
    ]
    for token in (3, 7):
        wanted = (theirs - ours)[..., token].flatten().numpy()
        assert frame[f"change of p(⟨{token}⟩)"].to_numpy() == pytest.approx(wanted, abs=1e-6)


def test_prompts_of_other_lengths_are_matched_by_their_tokens() -> None:
    model = nl.load()
    first = nl.lens.logit_lens(model, "The people of the United States have given")
    second = nl.lens.logit_lens(model, "The good people of the old States have given")
    result = nl.lens.compare(first, second, ("short", "long"))
    frame = result.frame
    same = frame[frame["token_first"] == frame["token_second"]]
    assert {" people", " of", " the", " States", " have", " given"} <= set(same["token_first"])
    assert (frame["pos_first"] != frame["pos_second"]).any()
    view = result.view()
    assert view.names == ["short", "long"]
    assert [(view.sides[0].pieces[a], view.sides[1].pieces[b]) for a, b in view.pairs] == list(
        zip(
            *(frame.query("layer == 'final'")[f"token_{s}"] for s in ("first", "second")),
            strict=True,
        )
    )
    assert view.differs.ravel().tolist() == frame["differs"].tolist()
    data = view.data()
    for side in (0, 1):
        grid = data["sides"][side]["grid"]
        marks = np.array(grid["marked"])
        for at, spots in enumerate(view.pairs):
            assert marks[:, spots[side]].tolist() == view.differs[:, at].tolist()
        assert marks.sum() == view.differs.sum()
    assert data["sides"][0]["grid"]["low"] == data["sides"][1]["grid"]["low"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_compared(side: str) -> None:
    model = nl.load()
    texts = ["The people of the United States", "The cat"]
    others = ["The kings of the United States", "The dog"]
    alone = [
        nl.lens.compare(*(nl.lens.logit_lens(model, text) for text in each)).frame
        for each in zip(texts, others, strict=True)
    ]
    model.tokenizer.padding_side = side
    try:
        both = nl.lens.compare(*(nl.lens.logit_lens(model, each) for each in (texts, others)))
    finally:
        model.tokenizer.padding_side = "right"
    for text in (0, 1):
        part = both.frame[both.frame["text"] == text].reset_index(drop=True)
        assert list(part["token_second"]) == list(alone[text]["token_second"])
        for name in ("difference_least", "difference_most", "surprise_bits_second"):
            assert part[name].to_numpy() == pytest.approx(
                alone[text][name].to_numpy(), abs=1e-4, nan_ok=True
            )
        assert both.view(text).to_html()


def test_a_nan_prediction_is_nowhere_near() -> None:
    model: Any = nl.load()
    good = nl.lens.logit_lens(model, "The dog sat on the mat")
    with torch.no_grad():
        model.gpt_neox.embed_in.weight[model.to_single_token(" dog")] = math.nan
    with pytest.warns(NeoxLabWarning, match="NaN"):
        bad = nl.lens.logit_lens(model, "The dog sat on the mat")
    result = nl.lens.compare(good, bad)
    final = result.frame.query("layer == 'final'")
    assert final[["difference_least", "difference_most"]].isna().all(axis=None)
    assert final["differs"].all() and final["prediction_second"].isna().all()
    assert not nl.lens.compare(bad, bad).frame.query("layer == 'final'")["differs"].any()
    assert result.view().differs.ravel().tolist() == result.frame["differs"].tolist()
    assert result.to_html() and result.to_png()


def test_what_does_not_belong_together_is_refused_in_words(models: list[Any]) -> None:
    lens = nl.lens.logit_lens(models[0], tokens())
    deep = pair(num_hidden_layers=4)[1]
    wide = pair(vocab_size=219)[1]
    for other, words in (
        (nl.lens.logit_lens(models[0], tokens(), "mlp_out"), "resid_pre and the second mlp_out"),
        (nl.lens.logit_lens(deep, tokens()), "4 rows and the second 5"),
        (nl.lens.logit_lens(wide, tokens()), "211 tokens and the second one of 219"),
        (nl.lens.logit_lens(models[0], tokens(2)), "3 texts and the second 2"),
        (dataclasses.replace(lens, piece_of={t: "x" for t in lens.piece_of}), "same tokenizer"),
        (models[0], "(?s)second=.*nl.dynamics.compare compares two models"),
    ):
        with pytest.raises(InputError, match=words):
            nl.lens.compare(lens, other)
    with pytest.raises(InputError, match="names"):
        nl.lens.compare(lens, lens, ("one",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="text"):
        nl.lens.compare(lens, lens).view(3)
