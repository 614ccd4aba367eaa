"""The variants of a sweep: one for each cell and pair of prompts that is run.

A variant is one forward pass that would have to be made if cells were run one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Variants:
    """Variants in the growing batch, one number for each in every field, int64 ``[variant]``.

    Attributes:
        cell: number of the cell in the result.
        pair: number of the pair.
        site: number of the site.
        layer: the layer patched.
        entry: the first layer whose input differs.
        head: the head patched, or the number of the entry (see ``Site.entries``); 0 if none.
        pos: the position patched; for all positions, the first that differs.
        source_pos: the key position of a single attention weight, 0 otherwise.
        start: the first position that is computed; everything left of it is the plain run's.
    """

    cell: Tensor
    pair: Tensor
    site: Tensor
    layer: Tensor
    entry: Tensor
    head: Tensor
    pos: Tensor
    source_pos: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.cell)

    def __getitem__(self, index: slice | Tensor) -> Variants:
        return Variants(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def of(found: dict[str, Tensor]) -> Variants:
        """Variants with the fields given, among them ``pair``, and 0 in all others."""
        zeros = torch.zeros_like(found["pair"])
        return Variants(*(found.get(field.name, zeros) for field in fields(Variants)))

    @staticmethod
    def joined(parts: Sequence[Variants]) -> Variants:
        """The variants of all parts."""
        names = [field.name for field in fields(Variants)]
        return Variants(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def by_site_and_layer(self) -> Iterator[tuple[int, int, Variants, int]]:
        """Neighbours of the same site and layer: both numbers, the variants, the first's number."""
        start = 0
        key = torch.stack((self.site, self.layer))
        _, counts = key.unique_consecutive(  # type: ignore[no-untyped-call]
            dim=1, return_counts=True
        )
        for count in counts.tolist():
            part = self[start : start + count]
            yield int(self.site[start]), int(self.layer[start]), part, start
            start += count


def suffixes(start: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """All positions from ``start`` ``[variant]`` on: variant and position of each ``[token]``."""
    counts = length - start
    variant = torch.arange(len(start), device=start.device).repeat_interleave(counts)
    offset = counts.cumsum(0) - counts
    pos = torch.arange(len(variant), device=start.device) + (start - offset)[variant]
    return variant, pos
