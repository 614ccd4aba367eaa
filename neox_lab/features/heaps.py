"""Of every latent the few entries of the highest score, in memory that no corpus makes larger.

A table ``[latent, size]`` is kept; what a batch brings is compared with the lowest score of each
row first, so that soon nearly all of it is dropped before anything is sorted. Which entries are
kept does not depend on how the corpus was cut into batches: they are ordered by score and, where
scores are equal, by place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOGETHER = 2**19
"""Entries that are sorted together, of those offered and of those in the table."""


class Entries(NamedTuple):
    """Activations of latents at places of the corpus, ``[entry]`` each.

    Attributes:
        latent: which latent, int64.
        score: what they are ranked by, float32.
        value: the activation, float32.
        place: number of the token in the corpus, int64.
    """

    latent: Tensor
    score: Tensor
    value: Tensor
    place: Tensor

    def select(self, kept: Tensor) -> Entries:
        """Some of them: a mask or numbers."""
        return Entries(*(column[kept] for column in self))


def one_of_each(group: Tensor, entries: Entries) -> Entries:
    """Of every group the entry of the largest value; of equal ones the earliest.

    Args:
        group: number of the group that each entry is of, ``[entry]``.
        entries: in any order.
    """
    order = entries.place.argsort(stable=True)
    order = order[entries.value[order].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    first = torch.ones_like(sorted_group, dtype=torch.bool)
    first[1:] = sorted_group[1:] != sorted_group[:-1]
    return entries.select(order[first])


class Highest:
    """The table.

    Attributes:
        score: ``[latent, size]``, float32, the highest first; -inf where there is no entry.
        value: of the same shape, float32.
        place: of the same shape, int64; -1 where there is no entry.
    """

    def __init__(self, latents: int, size: int, device: torch.device | str = "cpu") -> None:
        """An empty table.

        Args:
            latents: how many rows.
            size: entries of a row.
            device: where it is kept.
        """
        self.score = torch.full((latents, size), -torch.inf, device=device, dtype=torch.float32)
        self.value = torch.zeros(latents, size, device=device, dtype=torch.float32)
        self.place = torch.full((latents, size), -1, device=device, dtype=torch.int64)

        self._waiting: list[Entries] = []

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(each.nbytes for each in (self.score, self.value, self.place))

    def may_enter(self, latent: Tensor, score: Tensor) -> Tensor:
        """Which scores are not below all that their row holds; equal ones may come earlier."""
        return score >= self.score[:, -1][latent]

    def offer(self, new: Entries) -> None:
        """Take in entries, now or when more have come together.

        Args:
            new: no place twice for one latent, and none that was there before.
        """
        self._waiting.append(new)
        if sum(len(each.latent) for each in self._waiting) >= TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Let all that was offered take its place, and those go that no longer are the highest."""
        if not self._waiting:
            return
        new = Entries(*(torch.cat(columns) for columns in zip(*self._waiting, strict=True)))
        self._waiting = []
        new = new.select(self.may_enter(new.latent, new.score))
        latents, size = self.score.shape
        step = max(1, TOGETHER // size)
        for first in range(0, latents if len(new.latent) else 0, step):
            own = (new.latent >= first) & (new.latent < first + step)
            self._merge(new.select(own))

    def _merge(self, new: Entries) -> None:
        """Take in entries of some latents."""
        rows, size = torch.unique(new.latent), self.score.shape[1]
        kept = Entries(
            rows.repeat_interleave(size),
            self.score[rows].flatten(),
            self.value[rows].flatten(),
            self.place[rows].flatten(),
        )
        both = Entries(*(torch.cat(pair) for pair in zip(kept, new, strict=True)))
        order = both.place.argsort(stable=True)
        order = order[both.score[order].argsort(descending=True, stable=True)]
        both = both.select(order[both.latent[order].argsort(stable=True)])
        start = torch.searchsorted(both.latent, both.latent)  # where the row of each begins
        rank = torch.arange(len(start), device=start.device) - start
        chosen, rank = both.select(rank < size), rank[rank < size]
        for table, column in (
            (self.score, chosen.score),
            (self.value, chosen.value),
            (self.place, chosen.place),
        ):
            table[chosen.latent, rank] = column
