"""From residual streams at the top to the metric.

A ``LogitMetric`` reads a few logits at a few positions: the final layer norm is applied there, and
of the head's matrix only those rows are used. A text classifier is read at the last token. Any
other metric gets all logits of all pairs, those left of a row's first changed position from the
patched run itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from neox_lab.experiments.metrics import BoundMetric, Metric, evaluate
from neox_lab.experiments.patching.batched_forward import Top
from neox_lab.experiments.patching.variants import Rows
from neox_lab.model.output_heads import answers_per_text

TOKENS_AT_ONCE = 256
"""Tokens whose full logits are made in one product."""


class Reading:
    """Reads a metric off the top.

    Attributes:
        positions: columns that are read ``[batch, read]``; None for all.
        per_pair: whether each pair has a value of its own.
    """

    positions: Tensor | None
    per_pair: bool

    def __init__(self, model: Any, metric: Metric) -> None:
        """``metric`` is bound to the pairs, see ``metrics.bind``."""
        self.model, self.metric = model, metric
        self.head = model.output_head

    def of_run(self, final: Tensor) -> Tensor:
        """The metric of a whole run ``[batch, pos, d_model]``: a scalar, or ``[batch]``."""
        raise NotImplementedError

    def of_rows(self, rows: Rows, top: Top, final: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of rows and their values: one for each row, or one for each cell.

        Args:
            rows: rows of one climb.
            top: what it returned.
            final: residual stream of the patched run after the last block.
        """
        raise NotImplementedError

    def _logits(self, residual: Tensor) -> Tensor:
        return self.head(self.model.backbone.normalize(residual))


class FewLogits(Reading):
    """A metric that is a sum of a few logits."""

    per_pair = True
    metric: BoundMetric

    def __init__(self, model: Any, metric: BoundMetric) -> None:
        """See Reading."""
        super().__init__(model, metric)
        self.positions, self.which = _distinct(metric.positions)
        self.weight = self.head.weight[metric.outputs]  # [batch, term, d_model]
        self.bias = None if self.head.bias is None else self.head.bias[metric.outputs]

    def of_run(self, final: Tensor) -> Tensor:
        """The metric of each pair ``[batch]``."""
        batch = torch.arange(len(final), device=final.device)
        assert self.positions is not None
        return self._values(final[batch[:, None], self.positions], batch)

    def of_rows(self, rows: Rows, top: Top, final: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See Reading."""
        yield torch.arange(len(rows), device=rows.pair.device), self._values(top.x, rows.pair)

    def _values(self, residual: Tensor, pair: Tensor) -> Tensor:
        """Metric ``[row]`` from residual streams ``[row, read, d_model]``."""
        hidden = self.model.backbone.normalize(residual)
        row = torch.arange(len(pair), device=pair.device)[:, None]
        logits = (hidden[row, self.which[pair]] * self.weight[pair]).sum(dim=-1)  # [row, term]
        if self.bias is not None:
            logits = logits + self.bias[pair]
        return (logits * self.metric.weights.to(logits.dtype)).sum(dim=-1)


class AllLogits(Reading):
    """Any function of all logits."""

    positions = None
    per_pair = False

    def of_run(self, final: Tensor) -> Tensor:
        """The metric, a scalar."""
        self.logits = self._logits(final)
        return evaluate(self.metric, self.logits)

    def of_rows(self, rows: Rows, top: Top, final: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See Reading; all rows of a cell must be there."""
        assert top.row is not None and top.pos is not None
        tokens = torch.bincount(top.row, minlength=len(rows))
        _, counts = rows.cell.unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        for first, last in _batches(counts.tolist(), tokens.tolist()):
            here = (top.row >= first) & (top.row < last)
            made = self._logits(top.x[here])
            yield from self._of_cells(rows, first, last, top.row[here], top.pos[here], made)

    def _of_cells(
        self, rows: Rows, first: int, last: int, row: Tensor, pos: Tensor, made: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The cells of rows ``first`` to ``last - 1``, whose tokens have the logits ``made``."""
        for cell in dict.fromkeys(rows.cell[first:last].tolist()):
            here = rows.cell[row] == cell
            logits = self.logits.clone()
            logits[rows.pair[row[here]], pos[here]] = made[here]
            number = row[here][:1]
            yield number, evaluate(self.metric, logits)[None]


class ClassLogits(Reading):
    """Any function of a text classifier's logits ``[batch, label]``."""

    per_pair = False

    def __init__(self, model: Any, metric: Metric, positions: Tensor) -> None:
        """``positions`` are the columns ``[batch, 1]`` at which classes are read."""
        super().__init__(model, metric)
        self.positions = positions

    def of_run(self, final: Tensor) -> Tensor:
        """The metric, a scalar."""
        assert self.positions is not None
        batch = torch.arange(len(final), device=final.device)
        self.logits = self._logits(final[batch, self.positions[:, 0]])
        return evaluate(self.metric, self.logits)

    def of_rows(self, rows: Rows, top: Top, final: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See Reading; all rows of a cell must be there."""
        made = self._logits(top.x[:, 0])
        for cell in dict.fromkeys(rows.cell.tolist()):
            here = (rows.cell == cell).nonzero().flatten()
            logits = self.logits.clone()
            logits[rows.pair[here]] = made[here]
            yield here[:1], evaluate(self.metric, logits)[None]


def reading(model: Any, metric: Metric, ids: Tensor) -> Reading:
    """The way to read ``metric``, bound to pairs whose patched prompts are ``ids``.

    Raises:
        ConfigError: the model has no head.
    """
    if isinstance(metric, BoundMetric):
        return FewLogits(model, metric)
    if answers_per_text(model.head):
        last = model.last_token(ids, ids)
        if isinstance(last, int):
            last = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        return ClassLogits(model, metric, last[:, None])
    return AllLogits(model, metric)


def _distinct(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct columns ``[batch, read]``, and which of them each term reads ``[batch, term]``."""
    rows = [row.unique(return_inverse=True) for row in positions]
    most = max(len(found) for found, _ in rows)
    padded = [torch.cat((found, found[-1:].expand(most - len(found)))) for found, _ in rows]
    return torch.stack(padded), torch.stack([which for _, which in rows])


def _batches(counts: list[int], tokens: list[int]) -> Iterator[tuple[int, int]]:
    """Spans of rows: whole cells, together about ``TOKENS_AT_ONCE`` tokens.

    Args:
        counts: rows of each cell.
        tokens: tokens of each row.
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
