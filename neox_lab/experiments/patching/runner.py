"""One sweep on its way: some pairs at a time, from prompts to a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.metrics import BoundMetric, Metric, bind, metric_name
from neox_lab.experiments.patching.engine import Report, Scores, fill, watched
from neox_lab.experiments.patching.labels import axis_labels
from neox_lab.experiments.patching.metric_readout import Reading, reading
from neox_lab.experiments.patching.patched_streams import Arrivals
from neox_lab.experiments.patching.prompts import (
    Positions,
    Prompts,
    are_moved,
    may_differ,
    place_columns,
)
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.patching.runs import (
    BaseRun,
    Source,
    activations,
    both_runs,
    needed_hooks,
    plain_run,
)
from neox_lab.experiments.patching.sites import Site, refuse_moved
from neox_lab.experiments.patching.variants import cell_counts
from neox_lab.hooks.cache import ActivationCache


class Question:
    """One sweep on its way."""

    def __init__(
        self,
        model: Any,
        patched: Prompts,
        metric: Metric,
        sites: list[Site],
        positions: Positions | None,
        budget: int,
    ) -> None:
        """Bind the metric and number the cells; nothing is run yet.

        Args:
            model: the model.
            patched: the prompts that get patched.
            metric: what is read.
            sites: where to patch.
            positions: named positions, or None for every one.
            budget: tokens that are computed together.

        Raises:
            InputError: the metric does not fit, or a budget below one token.
        """
        if budget < 1:
            raise InputError(f"budget={budget!r}; expected a number of tokens, at least 1.")
        self.model, self.patched, self.sites, self.budget = model, patched, sites, budget
        self.network = model.backbone
        self.positions = positions
        self.metric = metric
        self.bound = bind(metric, model, patched.prepared())
        self.read = reading(model, self.bound, patched.ids)
        batch, self.width = patched.ids.shape
        self.places = torch.arange(self.width, device=patched.ids.device)[:, None].repeat(1, batch)
        if positions is not None:
            self.places, _ = place_columns(positions, None, patched)
        layers, heads = len(self.network.layers), model.config.num_attention_heads
        cells = sum(
            torch.Size(cell_counts(s, layers, len(self.places), heads, self.width)).numel()
            for s in sites
        )
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        self.scores = Scores(batch if self.read.per_pair else 1, cells, dtype)
        self.other_scores = torch.full_like(self.scores.base, float("nan"))
        self.complete = True
        self._report: Report = lambda done, total: None

    @contextmanager
    def bar(self, wanted: bool | Report) -> Iterator[None]:
        """A progress bar for the duration of a ``with`` block; interrupts end it quietly."""
        with watched(wanted, "token") as watch:
            self._report = watch.report
            yield
        self.complete = watch.complete

    @torch.no_grad()
    def patch_from(self, other: Prompts | ActivationCache | Source) -> None:
        """Compute every cell, some pairs at a time."""
        batch = len(self.patched.ids)
        length = self._length(other)
        step = max(1, self.budget // (4 * length)) if self.read.per_pair else batch
        starts = range(0, batch, step)
        for turn, first in enumerate(starts):
            pairs = slice(first, min(first + step, batch))
            read = self._reading_of(pairs)
            part = self.patched.part(pairs, length)
            base, source, twin = self._runs(other, pairs, part, read)

            def report(done: int, total: int, turn: int = turn) -> None:
                self._report(turn * total + done, total * len(starts))

            fill(
                self.scores,
                first,
                read,
                Arrivals(base, source, may_differ(twin, part, read.positions)),
                self.sites,
                self.places[:, pairs],
                self.width,
                self.budget,
                report,
            )

    def _length(self, other: Prompts | ActivationCache | Source) -> int:
        """Columns that have to be run: nothing right of what is read can matter."""
        read = self.read.positions
        if read is None or self.network.rotary.depends_on_length:
            return self.width
        return int(read.max()) + 1

    def _reading_of(self, pairs: slice) -> Reading:
        if not isinstance(self.bound, BoundMetric):
            return self.read
        bound = self.bound
        part = replace(bound, outputs=bound.outputs[pairs], positions=bound.positions[pairs])
        return reading(self.model, part, self.patched.ids[pairs])

    def _runs(
        self,
        other: Prompts | ActivationCache | Source,
        pairs: slice,
        part: Prompts,
        read: Reading,
    ) -> tuple[BaseRun, Source, Prompts | None]:
        """For some pairs the run that gets patched, where patches come from, and their prompts.

        No prompts are given if columns do not correspond.
        """
        length = part.ids.shape[1]
        hooks = needed_hooks(self.sites)
        if isinstance(other, Prompts) and self.positions is None:
            twin = other.part(pairs, length)
            base, final, source = both_runs(self.network, part, twin, hooks)
            self._keep_other(pairs, read, final)
            return base, source, twin
        base = plain_run(self.network, part)
        if isinstance(other, ActivationCache):
            self._read_cache(other, pairs, read)
            return base, _from_cache(other, self.patched, pairs, length), None
        if not isinstance(other, Prompts):
            return base, (lambda hook, layer: other(hook, layer)[pairs, :length]), None
        whole = other.part(pairs, other.ids.shape[1])
        final, source = activations(self.network, whole.ids, whole.mask, hooks)
        metric = bind(self.metric, self.model, other.prepared())
        if isinstance(metric, BoundMetric):
            metric = replace(
                metric, outputs=metric.outputs[pairs], positions=metric.positions[pairs]
            )
        self._keep_other(pairs, reading(self.model, metric, whole.ids), final)
        assert self.positions is not None
        _, twins = place_columns(self.positions, other, self.patched)
        assert twins is not None
        if are_moved(other, self.patched, twins):
            refuse_moved(self.sites)
        return base, _at_twins(source, twins[pairs, :length]), None

    def _keep_other(self, pairs: slice, read: Reading, final: Tensor) -> None:
        here = pairs if self.read.per_pair else slice(0, 1)
        if not self.read.per_pair:
            # AllLogits remembers the run it was asked about last, which must be the patched one.
            read = reading(self.model, self.bound, self.patched.ids)
        self.other_scores[here] = read.of_run(final).cpu().to(self.other_scores.dtype)

    def _read_cache(self, cache: ActivationCache, pairs: slice, read: Reading) -> None:
        """The metric of the run a cache was made in, if the cache knows its end."""
        name = f"blocks.{len(self.network.layers) - 1}.hook_resid_post"
        if name not in cache:
            return
        final = cache[name]
        batch = len(self.patched.ids)
        if final.shape[1] == self.width and len(final) in (1, batch):
            self._keep_other(pairs, read, final.expand(batch, -1, -1)[pairs])

    def base_value(self) -> float:
        """The metric without any patch."""
        return float(self.scores.base.nanmean())

    @property
    def other_value(self) -> float:
        """The metric of the run that patches come from."""
        return float(self.other_scores.nanmean())

    def result(self, direction: str, clean: float, corrupted: float, other: Any) -> PatchResult:
        """What was found."""
        parts, first = [], 0
        layers, heads = len(self.network.layers), self.model.config.num_attention_heads
        axes = self.sites[0].axes
        for site in self.sites:
            shape = cell_counts(site, layers, len(self.places), heads, self.width)
            size = torch.Size(shape).numel()
            part = self.scores.values[:, first : first + size].reshape(-1, *shape)
            order = [0, *(1 + site.axes.index(axis) for axis in axes)]
            parts.append(part.permute(order))
            first += size
        samples = torch.stack(parts, dim=1) if len(parts) > 1 else parts[0].contiguous()
        axes = ("site", *axes) if len(parts) > 1 else axes
        names = tuple(site.name for site in self.sites)
        sides = [self.patched, other] if isinstance(other, Prompts) else [self.patched]
        if direction == "denoising":
            sides.reverse()  # clean first
        labels = axis_labels(self.model, sides, self.positions)
        labels |= {"site": list(names)}
        return PatchResult(
            values=samples.nanmean(dim=0),
            axes=axes,
            clean=clean,
            corrupted=corrupted,
            site=names,
            metric=metric_name(self.metric),
            direction=direction,
            labels={
                axis: labels[axis][:size]
                for axis, size in zip(axes, samples.shape[1:], strict=True)
            },
            samples=samples if self.read.per_pair else None,
            base_samples=self.scores.base.clone() if self.read.per_pair else None,
            complete=self.complete,
        )


def _from_cache(cache: ActivationCache, patched: Prompts, pairs: slice, length: int) -> Source:
    """Activations of a cache, for some pairs, cut to ``length`` columns."""
    batch, width = patched.ids.shape

    def source(hook: str, layer: int) -> Tensor:
        found = cache[f"blocks.{layer}.{hook}"]
        pattern = hook == "attn.hook_pattern"
        columns = found.shape[2] if pattern else found.shape[1]
        if len(found) not in (1, batch) or columns != width:
            raise InputError(
                f"The cache has {len(found)} rows of {columns} positions at {hook!r}; the prompts "
                f"that get patched are {batch} rows of {width}."
            )
        found = found.to(patched.ids.device).expand(batch, *found.shape[1:])[pairs]
        return found[:, :, :length, :length] if pattern else found[:, :length]

    return source


def _at_twins(source: Source, twins: Tensor) -> Source:
    """Activations of other prompts, put at the columns they are patched into."""
    rows = torch.arange(len(twins), device=twins.device)[:, None]

    def at(hook: str, layer: int) -> Tensor:
        found = source(hook, layer)
        if hook == "attn.hook_pattern":
            length = twins.shape[1]
            return found[:, :, :length, :length]
        return found[rows, twins.clamp(max=found.shape[1] - 1)]

    return at
