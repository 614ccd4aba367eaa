"""Nulls: the same where nothing can be found, several times.

A null that is trained stands where the answer is read, as what is found does, and only by luck off
the variable: one draw of it says little. In a model of ten planted variables a direction trained on
permuted labels lies among the ten; its cosine with the one that is meant is about 1/√10, and where
its square comes near a half, some pairs answer as if the variable had been found. With more
directions, or fewer pairs, that happens more often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.interchange.cached_runs import CachedRuns
from neox_lab.interchange.outcomes import PERMUTED, RANDOM, UNTRAINED, Outcome, outcome
from neox_lab.interchange.pairs import Pairs
from neox_lab.interchange.running import exchanged
from neox_lab.interchange.subspaces import random_directions

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Find = Callable[[CachedRuns, Tensor, int], "tuple[Tensor, Tensor]"]
"""From runs, labels and a seed to directions ``[width, rank]`` and losses."""

DRAWS = 10
"""Random subspaces that one is compared with."""


def of_directions(runs: CachedRuns, directions: Tensor | None, batch_size: int) -> Outcome:
    """What exchanging along directions does; None for everything that stands there.

    Args:
        runs: of the pairs.
        directions: ``[width, rank]``.
        batch_size: pairs in a run.
    """
    return outcome(runs, lambda own, other: exchanged(own, other, directions), batch_size)


def random_rows(runs: CachedRuns, rank: int, batch_size: int, seed: int) -> dict[str, Outcome]:
    """What random subspaces of a rank do, by name and number.

    Args:
        runs: of the pairs.
        rank: how many directions.
        batch_size: pairs in a run.
        seed: of the draws.
    """
    chosen = torch.Generator().manual_seed(seed)
    return {
        f"{RANDOM} {draw + 1}": of_directions(
            runs, random_directions(runs.width, rank, chosen), batch_size
        )
        for draw in range(DRAWS)
    }


def trained_rows(
    find: Find,
    learning: CachedRuns,
    tested: CachedRuns,
    pairs: Pairs,
    batch_size: int,
    seeds: Sequence[int],
) -> dict[str, Outcome]:
    """What is found with permuted labels, and in models with fresh weights, by name and number.

    All are tested with the true labels, on the pairs that the finding is tested on.

    Args:
        find: trains a subspace.
        learning: runs of the pairs to train on.
        tested: of those to test on.
        pairs: those to train on.
        batch_size: pairs in a run.
        seeds: of each draw: of its labels or weights, and of its training.
    """
    rows, own = {}, learning.pairs
    for draw, seed in enumerate(seeds, 1):
        found, _ = find(learning, own.labels[pairs.mixed(seed)], seed)
        rows[f"{PERMUTED} {draw}"] = of_directions(tested, found, batch_size)
    for draw, seed in enumerate(seeds, 1):
        fresh = fresh_model(learning.model, seed)
        there, other = (CachedRuns(fresh, runs.pairs, runs.site) for runs in (learning, tested))
        rows[f"{UNTRAINED} {draw}"] = of_directions(
            other, find(there, own.labels, seed)[0], batch_size
        )
    return rows


def fresh_model(model: HookedModel, seed: int) -> HookedModel:
    """A model of the same class and shape with weights as they are before training.

    Args:
        model: what it looks like.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, which is put back
        fresh: Any = type(model)(model.config)  # type: ignore[call-arg]
    fresh.tokenizer = model.tokenizer
    weight = next(model.parameters())
    made: HookedModel = fresh.to(weight.device, weight.dtype).eval()
    return made
