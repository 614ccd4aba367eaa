"""Sources: where the patches come from.

    SourcePrompts       a plain run of other prompts, column by column
    AlignedPrompts      a plain run of other prompts, at named positions
    CachedSource        an ActivationCache of any run
    GivenActivations    activations that somebody computed, such as means or zeros (``ablation``)

Each makes, for some pairs, the plain runs: of the prompts that get patched, and whatever it takes
to know its own activations by hook and layer. Each says what the metric is where its activations
come from, if it can know that, and in which columns they can differ from those of the patched run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.metric_readout import MetricReadout, readout
from neox_lab.experiments.patching.prompts import Prompts, may_differ
from neox_lab.experiments.patching.runs import (
    PATTERN,
    Activations,
    PlainRun,
    both_runs,
    first_columns,
    hook_name,
    plain_run,
    run_and_keep,
)

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.hooks.cache import ActivationCache


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a sweep.

    Attributes:
        model: the model.
        numbers: which pairs of the sweep.
        prompts: the patched prompts, as many columns as can matter.
        hooks: what is patched, relative to a block or by full names.
        kept: what has to be kept of the patched run.
        metric: reads the metric of these pairs.
    """

    model: HookedModel
    numbers: slice
    prompts: Prompts
    hooks: Sequence[str]
    kept: Sequence[str]
    metric: MetricReadout


class PlainRuns(NamedTuple):
    """What patching starts from.

    Attributes:
        patched: the run that gets patched.
        activations: the source's, which are patched in; as many columns as ``patched``.
        may_differ: False where patches are known to change nothing that is read ``[batch, pos]``.
        metric: of the source run, a scalar or ``[batch]``; None if nobody knows.
    """

    patched: PlainRun
    activations: Activations
    may_differ: Tensor
    metric: Tensor | None


class Source:
    """Where patches come from.

    Attributes:
        prompts: what the source ran on, if that is known.
    """

    prompts: Prompts | None = None

    def runs(self, pairs: Pairs) -> PlainRuns:
        """The patched run, and what is patched into it."""
        patched = plain_run(pairs.model, pairs.prompts, pairs.kept)
        activations, metric = self.run(pairs)
        may = may_differ(None, pairs.prompts, pairs.metric.positions)
        return PlainRuns(patched, activations, may, metric)

    def run(self, pairs: Pairs) -> tuple[Activations, Tensor | None]:
        """The source's activations and its metric, both for some pairs."""
        raise NotImplementedError


class SourcePrompts(Source):
    """Other prompts, of the same length and padding: both are run as one batch."""

    def __init__(self, prompts: Prompts) -> None:
        """Nothing is run yet."""
        self.prompts: Prompts = prompts

    def runs(self, pairs: Pairs) -> PlainRuns:
        """See Source."""
        source = self.prompts.part(pairs.numbers, pairs.prompts.ids.shape[1])
        kept = [*pairs.kept, *pairs.hooks]
        patched, final, activations = both_runs(pairs.model, pairs.prompts, source, kept)
        may = may_differ(source, pairs.prompts, pairs.metric.positions)
        return PlainRuns(patched, activations, may, pairs.metric.of_run(final))


class AlignedPrompts(Source):
    """Other prompts of any length, with columns that correspond to those of the patched ones."""

    def __init__(
        self, model: HookedModel, prompts: Prompts, columns: Tensor, metric: Metric
    ) -> None:
        """Nothing is run yet.

        Args:
            model: the model.
            prompts: the source's.
            columns: for each column of the patched prompts the one of ``prompts`` that is patched
                in ``[batch, pos]``.
            metric: also read of the source, at its own positions.
        """
        self.prompts: Prompts = prompts
        self.columns, self.metric = columns, readout(model, metric, prompts)

    def run(self, pairs: Pairs) -> tuple[Activations, Tensor | None]:
        """See Source."""
        prompts = self.prompts.part(pairs.numbers, self.prompts.ids.shape[1])
        final, found = run_and_keep(pairs.model, prompts, pairs.hooks)
        columns = self.columns[pairs.numbers, : pairs.prompts.ids.shape[1]]
        batch = torch.arange(len(columns), device=columns.device)[:, None]

        def activations(hook: str, layer: int) -> Tensor:
            if hook == PATTERN:  # never patched from other columns, see ``sites.refuse_moved``
                return first_columns(found(hook, layer), hook, columns.shape[1])
            source = found(hook, layer)
            return source[batch, columns.clamp(max=source.shape[1] - 1)]

        return activations, self.metric.of_pairs(pairs.numbers).of_run(final)


class CachedSource(Source):
    """A cache of any run with as many rows as there are pairs, or one, and as many positions."""

    def __init__(self, cache: ActivationCache, patched: Prompts) -> None:
        """``patched`` are all prompts that get patched.

        Raises:
            InputError: the cache's run was padded in other places, see ``check_padding``.
        """
        check_padding(cache, patched)
        self.cache = cache
        self.batch, self.width = patched.ids.shape

    def run(self, pairs: Pairs) -> tuple[Activations, Tensor | None]:
        """See Source; the metric is known if the cache has the last residual stream.

        Raises:
            InputError: the cache has other rows or positions.
            HookNameError: the cache does not have what is patched.
        """
        length = pairs.prompts.ids.shape[1]

        def activations(hook: str, layer: int) -> Tensor:
            found = self.cache[hook_name(hook, layer)]
            columns = found.shape[2 if hook == PATTERN else 1]
            if len(found) not in (1, self.batch) or columns != self.width:
                raise InputError(
                    f"The cache has {len(found)} rows of {columns} positions at {hook!r}; the "
                    f"prompts that get patched are {self.batch} rows of {self.width}."
                )
            found = found.to(pairs.prompts.ids.device).expand(self.batch, *found.shape[1:])
            return first_columns(found[pairs.numbers], hook, length)

        return activations, self._metric(pairs)

    def _metric(self, pairs: Pairs) -> Tensor | None:
        name = f"blocks.{pairs.model.config.num_hidden_layers - 1}.hook_resid_post"
        if name not in self.cache:
            return None
        final = self.cache[name]
        if final.shape[1] != self.width or len(final) not in (1, self.batch):
            return None
        return pairs.metric.of_run(final.expand(self.batch, -1, -1)[pairs.numbers])


def check_padding(cache: ActivationCache, patched: Prompts) -> None:
    """Raise if padding of a cache's run would be patched into text.

    Raises:
        InputError: it would. ``run_with_cache`` pads a list of texts as the tokenizer does, mostly
            on the right, and questions pad it on the left.
    """
    mask = cache.attention_mask
    if mask is None or mask.dim() != 2 or mask.shape[1] != patched.ids.shape[1]:
        return
    padded = patched.own & (mask.to(patched.own.device) == 0)
    if len(mask) in (1, len(patched.own)) and bool(padded.any()):
        row, column = padded.nonzero()[0].tolist()
        raise InputError(
            f"Position {column} of text {row} is padding in the run of the cache and text in the "
            "prompts that get patched. Run both with the same ids and attention_mask: "
            "run_with_cache(ids, attention_mask=mask), and {'input_ids': ids, 'attention_mask': "
            "mask} here."
        )


class GivenActivations(Source):
    """Activations from elsewhere, of as many rows and positions as the patched prompts."""

    def __init__(self, activations: Activations) -> None:
        """``activations`` of all pairs and columns."""
        self.activations = activations

    def run(self, pairs: Pairs) -> tuple[Activations, Tensor | None]:
        """See Source; nobody knows the metric."""
        length = pairs.prompts.ids.shape[1]

        def activations(hook: str, layer: int) -> Tensor:
            return first_columns(self.activations(hook, layer)[pairs.numbers], hook, length)

        return activations, None
