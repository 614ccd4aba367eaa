"""Sources: where the patches come from.

    SourcePrompts       a plain run of other prompts, column by column
    AlignedPrompts      a plain run of other prompts, at named positions
    CachedSource        an ActivationCache of any run
    GivenActivations    activations that somebody computed, such as means or zeros (``ablation``)

Each begins, for some pairs, the plain runs: of the prompts that get patched, and whatever it takes
to know its own activations by hook and layer. They go up with the variants, a block at a time. Each
says what the metric is where its activations come from, if it can know that, and in which columns
they can differ from those of the patched run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    Stream,
    first_columns,
    hook_name,
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
        streams: what has to be advanced, a block at a time.
        activations: the source's, which are patched in; as many columns as ``patched``.
        may_differ: False where patches are known to change nothing that is read ``[batch, pos]``.
        metric: says at the top what the metric of the source run is, a scalar or ``[batch]``; None
            if nobody knows.
    """

    patched: PlainRun
    streams: tuple[Stream, ...]
    activations: Activations
    may_differ: Tensor
    metric: Callable[[], Tensor | None]

    def advance(self) -> None:
        """Run the next block."""
        for stream in self.streams:
            stream.advance()

    def release(self) -> None:
        """Keep only residual streams, until the next block is run."""
        self.patched.release()
        for stream in self.streams:
            stream.release()


class Source:
    """Where patches come from.

    Attributes:
        prompts: what the source ran on, if that is known.
    """

    prompts: Prompts | None = None

    def start(self) -> None:
        """A climb begins at the first block."""

    def advance(self) -> None:
        """Run the next block of what all pairs share, if there is anything."""

    def runs(self, pairs: Pairs) -> PlainRuns:
        """The patched run, and what is patched into it; no block is run yet."""
        stream = Stream(pairs.model, pairs.prompts, pairs.kept)
        patched = PlainRun(pairs.model, pairs.prompts, stream)
        own, activations, metric = self.begin(pairs)
        may = may_differ(None, pairs.prompts, pairs.metric.positions)
        return PlainRuns(patched, (stream, *own), activations, may, metric)

    def begin(self, pairs: Pairs) -> Own:
        """What the source runs, its activations and its metric, all for some pairs."""
        raise NotImplementedError


Own = tuple[Sequence[Stream], Activations, Callable[[], Tensor | None]]
"""What a source runs itself, its activations, and its metric at the top."""


class SourcePrompts(Source):
    """Other prompts, of the same length and padding: both are run as one batch."""

    def __init__(self, prompts: Prompts) -> None:
        """Nothing is run yet."""
        self.prompts: Prompts = prompts

    def runs(self, pairs: Pairs) -> PlainRuns:
        """See Source."""
        patched, count = pairs.prompts, len(pairs.prompts.ids)
        source = self.prompts.part(pairs.numbers, patched.ids.shape[1])
        mask = None
        if patched.mask is not None or source.mask is not None:
            mask = torch.cat((patched.own, source.own)).long()
        both = Prompts(torch.cat((patched.ids, source.ids)), mask)
        stream = Stream(pairs.model, both, [*pairs.kept, *pairs.hooks])
        return PlainRuns(
            PlainRun(pairs.model, patched, stream),
            (stream,),
            lambda hook, layer: stream(hook, layer)[count:],
            may_differ(source, patched, pairs.metric.positions),
            lambda: pairs.metric.of_run(stream.leaving[count:]),
        )


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

    def begin(self, pairs: Pairs) -> Own:
        """See Source."""
        prompts = self.prompts.part(pairs.numbers, self.prompts.ids.shape[1])
        found = Stream(pairs.model, prompts, pairs.hooks)
        columns = self.columns[pairs.numbers, : pairs.prompts.ids.shape[1]]
        batch = torch.arange(len(columns), device=columns.device)[:, None]

        def activations(hook: str, layer: int) -> Tensor:
            if hook == PATTERN:  # never patched from other columns, see ``sites.refuse_moved``
                return first_columns(found(hook, layer), hook, columns.shape[1])
            source = found(hook, layer)
            return source[batch, columns.clamp(max=source.shape[1] - 1)]

        metric = self.metric.of_pairs(pairs.numbers)
        return (found,), activations, lambda: metric.of_run(found.leaving)


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

    def begin(self, pairs: Pairs) -> Own:
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

        return (), activations, lambda: self._metric(pairs)

    def _metric(self, pairs: Pairs) -> Tensor | None:
        name = f"blocks.{pairs.model.config.num_hidden_layers - 1}.hook_resid_post"
        if name not in self.cache:
            return None
        final = self.cache[name]
        if final.shape[1] != self.width or len(final) not in (1, self.batch):
            return None
        final = final.to(pairs.prompts.ids.device).expand(self.batch, -1, -1)
        return pairs.metric.of_run(final[pairs.numbers])


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

    def __init__(self, activations: Activations, texts: Stream | None = None) -> None:
        """``activations`` of all pairs and columns, asked for layer by layer.

        Args:
            activations: the activations.
            texts: a run that they are made of, which goes up with the others.
        """
        self.activations, self.texts = activations, texts

    def start(self) -> None:
        """See Source."""
        if self.texts is not None:
            self.texts.start()

    def advance(self) -> None:
        """See Source."""
        if self.texts is not None:
            self.texts.advance()

    def begin(self, pairs: Pairs) -> Own:
        """See Source; nobody knows the metric."""
        length = pairs.prompts.ids.shape[1]

        def activations(hook: str, layer: int) -> Tensor:
            return first_columns(self.activations(hook, layer)[pairs.numbers], hook, length)

        return (), activations, lambda: None
