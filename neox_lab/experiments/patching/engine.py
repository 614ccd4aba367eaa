"""Rows in groups up the layers, values into cells: from a question to its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neox_lab.errors import HookError, InputError
from neox_lab.experiments.patching.batched_forward import Climb
from neox_lab.experiments.patching.metric_readout import Reading
from neox_lab.experiments.patching.patched_streams import Arrivals
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.variants import Rows, rows_of
from neox_lab.progress import Progress

Report = Callable[[int, int], None]
"""Told how much of the work is done, and how much there is."""

BUDGET = 2048
"""Tokens that go up the layers together. More of them need more memory and are not faster."""


@dataclass
class Watch:
    """How far work has got.

    Attributes:
        report: to be told.
        complete: False once the work was interrupted.
    """

    report: Report
    complete: bool = True


@contextmanager
def watched(wanted: bool | Report, unit: str) -> Iterator[Watch]:
    """A progress bar for the duration of a ``with`` block; interrupts end it quietly.

    Args:
        wanted: show the bar; or who is told instead, and may raise KeyboardInterrupt.
        unit: what is counted.
    """
    silent = callable(wanted) or not wanted
    with Progress(unit=unit, silent=silent, delay=1) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.done)

        watch = Watch(wanted if callable(wanted) else report)
        try:
            yield watch
        except KeyboardInterrupt:
            watch.complete = False


class Scores:
    """The metric of every cell, and of every pair if the metric has that.

    Attributes:
        values: ``[pair or 1, cell]``; NaN where nothing was computed yet.
        base: the metric without any patch, ``[pair or 1]``.
    """

    def __init__(self, pairs: int, cells: int, dtype: torch.dtype) -> None:
        self.values = torch.full((pairs, cells), float("nan"), dtype=dtype)
        self.base = torch.full((pairs,), float("nan"), dtype=dtype)


def fill(
    scores: Scores,
    first: int,
    reading: Reading,
    arrivals: Arrivals,
    sites: list[Site],
    places: Tensor,
    width: int,
    budget: int,
    progress: Report,
) -> None:
    """Compute the cells of some pairs.

    Args:
        scores: filled in place.
        first: number of the first of these pairs.
        reading: reads the metric.
        arrivals: the patched run and the source.
        sites: where to patch.
        places: columns that cells along pos patch ``[place, batch]``.
        width: columns of the whole prompts.
        budget: tokens that go up together.
        progress: told how much work is done, and how much there is.
    """
    base = arrivals.base
    here = slice(first, first + base.batch) if reading.per_pair else slice(0, 1)
    scores.base[here] = reading.of_run(base.final).cpu().to(scores.base.dtype)
    rows = rows_of(arrivals, sites, places, width, reading.positions)
    scores.values[here] = scores.base[here, None]
    pair = rows.pair.cpu() + first if reading.per_pair else torch.zeros_like(rows.pair).cpu()
    cell = rows.cell.cpu()
    scores.values[pair, cell] = float("nan")
    climb = Climb(arrivals, sites, reading.positions)
    work = (base.length - rows.start) * (len(base.layers) + 1 - rows.entry)
    total, done = int(work.sum()), 0
    for start, stop in groups(rows, base.length, budget, whole_cells=not reading.per_pair):
        group = rows[start:stop]
        for number, value in reading.of_rows(group, climb(group), base.final):
            at = number.cpu() + start
            scores.values[pair[at], cell[at]] = value.cpu().to(scores.values.dtype)
        done += int(work[start:stop].sum())
        progress(done, total)


def groups(rows: Rows, length: int, budget: int, whole_cells: bool) -> Iterator[tuple[int, int]]:
    """Spans of rows with at most ``budget`` tokens, or one row (or cell) if that has more.

    Args:
        rows: in the order in which they enter.
        length: columns of the run.
        budget: tokens.
        whole_cells: do not part the rows of a cell.
    """
    if not len(rows):
        return
    ends = (length - rows.start).cumsum(0).cpu()
    cuts = torch.arange(1, len(rows) + 1)
    if whole_cells:
        _, counts = rows.cell.cpu().unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        cuts = counts.cumsum(0)
    ends = ends[cuts - 1]  # tokens up to each place where a span may end
    start = taken = at = 0
    while at < len(cuts):
        after = int(torch.searchsorted(ends, taken + budget, right=True))
        at = max(after, at + 1)
        stop = int(cuts[at - 1])
        yield start, stop
        start, taken = stop, int(ends[at - 1])


def check_ready(model: Any) -> None:
    """Refuse models whose runs are not repeatable, and hooks that a sweep would not call.

    Raises:
        InputError: dropout is on.
        HookError: hooks are in place.
    """
    if model.training and any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules()):
        raise InputError("The model is in training mode: dropout would add noise. model.eval()")
    if model.hook_stack.placements:
        raise HookError(
            "Hooks are in place (with model.hooks(...)). A sweep computes only parts of the "
            "forward pass and would not call them; leave the with block first."
        )
