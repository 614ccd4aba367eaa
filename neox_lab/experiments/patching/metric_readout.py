"""From residual streams at the top to the metric.

A ``LogitMetric`` reads a few logits at a few positions: the final layer norm is applied there, and
of the head's matrix only those rows are used. A text classifier is read at the last token. Any
other metric gets all logits of all pairs, those left of a variant's first changed position from
the patched run itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.experiments.metrics import BoundMetric, Metric, bind, evaluate
from neox_lab.experiments.patching.batched_forward import Top
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.experiments.patching.variants import Variants
from neox_lab.model.output_heads import answers_per_text

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.model.parts import Affine

TOKENS_AT_ONCE = 256
"""Tokens whose full logits are made in one product."""


class MetricReadout:
    """Reads a metric off the top.

    Attributes:
        positions: columns that are read ``[batch, read]``; None for all.
        per_pair: whether each pair has a value of its own.
    """

    positions: Tensor | None
    per_pair: bool

    def __init__(self, model: HookedModel, metric: Metric) -> None:
        """``metric`` is bound to the pairs, see ``metrics.bind``."""
        self.model, self.metric = model, metric
        self.head = model.output_head
        self._logits_of: tuple[Tensor, Tensor] | None = None

    def of_pairs(self, pairs: slice) -> MetricReadout:
        """Reads the metric of some pairs only, if pairs have values of their own."""
        return self

    def of_run(self, final: Tensor) -> Tensor:
        """The metric of a whole run ``[batch, pos, d_model]``: a scalar, or ``[batch]``."""
        return evaluate(self.metric, self._run_logits(final))

    def of_variants(
        self, variants: Variants, top: Top, final: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of variants and their values: one for each variant, or one for each cell.

        Args:
            variants: what went up together; all variants of a cell unless pairs have own values.
            top: what left the last block.
            final: residual stream of the patched run after the last block.
        """
        raise NotImplementedError

    def _logits(self, residual: Tensor) -> Tensor:
        return self.head(self.model.backbone.normalize(residual))

    def _run_logits(self, final: Tensor) -> Tensor:
        """All logits that the metric is given of a run; those of the last run asked about stay."""
        if self._logits_of is None or self._logits_of[0] is not final:
            self._logits_of = final, self._make_run_logits(final)
        return self._logits_of[1]

    def _make_run_logits(self, final: Tensor) -> Tensor:
        return self._logits(final)


class FewLogits(MetricReadout):
    """A metric that is a sum of a few logits."""

    per_pair = True
    metric: BoundMetric

    def __init__(
        self, model: HookedModel, metric: BoundMetric, head_map: Affine | None = None
    ) -> None:
        """See MetricReadout; ``head_map`` is the model's ``output_map`` if it is known."""
        super().__init__(model, metric)
        self.map = model.output_map if head_map is None else head_map
        self.positions, self.which = _distinct(metric.positions)
        weight, bias = self.map
        self.weight = weight[metric.outputs]  # [batch, term, d_model]
        self.bias = None if bias is None else bias[metric.outputs]

    def of_pairs(self, pairs: slice) -> FewLogits:
        """See MetricReadout."""
        outputs, positions = self.metric.outputs[pairs], self.metric.positions[pairs]
        some = replace(self.metric, outputs=outputs, positions=positions)
        return FewLogits(self.model, some, self.map)

    def of_run(self, final: Tensor) -> Tensor:
        """The metric of each pair ``[batch]``."""
        batch = torch.arange(len(final), device=final.device)
        assert self.positions is not None
        return self._values(final[batch[:, None], self.positions], batch)

    def of_variants(
        self, variants: Variants, top: Top, final: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See MetricReadout."""
        number = torch.arange(len(variants), device=variants.pair.device)
        yield number, self._values(top.x, variants.pair)

    def _values(self, residual: Tensor, pair: Tensor) -> Tensor:
        """Metric ``[variant]`` from residual streams ``[variant, read, d_model]``."""
        hidden = self.model.backbone.normalize(residual)
        variant = torch.arange(len(pair), device=pair.device)[:, None]
        logits = (hidden[variant, self.which[pair]] * self.weight[pair]).sum(dim=-1)
        if self.bias is not None:
            logits = logits + self.bias[pair]
        return (logits * self.metric.weights.to(logits.dtype)).sum(dim=-1)


class AllLogits(MetricReadout):
    """Any function of all logits."""

    positions = None
    per_pair = False

    def of_variants(
        self, variants: Variants, top: Top, final: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See MetricReadout."""
        assert top.variant is not None and top.pos is not None
        tokens = torch.bincount(top.variant, minlength=len(variants))
        _, counts = variants.cell.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        for first, last in _batches(counts.tolist(), tokens.tolist()):
            among = (top.variant >= first) & (top.variant < last)
            changed = self._logits(top.x[among])
            variant, pos = top.variant[among], top.pos[among]
            for cell in dict.fromkeys(variants.cell[first:last].tolist()):
                of_cell = variants.cell[variant] == cell
                logits = self._run_logits(final).clone()
                logits[variants.pair[variant[of_cell]], pos[of_cell]] = changed[of_cell]
                yield variant[of_cell][:1], evaluate(self.metric, logits)[None]


class ClassLogits(MetricReadout):
    """Any function of a text classifier's logits ``[batch, label]``."""

    per_pair = False
    positions: Tensor

    def __init__(self, model: HookedModel, metric: Metric, positions: Tensor) -> None:
        """``positions`` are the columns ``[batch, 1]`` at which classes are read."""
        super().__init__(model, metric)
        self.positions = positions

    def of_variants(
        self, variants: Variants, top: Top, final: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See MetricReadout."""
        changed = self._logits(top.x[:, 0])
        for cell in dict.fromkeys(variants.cell.tolist()):
            number = (variants.cell == cell).nonzero().flatten()
            logits = self._run_logits(final).clone()
            logits[variants.pair[number]] = changed[number]
            yield number[:1], evaluate(self.metric, logits)[None]

    def _make_run_logits(self, final: Tensor) -> Tensor:
        batch = torch.arange(len(final), device=final.device)
        return self._logits(final[batch, self.positions[:, 0]])


def readout(model: HookedModel, metric: Metric, prompts: Prompts) -> MetricReadout:
    """The way to read ``metric`` off runs of ``prompts``.

    Raises:
        InputError: the metric does not fit the model or the prompts.
        ConfigError: the model has no head.
        TokenizerError: a metric's token that is not exactly one token.
    """
    bound = bind(metric, model, prompts.arguments)
    if isinstance(bound, BoundMetric):
        return FewLogits(model, bound)
    if answers_per_text(model.head):
        last = model.last_token(prompts.ids, prompts.ids)
        if isinstance(last, int):
            last = torch.full((len(prompts.ids),), prompts.ids.shape[1] - 1).to(prompts.ids)
        return ClassLogits(model, bound, last[:, None])
    return AllLogits(model, bound)


def _distinct(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct columns ``[batch, read]``, and which of them each term reads ``[batch, term]``."""
    rows = [row.unique(return_inverse=True) for row in positions]
    most = max(len(found) for found, _ in rows)
    padded = [torch.cat((found, found[-1:].expand(most - len(found)))) for found, _ in rows]
    return torch.stack(padded), torch.stack([which for _, which in rows])


def _batches(counts: list[int], tokens: list[int]) -> Iterator[tuple[int, int]]:
    """Spans of variants: whole cells, together about ``TOKENS_AT_ONCE`` tokens.

    Args:
        counts: variants of each cell.
        tokens: tokens of each variant.
    """
    first = last = held = 0
    for count in counts:
        more = sum(tokens[last : last + count])
        if held and held + more > TOKENS_AT_ONCE:
            yield first, last
            first, held = last, 0
        last, held = last + count, held + more
    if last > first:
        yield first, last
