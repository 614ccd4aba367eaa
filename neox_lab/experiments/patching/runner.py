"""The runner: from a question to the metric of every cell, some pairs of prompts at a time.

source.runs            the plain runs of the pairs
find_variants          what can differ at all
groups                 as many variants as may go up together
BatchedForward         their residual streams after the last block; or, where functions are
HookedForward          spliced into the network, the same by ordinary runs with hooks
MetricReadout          the metric of each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from neox_lab.checks import COUNT, check, require_model
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.batched_forward import BatchedForward
from neox_lab.experiments.patching.hooked_forward import LEAVING, HookedForward
from neox_lab.experiments.patching.metric_readout import readout
from neox_lab.experiments.patching.patched_streams import PatchedStreams
from neox_lab.experiments.patching.planning import Cells, Forward, find_variants, groups
from neox_lab.experiments.patching.progress_report import ProgressReport, watched
from neox_lab.experiments.patching.prompts import Positions, Prompts, patched_columns
from neox_lab.experiments.patching.runs import hooks_to_keep
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.sources import Pairs, PlainRuns, Source
from neox_lab.experiments.splices import IN_NETWORK, check_splices

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

BUDGET = 2048
"""Tokens that go up the layers together. More of them need more memory and are not faster."""


@dataclass(frozen=True)
class Question:
    """What a sweep asks.

    Attributes:
        model: the model.
        patched: the prompts that get patched.
        source: where patches come from.
        metric: what is read.
        sites: where to patch.
        positions: named positions, or None for every one; pairs are ``(source, patched)``.
    """

    model: HookedModel
    patched: Prompts
    source: Source
    metric: Metric
    sites: Sequence[Site]
    positions: Positions | None = None


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


class Runner:
    """Computes the answer to a question."""

    def __init__(self, question: Question, budget: int = BUDGET) -> None:
        """Bind the metric and number the cells; nothing is run yet.

        Args:
            question: what is asked.
            budget: tokens that are computed together.

        Raises:
            InputError: the metric does not fit, named positions that a text does not have, or a
                budget below one token.
        """
        self.question, self.budget = question, check("budget", budget, COUNT, InputError)
        model, patched = question.model, question.patched
        self.metric = readout(model, question.metric, patched)
        batch, width = patched.ids.shape
        columns = torch.arange(width, device=patched.ids.device)[:, None].repeat(1, batch)
        if question.positions is not None:
            columns = patched_columns(question.positions, patched)
        sizes = {
            "layer": model.config.num_hidden_layers,
            "pos": len(columns),
            "head": model.config.num_attention_heads,
            "source_pos": width,
            **{site.axes[-1]: len(site.entries) for site in question.sites if site.entries},
        }
        self.cells = Cells(question.sites, sizes, columns)
        own_hooks = any(site.effect is None for site in question.sites)
        self.through_hooks = own_hooks or bool(model.hook_stack.spliced)

    @torch.no_grad()
    def run(self, progress: bool | ProgressReport) -> Scores:
        """Compute every cell.

        Args:
            progress: show a bar; or who is told instead, and may raise KeyboardInterrupt.

        Returns:
            The metric of each cell. If interrupted, what is done, marked incomplete.
        """
        model, patched = self.question.model, self.question.patched
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        batch, length = len(patched.ids), self._length()
        scores = Scores(self.cells, batch, self.metric.per_pair, dtype)
        step = max(1, self.budget // (4 * length)) if self.metric.per_pair else batch
        starts = range(0, batch, step)
        hooks = list(dict.fromkeys(site.hook for site in self.question.sites))
        kept = [*hooks, LEAVING] if self.through_hooks else hooks_to_keep(hooks)
        with watched(progress, "token") as watch:
            for turn, first in enumerate(starts):
                numbers = slice(first, min(first + step, batch))
                part, metric = patched.part(numbers, length), self.metric.of_pairs(numbers)

                def report(done: int, total: int, turn: int = turn) -> None:
                    watch.report(turn * total + done, total * len(starts))

                self._fill(scores, Pairs(model, numbers, part, hooks, kept, metric), report)
        scores.complete = watch.complete
        return scores

    def _length(self) -> int:
        """Columns that have to be run: nothing right of what is read can matter to the network."""
        read, rotary = self.metric.positions, self.question.model.backbone.rotary
        whole = self.question.patched.ids.shape[1]
        if read is None or self.through_hooks:
            return whole
        needed = int(read.max()) + 1
        return needed if rotary.regime(needed) == rotary.regime(whole) else whole

    def _fill(self, scores: Scores, pairs: Pairs, report: ProgressReport) -> None:
        """Compute the cells of some pairs."""
        runs = self.question.source.runs(pairs)
        rows = scores.rows(pairs.numbers)
        if runs.metric is not None:
            scores.source[rows] = runs.metric.cpu().to(scores.source.dtype)
        final = runs.patched.final
        scores.patched[rows] = pairs.metric.of_run(final).cpu().to(scores.patched.dtype)
        scores.rows_computed[rows] = True
        self._fill_variants(scores, pairs, runs, report)

    def _fill_variants(
        self, scores: Scores, pairs: Pairs, runs: PlainRuns, report: ProgressReport
    ) -> None:
        """Compute the cells that differ from the patched run."""
        run, metric = runs.patched, pairs.metric
        forward = self._forward(pairs, runs)
        variants = find_variants(forward, self.cells, pairs.numbers, len(run.blocks))
        row, cell = torch.zeros_like(variants.pair).cpu(), variants.cell.cpu()
        if metric.per_pair:
            row = variants.pair.cpu() + pairs.numbers.start
        # All other cells are those of the run without a patch.
        rows = scores.rows(pairs.numbers)
        scores.values[rows] = scores.patched[rows, None]
        scores.computed[rows] = True
        scores.values[row, cell], scores.computed[row, cell] = float("nan"), False
        work = (run.length - variants.start) * (len(run.blocks) + 1 - variants.entry)
        total, done = int(work.sum()), 0
        whole_cells = not metric.per_pair
        for start, stop in groups(variants, run.length, self.budget, whole_cells):
            group = variants[start:stop]
            for number, value in metric.of_variants(group, forward(group), run.final):
                which = number.cpu() + start
                scores.values[row[which], cell[which]] = value.cpu().to(scores.values.dtype)
                scores.computed[row[which], cell[which]] = True
            done += int(work[start:stop].sum())
            report(done, total)

    def _forward(self, pairs: Pairs, runs: PlainRuns) -> Forward:
        """What runs the variants of some pairs."""
        run, activations, sites = runs.patched, runs.activations, self.question.sites
        reads = pairs.metric.positions
        if self.through_hooks:
            return HookedForward(pairs.model, pairs.prompts, run, activations, sites, reads)
        return BatchedForward(PatchedStreams(run, activations, runs.may_differ), sites, reads)


def check_ready(model: HookedModel) -> None:
    """Refuse models whose runs are not repeatable, and hooks that a sweep would not call.

    Raises:
        InputError: dropout is on.
        HookError: hooks are in place, a function is spliced in above the last block, or there are
            PyTorch hooks or modules that a sweep would skip.
    """
    require_model(model)
    if not all(placement.added for placement in model.hook_stack.placements):
        raise HookError(
            "Hooks are in place (with model.hooks(...)). A sweep computes only parts of the "
            "forward pass and would not call them; leave the with block first."
        )
    check_splices(
        model, IN_NETWORK, "A sweep reads its metric from the residual stream after the last block."
    )
    check_parts(model)
