"""A long question goes up in several climbs: the same numbers, and an interrupt finds some done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from patching_oracle import prompts, small
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments.patching import stretches as room

difference = nl.patching.logit_difference(5, 8)
CLEAN, CORRUPTED = prompts(2, 7, 2)


def everything(logits: Tensor) -> Tensor:
    """Reads all logits of all pairs."""
    return logits.softmax(dim=-1)[..., 3].mean()


def model_of(**more: Any) -> Any:
    return small(num_hidden_layers=4, **more).double()


def direct_paths(model: Any) -> Tensor:
    caches = [model.run_with_cache(ids)[1] for ids in (CLEAN, CORRUPTED)]
    return nl.patching.get_act_patch_direct_path_all_sources(
        model, CORRUPTED, *caches, difference, verbose=False
    )


def spliced(model: Any) -> Tensor:
    """A function is spliced in, so variants run through hooks."""
    with model.spliced_function("blocks.1.hook_mlp_out", lambda x, tap: 1.1 * x, ()):
        return swept(model, "z", budget=20)


def swept(model: Any, *of: Any, **more: Any) -> Any:
    metric = more.pop("metric", difference)
    return nl.patching.sweep(model, CLEAN, CORRUPTED, metric, *of, progress=False, **more).values


def ablated(model: Any, *of: Any, **more: Any) -> Any:
    return nl.patching.ablate(model, CLEAN, difference, *of, progress=False, **more).values


QUESTIONS: dict[str, Callable[[Any], Tensor]] = {
    "residual": lambda model: swept(model, ["resid_pre", "resid_post"]),
    "patterns": lambda model: swept(model, "pattern_by_dest_source", budget=12),
    "all logits": lambda model: swept(model, "k", metric=everything, budget=12),
    "named positions": lambda model: swept(model, "z", positions={"a": (3, 2), "b": 4}),
    "neurons": lambda model: swept(model, "blocks.2.mlp.hook_post", entries=range(9)),
    "zero": lambda model: ablated(model, "z", "zero"),
    "mean": lambda model: ablated(model, "mlp_out", "mean", reference=CORRUPTED, budget=12),
    "resample": lambda model: ablated(model, "z", "resample"),
    "direct paths": direct_paths,
    "edges": lambda model: (
        nl.patching.edge_sweep(
            model, CLEAN, CORRUPTED, difference, tokens_at_once=60, progress=False
        ).values
    ),
    "paths": lambda model: (
        nl.patching.path_patch(
            model, CLEAN, CORRUPTED, difference, "all", ["L1H0", "MLP2", "logits"], through="mlps"
        ).values
    ),
    "spliced": spliced,
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_numbers_are_those_of_one_climb(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parallel = [*QUESTIONS].index(question) % 2 == 0
    model, ask = model_of(use_parallel_residual=parallel), QUESTIONS[question]
    monkeypatch.setattr(room, "MOST", 1)
    whole = ask(model)
    monkeypatch.setattr(room, "MOST", 5)
    monkeypatch.setattr(room, "FULL", 0.01)
    monkeypatch.setattr(room, "SHARE", 100)
    count = []

    def noted(*of: Any, made: Any = room.stretches) -> list[slice]:
        count.append(made(*of))
        return made(*of)

    for place in ("patching.runner", "paths.path_runs"):
        monkeypatch.setattr(f"neox_lab.experiments.{place}.stretches", noted)
    part = ask(model)
    assert max(map(len, count)) > 2
    torch.testing.assert_close(part, whole, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert bool((whole.nan_to_num() != 0).any())


def stopped_at(share: float) -> Callable[[int, int], None]:
    def stop(done: int, total: int) -> None:
        assert 0 <= done <= total
        if done >= share * total:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_sweep_has_its_upper_layers() -> None:
    given = (model_of(), *prompts(1, 16, 1), difference, "pattern_by_dest_source")
    whole = nl.patching.sweep(*given, progress=False)
    assert whole.complete
    for share, layers in ((0.3, [2, 3]), (0.8, [1, 2, 3])):
        part = nl.patching.sweep(*given, budget=64, progress=stopped_at(share))
        known = ~part.values.isnan()
        assert not part.complete
        assert [layer for layer in range(4) if bool(known[layer].all())][-len(layers) :] == layers
        assert not bool(known[0].all())
        torch.testing.assert_close(part.values[known], whole.values[known], rtol=1e-9, atol=1e-9)
        assert part.corrupted == pytest.approx(whole.corrupted)


def test_interrupted_edges_are_those_into_upper_layers() -> None:
    given = (model_of(), *prompts(1, 5, 1), difference)
    whole = nl.patching.edge_sweep(*given, progress=False)
    part = nl.patching.edge_sweep(*given, tokens_at_once=20, progress=stopped_at(0.6))
    known = part.values.isfinite()
    assert not part.complete
    assert 0.3 < int(known.sum()) / int(whole.values.isfinite().sum()) < 0.9
    assert bool(known[:, -1].all())  # into the logits
    torch.testing.assert_close(part.values[known], whole.values[known], rtol=1e-9, atol=1e-9)


def test_stretches_are_of_equal_cost_and_leave_nothing_out() -> None:
    model = model_of()
    costs = torch.tensor([4, 3, 2, 1, 0]).repeat_interleave(1000)
    found = room.stretches(model, costs, plain=40, group=100)
    assert len(found) == 7  # three parts in a hundred of 10,000 are 300
    assert [span.stop for span in found[1:]] == [span.start for span in found[:-1]]
    assert (found[0].stop, found[-1].start) == (5000, 0)
    shares = [int(costs[span].sum()) for span in found]
    assert max(shares) - min(shares) < 10
    assert len(room.stretches(model, costs, plain=10, group=1)) == room.MOST
    assert len(room.stretches(model, costs, plain=301, group=1)) == 1
    assert len(room.stretches(model, costs, plain=1, group=10_000)) == 1
    assert room.stretches(model, costs[:0], 1, 1) == [slice(0, 0)]
    model.backbone.store = nullcontext()  # whatever reads layers
    assert room.stretches(model, costs, plain=1, group=1) == [slice(0, 5000)]
