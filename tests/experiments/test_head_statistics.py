"""Statistics of heads over a corpus, against sums written out query by query."""

from __future__ import annotations

import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import SIZES, randomize
from torch import Tensor

import neox_lab as nl
from neox_lab.data.statistics import bootstrap_interval
from neox_lab.errors import InputError
from neox_lab.experiments import head_statistics as module
from neox_lab.gym import planting

TEXTS = ["abcabc bca", "the cat the hat the mat", "zz", "one two one two one", "qwertyqwe"]
NAMES = ["entropy_bits", "distance", "first_token", "own_token", "previous_token"]


def random_model(**overrides: Any) -> Any:
    sizes = SIZES | {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0} | overrides
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes)).eval()
    randomize(model, std=0.3)
    model.tokenizer = planting.tokenizer()
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    return random_model(use_parallel_residual=request.param)


def of_query(row: list[float], query: int, *, with_first: bool) -> list[float]:
    """The numbers of one query, from its attention on the keys up to itself."""
    keys = range(0 if with_first else 1, query + 1)
    total = sum(row[key] for key in keys)
    share = {key: row[key] / total for key in keys}
    return [
        -sum(a * math.log2(a) for a in share.values() if a > 0),
        sum(a * (query - key) for key, a in share.items()),
        share.get(0, 0.0),
        share[query],
        share.get(query - 1, 0.0),
    ]


def by_hand(model: Any, text: Tensor) -> Tensor:
    """``[layer, head, statistic, with_first]`` of one text that runs alone."""
    with torch.no_grad():
        _, cache = model.run_with_cache(text[None])
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    found = torch.zeros(layers, heads, 5, 2, dtype=torch.float64)
    for layer in range(layers):
        for head in range(heads):
            rows = cache["pattern", layer][0, head].double().tolist()
            for kept, with_first in enumerate((True, False)):
                each = [
                    of_query(row, query, with_first=with_first)
                    for query, row in enumerate(rows)
                    if query
                ]
                found[layer, head, :, kept] = torch.tensor(each).mean(dim=0)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_number_is_that_of_a_loop(
    model: Any, side: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    monkeypatch.setattr(module, "PART", 1 if batch_size == 2 else 2**24)  # a head at a time
    result = nl.detect.head_statistics(model, TEXTS, batch_size=batch_size)
    rows = [model.to_tokens(text)[0] for text in TEXTS]
    expected = torch.stack([by_hand(model, row) for row in rows])
    torch.testing.assert_close(result.samples.double(), expected, rtol=1e-6, atol=2e-6)
    assert result.queries.tolist() == [len(row) - 1 for row in rows]
    assert result.labels["statistic"] == NAMES
    means = result.samples.double().mean(dim=0)
    torch.testing.assert_close(result.values[..., 0], means[..., 0], rtol=0, atol=1e-12)
    low, high = bootstrap_interval(result.samples.double())
    kept = result.is_computed
    assert torch.equal(result.low[kept], low[kept])
    assert torch.equal(result.high[kept], high[kept])
    assert kept.logical_not().nonzero()[:, 2:].unique(dim=0).tolist() == [[2, 1]]


def test_statistics_with_first_are_those_of_detection(model: Any) -> None:
    text = TEXTS[1]
    found = nl.detect.heads(model, "previous_token", text)
    values = nl.detect.head_statistics(model, text).values[..., 0].float()
    torch.testing.assert_close(values[..., 0], found.entropy / math.log(2))
    torch.testing.assert_close(values[..., 1], found.distance)
    torch.testing.assert_close(values[..., 2], found.first_token)


def test_the_planted_head_looks_one_token_back() -> None:
    model = nl.gym.planted()
    texts = [row for row in nl.detect.repeated_tokens(model, length=20, count=3)]
    result = nl.detect.head_statistics(model, torch.stack(texts))
    best = result.top(1, "previous_token").iloc[0]
    assert best["name"] == "L0H1"
    assert best["mean"] > 0.99
    assert result.values[0, 1, 1, 0] == pytest.approx(1, abs=0.02)
    assert result.top(1, "entropy_bits", smallest=True).iloc[0]["name"] == "L0H1"


def test_frame_view_and_file(model: Any, tmp_path: Path) -> None:
    result = nl.detect.head_statistics(model, TEXTS)
    frame = result.frame
    assert list(frame.columns) == "layer head statistic with_first mean low high".split()
    assert len(frame) == 3 * 4 * 9
    row = frame[(frame["layer"] == 2) & (frame["head"] == 1) & (frame["statistic"] == "distance")]
    assert row["with_first"].tolist() == [True, False]
    assert row["mean"].tolist() == result.values[2, 1, 1].tolist()
    assert bool((frame["low"] <= frame["mean"]).all() and (frame["mean"] <= frame["high"]).all())
    view = result.view("own_token", with_first=False)
    assert view.values.tolist() == result.values[:, :, 3, 1].float().tolist()
    assert view.row_axis == "layer"
    assert "first token left out" in view.title
    ordered = result.top(12, "distance", with_first=False)["mean"].tolist()
    assert ordered == sorted(ordered, reverse=True)
    result.save(tmp_path / "r.safetensors")
    assert type(result).load(tmp_path / "r.safetensors") == result


def test_a_head_that_looks_only_at_the_first_token(model: Any) -> None:
    def look_back(pattern: Tensor, hook: Any) -> Tensor:
        pattern[:, 2] = 0
        pattern[:, 2, :, 0] = 1
        if pattern.shape[-1] == len("abcabc bca"):  # one text, in which it looks at itself
            pattern[:, 2] = torch.eye(pattern.shape[-1])
        return pattern

    with model.hooks([("blocks.1.attn.hook_pattern", look_back)]):
        result = nl.detect.head_statistics(model, TEXTS, batch_size=1)
        alone = nl.detect.head_statistics(model, TEXTS[1:], batch_size=1)
    assert result.samples[1:, 1, 2, 0, 1].isnan().all()
    assert result.values[1, 2, 3].tolist() == pytest.approx([0.2, 1])  # of the text with a choice
    assert not alone.is_computed[1, 2, :, 1].any()
    assert alone.is_computed[1, 1, :, 1].sum() == 4
    assert len(alone.frame) == 3 * 4 * 9 - 4


def test_attention_that_is_nan_stays_so(model: Any) -> None:
    def spoil(pattern: Tensor, hook: Any) -> Tensor:
        pattern[:, 3, -1] = torch.nan
        return pattern

    with (
        model.hooks([("blocks.2.attn.hook_pattern", spoil)]),
        pytest.warns(nl.errors.NeoxLabWarning, match="layer 2 head 3"),
    ):
        result = nl.detect.head_statistics(model, TEXTS[:2], batch_size=1)
    assert result.values[2, 3, :, 0].isnan().all()
    assert not result.values[2, :3, :, 0].isnan().any()


def test_no_pattern_is_kept(model: Any) -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(pattern: Tensor, hook: Any) -> None:
        alive.append(sum(each() is not None for each in seen))
        seen.append(weakref.ref(pattern))

    with model.hooks([("blocks.*.attn.hook_pattern", note)]):
        nl.detect.head_statistics(model, TEXTS, batch_size=2)
    assert len(seen) == 3 * 3
    assert max(alive) <= 1


def test_one_text_has_no_interval(model: Any) -> None:
    result = nl.detect.head_statistics(model, TEXTS[0])
    assert result.low.isnan().all()
    assert "1 text:" in result.view().title
    assert result.values[..., 0].isfinite().all()


def test_what_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"Text 1 has 1 token"):
        nl.detect.head_statistics(model, ["abc", "a"])
    with pytest.raises(InputError, match="not embeddings"):
        nl.detect.head_statistics(model, torch.zeros(1, 3, 64))
    result = nl.detect.head_statistics(model, TEXTS[:2])
    with pytest.raises(InputError, match="Did you mean 'distance'"):
        result.view("distanc")
    with pytest.raises(InputError, match="with_first=True"):
        result.view("first_token", with_first=False)
