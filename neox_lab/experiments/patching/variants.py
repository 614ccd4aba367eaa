"""The rows of a sweep: one for each cell and pair of prompts that can differ from the plain run.

A row is one forward pass that would have to be made if cells were run one by one. Three kinds are
left out, because they are the plain run itself: those whose patched value equals what is there,
those that lie right of everything the metric reads, and those after the last block at a position
the metric does not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from neox_lab.experiments.patching.patched_streams import Arrivals
from neox_lab.experiments.patching.sites import Site


@dataclass
class Rows:
    """Rows of the growing batch, one number for each in every field, int64 ``[row]``.

    Attributes:
        cell: number of the cell in the result.
        pair: number of the pair.
        site: number of the site.
        layer: the layer patched.
        entry: the first layer whose input differs.
        head: the head patched, 0 if none.
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

    def __getitem__(self, index: slice | Tensor) -> Rows:
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """The rows of all parts."""
        names = [field.name for field in fields(Rows)]
        return Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def runs(self) -> Iterator[tuple[int, int, Rows, slice]]:
        """Neighbouring rows of the same site and layer, with their numbers and their place."""
        start = 0
        key = torch.stack((self.site, self.layer))
        _, counts = key.unique_consecutive(  # type: ignore[no-untyped-call]
            dim=1, return_counts=True
        )
        for count in counts.tolist():
            here = slice(start, start + count)
            yield int(self.site[start]), int(self.layer[start]), self[here], here
            start += count


def cell_counts(site: Site, layers: int, places: int, heads: int, width: int) -> tuple[int, ...]:
    """The shape of a site's result."""
    size = {
        "layer": layers,
        "pos": places,
        "head": heads,
        "source_pos": width,
    }
    return tuple(size[axis] for axis in site.axes)


def rows_of(
    arrivals: Arrivals, sites: Sequence[Site], places: Tensor, width: int, reads: Tensor | None
) -> Rows:
    """Every row that has to be computed, by entry layer, site and cell, pairs innermost.

    Args:
        arrivals: knows where patches differ from what is there.
        sites: where to patch.
        places: the columns that the cells along pos patch ``[place, batch]``; the run may be
            shorter, if nothing further right is read.
        width: columns of the whole prompts.
        reads: columns the metric reads ``[batch, read]``; None for all.
    """
    parts, offset = [], 0
    base = arrivals.base
    layers = len(base.layers)
    for number, site in enumerate(sites):
        shape = cell_counts(site, layers, len(places), arrivals.heads, width)
        for layer in range(layers):
            part = _differing(arrivals.differs(site, layer), site, places)
            at = {"layer": torch.full_like(part.pair, layer), "head": part.head}
            at |= {"pos": part.cell, "source_pos": part.source_pos}
            cell = torch.zeros_like(part.pair)
            for axis, size in zip(site.axes, shape, strict=True):
                cell = cell * size + at[axis]
            part.cell, part.layer = cell + offset, at["layer"]
            part.entry = torch.full_like(cell, site.entry(layer))
            part.site = torch.full_like(cell, number)
            part.start = part.pos
            if reads is None:
                part.start = part.pos.masked_fill(base.blind[part.pair], 0)
            parts.append(part[_reaching(part, site, reads, layers)])
        offset += math.prod(shape)
    rows = Rows.joined(parts)
    order = torch.argsort(rows.pair, stable=True)
    for key in (rows.cell, rows.site, rows.entry):
        order = order[torch.argsort(key[order], stable=True)]
    return rows[order]


def _differing(differs: Tensor, site: Site, places: Tensor) -> Rows:
    """The rows of one site and layer; ``cell`` holds the number of the place for now."""
    if site.place == "all":  # differs: [batch, pos, head]
        pair, head = differs.any(dim=1).nonzero().unbind(1)
        first = differs.to(torch.uint8).argmax(dim=1)[pair, head]
        found = {"cell": torch.zeros_like(pair), "pair": pair, "head": head, "pos": first}
    else:  # differs: [batch, pos], [batch, pos, head] or [batch, pos, head, source_pos]
        batch = torch.arange(places.shape[1], device=places.device)
        inside = places < differs.shape[1]
        here = differs[batch, places.clamp(max=differs.shape[1] - 1)]  # [place, batch, ...]
        here = here & inside.reshape(*inside.shape, *[1] * (here.dim() - 2))
        place, pair, *rest = here.nonzero().unbind(1)
        found = {"cell": place, "pair": pair, "pos": places[place, pair]}
        found |= dict(zip(("head", "source_pos"), rest, strict=False))
    zeros = torch.zeros_like(found["pair"])
    names = [field.name for field in fields(Rows)]
    return Rows(**{name: found.get(name, zeros) for name in names})


def _reaching(rows: Rows, site: Site, reads: Tensor | None, layers: int) -> Tensor:
    """Which rows can change what is read, boolean ``[row]``."""
    if reads is None:
        return torch.ones_like(rows.pair, dtype=torch.bool)
    reach = rows.pos <= reads.amax(dim=1)[rows.pair]
    if site.place == "one":
        read = (rows.pos[:, None] == reads[rows.pair]).any(dim=1)
        reach &= read | (rows.entry < layers)
    return reach


def suffixes(start: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """All positions from ``start`` ``[row]`` on: number of the row and position, ``[token]``."""
    counts = length - start
    row = torch.arange(len(start), device=start.device).repeat_interleave(counts)
    offset = counts.cumsum(0) - counts
    pos = torch.arange(len(row), device=start.device) + (start - offset)[row]
    return row, pos
