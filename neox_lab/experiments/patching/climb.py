"""One climb: the plain runs and all variants of a sweep go up the layers together.

    for each layer            the plain runs' block is run, and shows its activations
        the variants          patched there are found, and enter the growing batch
        every group of them   goes through the same block
    at the top                the metric of each is read

So each layer's weights are used in one place and time of a sweep, and may as well lie on a disk.
What bounds the memory is how much goes through a block at once: pairs in ``Part``, variants in
groups. The residual streams of groups that wait may lie in a file, see ``spilling``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.experiments.patching.planning import Cells, Forward, Group, find_variants, spans
from neox_lab.experiments.patching.sources import Pairs, PlainRuns
from neox_lab.experiments.patching.spilling import Room
from neox_lab.experiments.patching.variants import Variants


class Scores:
    """The metric of every cell, and of every pair if the metric has that.

    Attributes:
        cells: how cells are numbered.
        values: ``[pair or 1, cell]``; NaN until it is computed.
        computed: whether it is, of the same shape.
        rows_computed: whether the plain runs of a pair are ``[pair or 1]``.
        patched: the metric without any patch ``[pair or 1]``.
        source: the metric of the run that patches come from ``[pair or 1]``.
        per_pair: whether pairs have values of their own.
        complete: False if the sweep was interrupted.
    """

    def __init__(self, cells: Cells, pairs: int, per_pair: bool, dtype: torch.dtype) -> None:
        """Nothing is known yet of the cells of ``pairs`` pairs."""
        self.cells, self.per_pair, self.complete = cells, per_pair, True
        rows = pairs if per_pair else 1
        self.values = torch.full((rows, len(cells)), float("nan"), dtype=dtype)
        self.computed = torch.zeros(self.values.shape, dtype=torch.bool)
        self.rows_computed = torch.zeros(rows, dtype=torch.bool)
        self.patched = torch.full((rows,), float("nan"), dtype=dtype)
        self.source = self.patched.clone()

    def rows(self, pairs: slice) -> slice:
        """Where pairs have their values."""
        return pairs if self.per_pair else slice(0, 1)

    def places(self, variants: Variants, pairs: slice) -> tuple[Tensor, Tensor]:
        """Where the variants of some pairs have their values: rows and cells."""
        row = variants.pair.cpu() + pairs.start if self.per_pair else 0 * variants.pair.cpu()
        return row, variants.cell.cpu()


@dataclass
class Part:
    """Some pairs on their way up, with all their variants.

    Attributes:
        pairs: which.
        runs: their plain runs.
        forward: knows their variants.
        scores: where the metric goes.
        span: numbers of the cells that go up.
        budget: tokens of a group.
        room: where groups wait.
    """

    pairs: Pairs
    runs: PlainRuns
    forward: Forward
    scores: Scores
    span: slice
    budget: int
    room: Room

    def __post_init__(self) -> None:
        """No variants yet."""
        self.groups: list[Group] = []
        self.places: list[tuple[Tensor, Tensor]] = []  # of all variants in the scores
        self._held = 0  # tokens of the last group, which takes up more until it is full

    def step(self, layer: int, report: Callable[[float], None]) -> None:
        """Go through one block, and at the last one read the metric.

        Args:
            layer: number of the block.
            report: told which share of the step is done.
        """
        self.runs.advance()
        variants, last = self._find(layer), layer + 1 == self.scores.cells.sizes["layer"]
        own = variants.entry <= layer
        self._enter(variants[own])
        if last:
            self._read_runs()
        groups = self.groups
        for number, group in enumerate(groups):
            group.step(layer)
            if last:
                self._read(group)
                groups[number] = self.forward.group()  # nobody holds what was read
            elif number + 1 < len(groups):
                group.x = self.room.put(group, group.x)
            report((number + 1) / len(groups))
        if last:
            self.groups = []
        self._enter(variants[~own])
        if last:
            for group in self.groups:
                self._read(group)
        self.runs.release()
        self.forward.release()

    def _find(self, layer: int) -> Variants:
        """The variants that are patched in a layer."""
        found = find_variants(self.forward, self.scores.cells, self.pairs.numbers, layer)
        found = found[(found.cell >= self.span.start) & (found.cell < self.span.stop)]
        self.places.append(self.scores.places(found, self.pairs.numbers))
        return found

    def _enter(self, variants: Variants) -> None:
        """Add variants to the last group, until it is full, and to new ones."""
        length, whole = self.runs.patched.length, not self.pairs.metric.per_pair
        held = self._held if self.groups else 0
        for start, stop in spans(variants, length, self.budget, whole, held):
            if not held:
                self.groups.append(self.forward.group())
            if start < stop:
                self.groups[-1].add(variants[start:stop])
            group, held = self.groups[-1].variants, 0
            self._held = len(group) * length - int(group.start.sum())

    def _read_runs(self) -> None:
        """The metric of the plain runs, which all cells have that do not differ."""
        scores, metric, rows = self.scores, self.pairs.metric, self.scores.rows(self.pairs.numbers)
        source = self.runs.metric()
        if source is not None:
            scores.source[rows] = source.cpu().to(scores.source.dtype)
        self.final = self.runs.patched.final
        scores.patched[rows] = metric.of_run(self.final).cpu().to(scores.patched.dtype)
        scores.rows_computed[rows] = True
        scores.values[rows, self.span] = scores.patched[rows, None]
        scores.computed[rows, self.span] = True
        for place in self.places:
            scores.values[place], scores.computed[place] = float("nan"), False

    def _read(self, group: Group) -> None:
        """The metric of a group that is at the top."""
        rows, cells = self.scores.places(group.variants, self.pairs.numbers)
        read = self.pairs.metric.of_variants(group.variants, group.top(), self.final)
        for number, value in read:
            which = number.cpu()
            place = rows[which], cells[which]
            self.scores.values[place] = value.cpu().to(self.scores.values.dtype)
            self.scores.computed[place] = True
