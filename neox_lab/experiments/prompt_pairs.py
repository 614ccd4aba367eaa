"""A clean and a corrupted batch that can be compared, position by position or where named."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.metrics import BoundMetric, Metric, bind, evaluate
from neox_lab.experiments.parts_alone import check_parts
from neox_lab.experiments.patching.prompts import (
    Positions,
    Prompts,
    PromptsLike,
    are_moved,
    check_pairs,
    patched_columns,
    read_prompts,
    source_columns,
)
from neox_lab.experiments.prompt_doctor.inside import warn_of_prompts
from neox_lab.model.output_heads import answers_per_text

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.model.parts import Affine


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch, its model, and a metric that reads it.

    Attributes:
        model: any class with a head.
        prompts: tokens and padding.
        metric: bound to this batch.
    """

    model: HookedModel
    prompts: Prompts
    metric: Metric

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of ``forward``."""
        return self.prompts.arguments

    @property
    def ids(self) -> Tensor:
        """Token ids ``[batch, pos]``."""
        return self.prompts.ids

    @property
    def own(self) -> Tensor:
        """True for text and False for padding, ``[batch, pos]``."""
        return self.prompts.own

    def measure(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The metric, a scalar; and of each row ``[batch]`` if it knows them.

        The scalar is the mean over rows for a metric that knows them.

        Raises:
            InputError: the metric returned something else than one number.
        """
        if isinstance(self.metric, BoundMetric):
            rows = self.metric.per_row(logits)
            return rows.mean(), rows
        return evaluate(self.metric, logits), None

    @functools.cached_property
    def _head_map(self) -> Affine:
        """Weight and bias of the head; of an adapter they are made once for all streams."""
        return self.model.output_map

    @torch.no_grad()
    def measure_streams(self, streams: Tensor) -> Tensor:
        """The metric of several final residual streams of this batch.

        Only the logits that a LogitMetric reads are computed.

        Args:
            streams: what the head reads, before the final layer norm,
                ``[variant * batch, pos, d_model]``.

        Returns:
            ``[variant, batch]`` for a metric that knows rows, ``[variant, 1]`` for another.
        """
        return self._of_streams(streams)

    def sum_of_streams(self, streams: Tensor) -> Tensor:
        """The sum of the same over variants and rows, through which gradients flow back."""
        return self._of_streams(streams).sum()

    def _of_streams(self, streams: Tensor) -> Tensor:
        streams = streams.view(-1, *self.ids.shape, streams.shape[-1])
        head, normalize = self.model.output_head, self.model.backbone.normalize
        if isinstance(self.metric, BoundMetric):
            rows = torch.arange(len(self.ids), device=streams.device)[:, None]
            read = normalize(streams[:, rows, self.metric.positions])  # [variant, batch, term, d]
            weight, bias = self._head_map
            logits = (read * weight[self.metric.outputs]).sum(dim=-1)
            if bias is not None:
                logits = logits + bias[self.metric.outputs]
            return (logits * self.metric.weights).sum(dim=-1)
        values = []
        for stream in streams:
            logits = head(normalize(stream))
            if answers_per_text(self.model.head):
                rows = torch.arange(len(logits), device=logits.device)
                logits = logits[rows, self.model.last_token(self.ids, logits)]
            values.append(evaluate(self.metric, logits))
        return torch.stack(values)[:, None]

    def pieces(self, row: int = 0) -> list[str]:
        """Token strings of one row, padding included; numbers where there is no tokenizer."""
        tokenizer, ids = self.model.tokenizer, self.ids[row].tolist()
        return [f"⟨{i}⟩" for i in ids] if tokenizer is None else list(tokenizer.pieces(ids))

    def repeated(self, times: int) -> dict[str, Any]:
        """Arguments of ``forward`` for ``times`` copies, ``[times * batch, pos]``."""
        return {
            name: tensor.repeat(times, *(1,) * (tensor.dim() - 1))
            for name, tensor in self.arguments.items()
        }


@dataclasses.dataclass(frozen=True)
class Pair:
    """A clean batch whose activations are patched in, and the corrupted batch that gets them.

    Attributes:
        clean: the clean batch.
        corrupted: the corrupted batch.
        columns: of named positions in the corrupted batch ``[place, batch]``; None if every
            position counts.
        clean_columns: for each column of the corrupted batch the one of the clean batch that
            belongs there ``[batch, pos]``; None if columns are the same on both sides.
    """

    clean: Batch
    corrupted: Batch
    columns: Tensor | None
    clean_columns: Tensor | None

    @property
    def chosen(self) -> Tensor:
        """1 at a place and 0 elsewhere ``[place, batch, pos]``; without names one place of ones."""
        ids = self.corrupted.ids
        if self.columns is None:
            return torch.ones_like(ids, dtype=torch.float32)[None]
        return torch.nn.functional.one_hot(self.columns, ids.shape[1]).float()

    def aligned(self, found: Tensor) -> Tensor:
        """Activations of the clean batch ``[batch, pos, ...]`` at the corrupted batch's columns."""
        if self.clean_columns is None:
            return found
        rows = torch.arange(len(found), device=found.device)[:, None]
        return found[rows, self.clean_columns.clamp(max=found.shape[1] - 1)]


def batch(model: HookedModel, inputs: PromptsLike, metric: Metric) -> Batch:
    """``inputs`` prepared for ``model``, and ``metric`` bound to them; see ``warn_of_prompts``.

    Raises:
        InputError: inputs that are not text or token ids, or a metric that does not fit.
    """
    ready = _ready(model, read_prompts(model, inputs, "inputs"), metric)
    warn_of_prompts(model, metric, {"prompt": ready.prompts})
    return ready


def pair(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    positions: Positions | None = None,
) -> Pair:
    """Both batches, checked to correspond; see also ``warn_of_prompts``.

    Args:
        model: any class with a head.
        clean: where changes come from.
        corrupted: what gets them.
        metric: see ``neox_lab.experiments.metrics``.
        positions: see ``nl.patching.sweep``; without them the tokens must be as many.

    Raises:
        InputError: pairs of unequal length or without any difference, positions that a text does
            not have, or a metric that does not fit.
    """
    sides = read_prompts(model, clean, "clean"), read_prompts(model, corrupted, "corrupted")
    check_pairs(model, *sides, named=positions is not None)
    batches = _ready(model, sides[0], metric), _ready(model, sides[1], metric)
    both = {"clean": sides[0], "corrupted": sides[1]}
    warn_of_prompts(model, metric, both, named=positions is not None)
    if positions is None:
        return Pair(*batches, None, None)
    found = source_columns(positions, *sides)
    clean_columns = found if are_moved(*sides, found) else None
    return Pair(*batches, patched_columns(positions, sides[1]), clean_columns)


def refuse_steps(both: Pair) -> None:
    """Raise if there is no straight way from one batch's embeddings to the other's.

    Raises:
        InputError: tokens stand elsewhere in the clean batch.
    """
    if both.clean_columns is not None:
        raise InputError(
            "steps > 0 needs runs between both prompts, token by token, so both must have the same "
            "length, and positions the same place in both. Use steps=0."
        )


def _ready(model: HookedModel, prompts: Prompts, metric: Metric) -> Batch:
    check_parts(model)
    return Batch(model, prompts, bind(metric, model, prompts.arguments))
