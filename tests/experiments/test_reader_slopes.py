"""Gradients at readers, pulled back from queries, keys and values, equal those of split inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from patching_oracle import small
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits import scores
from neox_lab.circuits.scoring import METHODS
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.attribution import gradients, reader_slopes
from neox_lab.experiments.attribution.reader_slopes import Added, line, mean_slopes
from neox_lab.experiments.metrics import logit_difference
from neox_lab.experiments.prompt_pairs import batch

METRIC = logit_difference(7, 11)
WEIGHTS = [0.5, -0.2, 0.7]
KINDS = [(True, "left"), (False, "left"), (True, "right"), (False, "")]


def texts(padding: str, seed: int = 0) -> dict[str, Tensor]:
    """Two texts, one of them shorter."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.randint(2, 50, (2, 9), generator=generator), torch.ones(2, 9).long()
    gone = {"left": slice(0, 3), "right": slice(6, 9), "": slice(0, 0)}[padding]
    ids[1, gone], mask[1, gone] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("changed", [None, "L1H2", "MLP1"])
@pytest.mark.parametrize(("parallel", "padding"), KINDS)
@pytest.mark.parametrize("metric", [METRIC, lambda logits: logits[:, 5].square().mean()])
def test_slopes_are_those_of_runs_with_split_inputs(
    parallel: bool, padding: str, changed: str | None, metric: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(use_parallel_residual=parallel, num_hidden_layers=3).double()
    asked = batch(model, texts(padding), metric)
    generator = torch.Generator().manual_seed(2)
    start, end = (torch.randn(2, 9, 24, generator=generator).double() for _ in range(2))
    embeds = line(start, end, [0, 0.3, 0.8])
    names = list(dict.fromkeys(node.reading_hook for node in graph.readers(model)))
    added = None
    if changed:  # the layer is entered as it is with the first embeddings, in all runs
        node, embeds = graph.node_of(changed, 3), embeds[:1].expand_as(embeds)
        hooks: list[Any] = [("hook_embed", lambda *_: embeds[0])]
        kept = "blocks.1.hook_resid_pre"
        with model.hooks(hooks):
            stream = gradients.activations(asked, [kept])[2][kept]
        added = Added(node, torch.randn(embeds.shape, generator=generator).double(), stream)
        names = [name for name in names if not name.startswith("blocks.0.")]
    slow = reader_slopes._one_by_one(asked, names, embeds, WEIGHTS, added)
    for limit in (reader_slopes.NUMBERS_AT_ONCE, 1):
        monkeypatch.setattr(reader_slopes, "NUMBERS_AT_ONCE", limit)
        fast = mean_slopes(asked, names, embeds, WEIGHTS, added)
        for name in names:
            assert slow(name).abs().max() > 1e-3
            torch.testing.assert_close(fast(name), slow(name), rtol=1e-10, atol=1e-10)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "exact"])
@pytest.mark.parametrize(("parallel", "padding"), KINDS)
def test_scores_with_and_without_a_hook_of_somebody_are_the_same(
    method: Any, parallel: bool, padding: str
) -> None:
    model = small(use_parallel_residual=parallel).double()
    clean, corrupted = texts(padding), texts(padding, seed=1)
    fast = scores(model, clean, corrupted, METRIC, method, steps=3)
    seen: list[str] = []
    with model.hooks([("hook_embed", nl.reads_only(lambda _, hook: seen.append(hook.name)))]):
        slow = scores(model, clean, corrupted, METRIC, method, steps=3)
    assert seen
    most = float(slow.values.nan_to_num().abs().max())
    torch.testing.assert_close(
        fast.values, slow.values, rtol=1e-6, atol=1e-6 * most, equal_nan=True
    )
    assert fast.facts == pytest.approx(slow.facts)


def test_a_hook_that_changes_is_part_of_the_scores() -> None:
    model = small()
    clean, corrupted = texts(""), texts("", seed=1)
    plain = scores(model, clean, corrupted, METRIC, steps=2)
    with model.hooks([("blocks.1.attn.hook_q", lambda q, _: 0.5 * q)]):
        halved = scores(model, clean, corrupted, METRIC, steps=2)
    differ = (plain.values - halved.values).abs().nan_to_num().amax(dim=0)
    changed = {name for name, d in zip(plain.labels["reader"], differ, strict=True) if d > 1e-4}
    assert {"L1H0.q", "L1H1.k", "L1H2.v"} <= changed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    clean, corrupted = texts("left"), texts("left", seed=1)
    exact = scores(small(), clean, corrupted, METRIC, steps=2).values.nan_to_num()
    found = scores(small().to(dtype), clean, corrupted, METRIC, steps=2).values.nan_to_num()
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_a_metric_without_gradient_is_named() -> None:
    asked = batch(small(), texts(""), lambda logits: logits.argmax(-1).float().mean())
    with pytest.raises(InputError, match="gradient"):
        mean_slopes(asked, ["blocks.0.hook_mlp_in"], torch.zeros(1, 2, 9, 24), [1.0])
