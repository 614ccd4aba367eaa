"""One search of edge pruning: the masks of all edges, the price of an open one, and its record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.edges import edge_labels
from neox_lab.circuits.elsewhere import runs_there, sendable
from neox_lab.circuits.masked_runs import distance_to_clean, logits_under
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.selection import highest
from neox_lab.errors import InputError
from neox_lab.executors import AnyExecutor, run_pieces
from neox_lab.experiments.prompt_pairs import Pair
from neox_lab.family.origins import Origin, origin_of

TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1  # the interval to which the sigmoid is stretched
BEGIN = 4.0
"""Location of every mask at first: fully open in 92 of 100 draws. With less, one edge of a chain of
five is nearly always half cut, and then the others have no gradient."""
WARM_UP = 0.5  # share of the steps in which the target comes down


@dataclass(frozen=True)
class Wanted:
    """What is searched for.

    Attributes:
        objective: what shall stay as it is, see ``prune_edges``.
        count: how many edges may be left.
        rate: of learning.
        steps: of Adam.
    """

    objective: str
    count: int
    rate: float
    steps: int


@dataclass
class Learned:
    """What a search has found so far.

    Attributes:
        seed: of the noise.
        location: of each mask, large for an open edge ``[writer, reader]``.
        record: what happened, by column.
    """

    seed: int
    location: Tensor
    record: dict[str, list[float]] = field(
        default_factory=lambda: {
            name: [] for name in ("step", "distance", "expected_edges", "target", "price")
        }
    )

    def masks(self, runs: CircuitRuns) -> Tensor:
        """Masks without noise, 0 where there is no edge ``[writer, reader]``."""
        with torch.no_grad():
            return masks_of(self.location.detach().cpu(), None) * runs.table.cpu()

    def circuit(self, runs: CircuitRuns, count: int, asked: Asked) -> Circuit:
        """The edges whose masks are open now, so many at most.

        Raises:
            InputError: nothing is left.
        """
        masks = self.masks(runs)
        kept = highest(self.location.detach().cpu(), (masks > 0.5) & runs.table, count)
        found = Circuit(
            values=masks,
            computed=kept,
            axes=("writer", "reader"),
            labels=edge_labels(runs.writers, runs.readers),
            parallel=runs.parallel,
            name=f"Circuit of at most {count:,} edges by edge pruning",
            value_name="how far the mask is open",
            _asked=asked,
        ).pruned()
        if not found.edges:
            raise InputError(
                f"Nothing is left of {count:,} edges: no way from the embedding to the logits is "
                "open. Allow more edges, or more steps."
            )
        return found


class Search:
    """Learns masks.

    Attributes:
        learned: so far.
    """

    def __init__(self, runs: CircuitRuns, wanted: Wanted, seed: int) -> None:
        """Nothing is learned yet.

        Raises:
            InputError: there is nothing to keep.
        """
        self.runs, self.wanted = runs, wanted
        self.distance = distance_to_clean(runs, wanted.objective)
        self.table = runs.table.to(runs.replacements.device)
        self.total = int(runs.table.sum())
        location = torch.full(
            runs.table.shape, BEGIN, device=self.table.device, dtype=torch.float32
        )
        self.location = location.requires_grad_()
        self.learned = Learned(seed, self.location)
        self.adam = torch.optim.Adam([self.location], lr=wanted.rate)
        self.noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.unit = float(self.distance(logits_under(runs, torch.zeros_like(self.location))))
        if not self.unit > 0:
            raise InputError(
                "The answer is the same with every edge cut, so there is nothing to keep. Look at "
                "the pairs and the metric: nl.check_prompts(model, clean, corrupted, metric)."
            )
        self.price = 0.0

    def run(self, told: Callable[[int], None]) -> Learned:
        """All steps; ``told`` how many are done."""
        steps = self.wanted.steps
        for step in range(steps):
            self.step(step / max(1, WARM_UP * steps))
            told(step + 1)
        return self.learned

    def step(self, done: float) -> None:
        """One draw of masks, and one step of Adam.

        Args:
            done: how far the target has come down, from 0.
        """
        target = self.total + (self.wanted.count - self.total) * min(1.0, done)
        drawn = torch.rand(self.location.shape, generator=self.noise, dtype=torch.float32).to(
            self.location.device
        )
        distance = self.distance(logits_under(self.runs, masks_of(self.location, drawn)))
        expected = open_probability(self.location)[self.table].sum()
        excess = (expected - target) / self.total
        (slope,) = torch.autograd.grad(distance / self.unit + self.price * excess, self.location)
        self.location.grad = slope
        self.adam.step()
        self.price = max(0.0, self.price + float(excess.detach()))
        record = self.learned.record
        found = (len(record["step"]), distance, expected, target, self.price)
        for name, value in zip(record, found, strict=True):
            record[name].append(float(torch.as_tensor(value).detach()))


@dataclass(frozen=True)
class Searcher:
    """What a worker does with a seed; small, and can be pickled.

    Attributes:
        origin: of the model.
        question: see ``sendable``.
        wanted: what is searched for.
    """

    origin: Origin
    question: bytes
    wanted: Wanted

    @torch.inference_mode(False)
    def __call__(self, seed: int) -> tuple[dict[str, list[float]], Any]:
        """The record of a search and the locations, an array."""
        search = Search(runs_there(self.origin, self.question), self.wanted, seed)
        learned = search.run(lambda done: None)
        return learned.record, learned.location.detach().cpu().numpy()


def searched_elsewhere(
    executor: AnyExecutor, both: Pair, ablation: str, wanted: Wanted, seeds: Sequence[int]
) -> Iterator[Learned]:
    """Searches by workers, in the order in which they are ready.

    Args:
        executor: who does the work.
        both: see ``CircuitRuns``.
        ablation: see there.
        wanted: what is searched for.
        seeds: one for each search.

    Raises:
        InputError: workers could not load the model, or the metric cannot be sent.
        LostWorkerError: the worker of a seed was lost again and again.
    """
    model = both.corrupted.model
    search = Searcher(origin_of(model), sendable(both, ablation), wanted)
    sent = run_pieces(executor, search, seeds, called=lambda seed: f"seed {seed}")
    with closing(sent):
        for number, (record, location) in sent:
            yield Learned(seeds[number], torch.from_numpy(location), record)


def masks_of(location: Tensor, drawn: Tensor | None) -> Tensor:
    """Hard-concrete masks.

    Args:
        location: of each distribution; large for an open edge.
        drawn: numbers from 0 to 1 of the same shape; None leaves the noise and the temperature out.
    """
    if drawn is None:
        soft = location.sigmoid()
    else:
        soft = ((torch.logit(drawn, eps=1e-6) + location) / TEMPERATURE).sigmoid()
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(location: Tensor) -> Tensor:
    """How likely each mask is not 0."""
    return (location - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()
