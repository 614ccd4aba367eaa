"""Two hundred rounds of what a long session does: memory and objects stay as they are."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from patching_oracle import prompts, small

import neox_lab as nl

ROUNDS, WARM = 200, 40
MOST = 4 << 20
"""Bytes that may be held more after the rounds: what an allocator keeps varies by this much."""


def hooks(model: Any) -> Callable[[int], object]:
    def doubled(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        return tensor * 2

    def one(number: int) -> None:
        ids = torch.tensor([[3, 4, 5, 6 + number % 7]])
        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", doubled)]):
            model.run_with_cache(ids)
        model.run_with_hooks(ids, fwd_hooks=[("blocks.1.hook_mlp_out", doubled)])

    return one


def sweeps(model: Any) -> Callable[[int], object]:
    metric = nl.patching.logit_difference([3, 4], [5, 6])

    def one(number: int) -> None:
        nl.patching.sweep(model, *prompts(2, 4, first=1, seed=number), metric, "z")

    return one


def generation(model: Any) -> Callable[[int], object]:
    def one(number: int) -> None:
        ids = torch.tensor([[3, 4, 5 + number % 7]])
        model.generate(ids, max_new_tokens=4, do_sample=bool(number % 2), pad_token_id=1)

    return one


WORK = {"hooks": hooks, "sweeps": sweeps, "generation": generation}


def held() -> int:
    """Bytes of memory that belong to this process alone and are no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def soak(one: Callable[[int], object]) -> None:
    for number in range(WARM):
        one(number)
    gc.collect()
    objects, before = len(gc.get_objects()), held()
    for number in range(ROUNDS):
        one(number)
    gc.collect()
    more = len(gc.get_objects()) - objects
    assert more < ROUNDS // 2, f"{more} objects more after {ROUNDS} rounds"
    assert held() - before < MOST


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


@pytest.mark.parametrize("name", WORK)
def test_memory_stays_flat(name: str) -> None:
    soak(WORK[name](small()))


def test_an_explorers_memory_stays_flat() -> None:
    """A selection each round, and now and then another prompt and a question."""
    pytest.importorskip("anywidget", reason="anywidget is not installed (extra: widgets)")
    explorer = nl.explore(nl.load(), "The cat sat on the mat.")
    explorer.wait()

    def one(number: int) -> None:
        explorer.select({"layer": number % 3, "head": number % 2, "position": number % 4})
        if number % 10 == 0:
            words = "cat" if number % 20 else "dog"
            explorer.set_state({"prompt": f"The {words} sat on the mat."})
            explorer.run(), explorer.wait()
            explorer.ask("ablation"), explorer.wait()
            assert explorer.phase == "done", explorer.message

    soak(one)
