"""Searches for circuits that workers make: the circuits of one process."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from backwards import Backwards
from test_circuits_elsewhere import CLEAN, CORRUPTED

import neox_lab as nl
from neox_lab.circuits import acdc, prune_edges
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import logit_difference

pytestmark = pytest.mark.usefixtures("one_thread")
METRIC = logit_difference([" a"] * 2, [" the"] * 2)


def pruned(**more: Any) -> Any:
    settings: dict[str, Any] = {"steps": 3, "seed": 4, "seeds": 3, "objective": "metric"}
    return prune_edges(nl.load(), CLEAN, CORRUPTED, METRIC, 300, **settings | more)


def same(there: Any, here: Any) -> None:
    assert there.frame.equals(here.frame)
    assert len(there.circuits) == len(here.circuits) == 3
    for one, other in zip(there.circuits, here.circuits, strict=True):
        assert torch.equal(one.kept, other.kept)
        assert torch.equal(one.values, other.values)
        assert one.name == other.name


def test_seeds_of_edge_pruning() -> None:
    executor = Backwards()
    there, here = pruned(executor=executor), pruned()
    same(there, here)
    assert torch.equal(there.masks, here.masks)
    assert there.complete
    assert len(executor.sent) == 3
    assert max(map(len, executor.sent)) < 30_000


@pytest.mark.slow
def test_seeds_of_edge_pruning_in_other_processes() -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        same(pruned(executor=executor, objective="kl"), pruned(objective="kl"))


def test_orders_of_acdc() -> None:
    settings: dict[str, Any] = {"orders": 3, "seed": 1, "threshold": 0.3}
    given = (nl.load(), CLEAN[:1], CORRUPTED[:1], logit_difference([" a"], [" the"]))
    executor = Backwards()
    same(acdc(*given, **settings, executor=executor), acdc(*given, **settings))
    assert len(executor.sent) == 3


def test_an_interrupt_keeps_the_searches_that_are_done() -> None:
    def stop(done: int, total: int) -> None:
        assert (done, total) == (3, 9)
        raise KeyboardInterrupt

    part = pruned(executor=Backwards(), progress=stop)
    assert not part.complete
    assert part.frame["seed"].unique().tolist() == [6]  # whichever was first
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        pruned(executor=3)
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        acdc(nl.load(), CLEAN, CORRUPTED, METRIC, 0.3, executor=3)  # type: ignore[arg-type]
