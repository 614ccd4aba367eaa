"""Direct effects on many nodes, a sparse row for each, and who matters for the logits.

A row holds what every source adds to one number. Entries that are smaller than 0.5 % of the row's
absolute sum divided by their count are left out: all of them together are then at most 0.5 % of it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

LEFT_OUT = 0.005
"""The most that is left out of a row, as a share of its absolute sum."""


@dataclasses.dataclass
class Rows:
    """Rows of one batch of targets, sparse.

    Attributes:
        targets: the number of each target ``[row]``.
        row: which row an entry is of ``[entry]``.
        source: the number of its source ``[entry]``.
        value: what the source adds ``[entry]``.
        total: absolute sum of each whole row ``[row]``.
        incoming: sum of each whole row ``[row]``.
        constant: what is added besides ``[row]``.
    """

    targets: Tensor
    row: Tensor
    source: Tensor
    value: Tensor
    total: Tensor
    incoming: Tensor
    constant: Tensor

    @property
    def shares(self) -> Tensor:
        """Absolute entries as shares of their row's absolute sum ``[entry]``."""
        return self.value.abs() / self.total.clamp(min=torch.finfo(self.total.dtype).tiny)[self.row]


def sparse(targets: Tensor, values: Tensor, constant: Tensor) -> Rows:
    """Keep what counts of ``[row, source]``."""
    total = values.abs().sum(dim=1)
    least = LEFT_OUT * total / max(1, values.shape[1])
    row, source = (values.abs() > least[:, None]).nonzero().unbind(dim=1)
    kept = values[row, source]
    return Rows(targets, row, source, kept, total, values.sum(dim=1), constant)


def influence(parts: list[tuple[int, Rows]], weight: Tensor, logits: Rows, sources: int) -> Tensor:
    """How much of the logits goes back to each source, along all ways through known rows.

    w = p + p Â + p Â² + ..: with Â the absolute rows, each divided by its sum, and p the weights of
    the logits. Rows only lead to lower layers, so one sweep from the top does it.

    Args:
        parts: rows of features, with the layer of all their targets.
        weight: of the logits.
        logits: their rows.
        sources: how many there are.

    Returns:
        ``[source]``.
    """
    total = logits.value.new_zeros(sources)
    total.index_add_(0, logits.source, logits.shares * weight[logits.row])
    for _, rows in sorted(parts, key=lambda part: -part[0]):
        total.index_add_(0, rows.source, rows.shares * total[rows.targets][rows.row])
    return total
