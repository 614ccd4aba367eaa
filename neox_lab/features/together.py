"""At how many tokens two features are active together, counted at every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.sae.codes import Codes

ALL_OF = 4096
"""Features of which all are counted with all others unless something else is asked: 64 MB."""
AT_ONCE = 2**22
"""Numbers that are looked at together."""


DENSER = 8
"""Features of a dictionary for each slot below which a matrix product is the shorter way."""


class Pairs(NamedTuple):
    """What was counted.

    Attributes:
        row: which row of ``counts`` is of a feature, ``[latent]``; -1 for those not counted.
        counts: tokens, ``[row, latent]``, int32; of a feature with itself, where it is active.
    """

    row: Tensor
    counts: Tensor


class Together:
    """Counts of tokens at which a feature is active and another one, too.

    Attributes:
        row: which row of ``counts`` is of a feature, ``[latent]``; -1 for those not counted.
        counts: tokens, ``[row, latent]``, int32; of a feature with itself, where it is active.
    """

    def __init__(self, latents: int, counted: Sequence[int] | None, device: torch.device) -> None:
        """Nothing is counted yet.

        Args:
            latents: how many features there are.
            counted: those that are counted with all others; None for all, where they are few.
            device: where the counts are.
        """
        if counted is None:
            counted = range(latents if latents <= ALL_OF else 0)
        self._rows = torch.tensor(list(counted), dtype=torch.int64, device=device)
        self.row = torch.full((latents,), -1, dtype=torch.int64, device=device)
        self.row[self._rows] = torch.arange(len(self._rows), device=device)
        self.counts = torch.zeros(len(self._rows), latents, dtype=torch.int32, device=device)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return self.row.nbytes + self.counts.nbytes

    @property
    def pairs(self) -> Pairs:
        """What was counted so far."""
        return Pairs(self.row.cpu(), self.counts.cpu())

    def take(self, codes: Codes, counted: Tensor) -> None:
        """Count a batch.

        Args:
            codes: ``[batch, pos, slot]``.
            counted: the tokens that count, ``[batch, pos]``.
        """
        if not len(self._rows):
            return
        indices, values = codes.indices[counted], codes.values[counted]  # [token, slot]
        slots = indices.shape[1]
        many = DENSER * slots > codes.latents
        step = max(1, AT_ONCE // max(1, codes.latents if many else slots * slots))
        for first in range(0, len(indices), step):
            part = slice(first, first + step)
            count = self._all_pairs if many else self._pairs
            count(indices[part], values[part] != 0)

    def _all_pairs(self, indices: Tensor, active: Tensor) -> None:
        ones = active.float()
        there = ones.new_zeros(len(indices), self.counts.shape[1])
        there.scatter_add_(1, indices, ones)  # of empty slots nothing is added
        self.counts += (there[:, self._rows].T @ there).int()

    def _pairs(self, indices: Tensor, active: Tensor) -> None:
        rows = self.row[indices].where(active, -1)
        token, slot = (rows >= 0).nonzero(as_tuple=True)
        cells = rows[token, slot][:, None] * self.counts.shape[1] + indices[token]
        cells = cells[active[token]]
        self.counts.view(-1).index_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
