"""The runner: from a question to the metric of every cell, one block after the other.

source.runs            the plain runs of some pairs of prompts
Part                   takes them and their variants up, see ``climb``
find_variants          what can differ at all
BatchedForward         the residual streams of variants after each block; or, where functions are
HookedForward          spliced into the network, the same by ordinary runs with hooks
MetricReadout          the metric of each
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check, require_model
from neox_lab.errors import HookError, InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.batched_forward import BatchedForward
from neox_lab.experiments.patching.climb import Part, Scores
from neox_lab.experiments.patching.hooked_forward import LEAVING, HookedForward
from neox_lab.experiments.patching.metric_readout import readout
from neox_lab.experiments.patching.patched_streams import PatchedStreams
from neox_lab.experiments.patching.planning import Cells, Forward
from neox_lab.experiments.patching.progress_report import ProgressReport, watched
from neox_lab.experiments.patching.prompts import Positions, Prompts, patched_columns
from neox_lab.experiments.patching.runs import hooks_to_keep
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.sources import Pairs, PlainRuns, Source
from neox_lab.experiments.patching.spilling import Room
from neox_lab.experiments.patching.stretches import stretches
from neox_lab.experiments.splices import IN_NETWORK, check_splices

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

BUDGET = 2048
"""Tokens that go through a block together. More of them need more memory and are not faster."""

READ = 256
"""Tokens that are computed, more or less, while a disk brings the weights of one layer."""


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
            The metric of each cell. If interrupted, what is done, marked incomplete: cells are
            done when their variants are at the top, see ``stretches``.
        """
        model = self.question.model
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        batch = len(self.question.patched.ids)
        scores = Scores(self.cells, batch, self.metric.per_pair, dtype)
        layers, entries = self.cells.sizes["layer"], self._entries()
        tokens = batch * self._length()
        costs = (layers - entries).clamp(min=0) * tokens // 2
        climbs = stretches(model, costs, 2 * tokens * layers, self.budget * layers)
        work = [self._work(entries[span]) for span in climbs]
        total, before = sum(map(sum, work)), 0
        with watched(progress, "token") as watch:
            for span, of_blocks in zip(climbs, work, strict=True):
                self.question.source.start()
                parts = self._parts(scores, span)
                for layer in watch.climb(layers):
                    self.question.source.advance()
                    share = of_blocks[layer] / len(parts)
                    for number, part in enumerate(parts):
                        done = before + int(number * share)

                        def report(own: float, done: int = done, share: float = share) -> None:
                            watch.report(done + int(own * share), total)

                        part.step(layer, report)
                    before += of_blocks[layer]
        scores.complete = watch.complete
        return scores

    def _entries(self) -> Tensor:
        """The first block that the variants of each cell go through ``[cell]``."""
        entries, counts = [], []
        for site in self.question.sites:
            layers = site.layers(self.cells.sizes["layer"])
            entries += [max(0, site.entry(layer)) for layer in layers]
            counts += [math.prod(self.cells.shape(site)) // len(layers)] * len(layers)
        return torch.tensor(entries).repeat_interleave(torch.tensor(counts))

    def _work(self, entries: Tensor) -> list[int]:
        """For each block about how many tokens go through it, or could while it is read."""
        tokens = len(self.question.patched.ids) * self._length()
        least = 0 if self.question.model.backbone.store is None else READ
        return [
            max(least, 2 * tokens + int((entries <= layer).sum()) * tokens // 2)
            for layer in range(self.cells.sizes["layer"])
        ]

    def _parts(self, scores: Scores, span: slice) -> list[Part]:
        """The pairs, in parts whose plain runs go through a block at once."""
        model, patched = self.question.model, self.question.patched
        room = Room(model.device)
        batch, length = len(patched.ids), self._length()
        step = max(1, self.budget // (4 * length)) if self.metric.per_pair else batch
        hooks = list(dict.fromkeys(site.hook for site in self.question.sites))
        kept = [*hooks, LEAVING] if self.through_hooks else hooks_to_keep(hooks)
        parts = []
        for first in range(0, batch, step):
            numbers = slice(first, min(first + step, batch))
            prompts, metric = patched.part(numbers, length), self.metric.of_pairs(numbers)
            pairs = Pairs(model, numbers, prompts, hooks, kept, metric)
            runs = self.question.source.runs(pairs)
            forward = self._forward(pairs, runs)
            parts.append(Part(pairs, runs, forward, scores, span, self.budget, room))
        return parts

    def _length(self) -> int:
        """Columns that have to be run: nothing right of what is read can matter to the network."""
        read, rotary = self.metric.positions, self.question.model.backbone.rotary
        whole = self.question.patched.ids.shape[1]
        if read is None or self.through_hooks:
            return whole
        needed = int(read.max()) + 1
        return needed if rotary.regime(needed) == rotary.regime(whole) else whole

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
