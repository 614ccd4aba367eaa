"""What a sweep has to compute: its cells, the variants that can differ, and groups of them.

Three kinds of variants are left out, because they are the plain run itself: those whose patched
value equals what is there, those that lie right of everything the metric reads, and those after
the last block at a position the metric does not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.experiments.patching.patched_streams import PatchedStreams
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.variants import Variants


@dataclass(frozen=True)
class Cells:
    """Every cell of a sweep, numbered site by site in the order of each site's axes.

    Attributes:
        sites: where is patched.
        sizes: how long each axis is.
        columns: what the cells along ``pos`` patch ``[place, batch]``, in the whole prompts.
    """

    sites: Sequence[Site]
    sizes: Mapping[str, int]
    columns: Tensor

    def shape(self, site: Site) -> tuple[int, ...]:
        """The shape of a site's result."""
        return tuple(self.sizes[axis] for axis in site.axes)

    def starts(self) -> list[int]:
        """The number of each site's first cell, and at the end how many cells there are."""
        starts = [0]
        for site in self.sites:
            starts.append(starts[-1] + math.prod(self.shape(site)))
        return starts

    def __len__(self) -> int:
        return self.starts()[-1]


def find_variants(
    streams: PatchedStreams, cells: Cells, pairs: slice, reads: Tensor | None
) -> Variants:
    """Every variant that has to be computed, by entry layer, site and cell, pairs innermost.

    Args:
        streams: knows where patches differ from what is there.
        cells: of the whole sweep; the run may be shorter, if nothing further right is read.
        pairs: which pairs ``streams`` has.
        reads: columns the metric reads ``[batch, read]``; None for all.
    """
    parts = []
    layers, columns = len(streams.run.blocks), cells.columns[:, pairs]
    for number, (site, first) in enumerate(zip(cells.sites, cells.starts(), strict=False)):
        for layer in range(layers):
            part = _differing(streams.differs(site, layer), site, columns)
            place = {"layer": torch.full_like(part.pair, layer), "head": part.head}
            place |= {"pos": part.cell, "source_pos": part.source_pos}
            cell = torch.zeros_like(part.pair)
            for axis, size in zip(site.axes, cells.shape(site), strict=True):
                cell = cell * size + place[axis]
            part.cell, part.layer = cell + first, place["layer"]
            part.entry = torch.full_like(cell, site.entry(layer))
            part.site = torch.full_like(cell, number)
            part.start = part.pos
            if reads is None:
                part.start = part.pos.masked_fill(streams.run.blind[part.pair], 0)
            parts.append(part[_reaching(part, site, reads, layers)])
    variants = Variants.joined(parts)
    order = torch.argsort(variants.pair, stable=True)
    for key in (variants.cell, variants.site, variants.entry):
        order = order[torch.argsort(key[order], stable=True)]
    return variants[order]


def _differing(differs: Tensor, site: Site, columns: Tensor) -> Variants:
    """The variants of one site and layer; ``cell`` holds the number of the place for now."""
    if site.place == "all":  # differs: [batch, pos, head]
        pair, head = differs.any(dim=1).nonzero().unbind(1)
        first = differs.to(torch.uint8).argmax(dim=1)[pair, head]
        return Variants.of({"pair": pair, "head": head, "pos": first})
    # differs: [batch, pos], [batch, pos, head] or [batch, pos, head, source_pos]
    batch = torch.arange(columns.shape[1], device=columns.device)
    inside = columns < differs.shape[1]
    found = differs[batch, columns.clamp(max=differs.shape[1] - 1)]  # [place, batch, ...]
    found = found & inside.reshape(*inside.shape, *[1] * (found.dim() - 2))
    place, pair, *rest = found.nonzero().unbind(1)
    fields = {"cell": place, "pair": pair, "pos": columns[place, pair]}
    return Variants.of(fields | dict(zip(("head", "source_pos"), rest, strict=False)))


def _reaching(variants: Variants, site: Site, reads: Tensor | None, layers: int) -> Tensor:
    """Which variants can change what is read, boolean ``[variant]``."""
    if reads is None:
        return torch.ones_like(variants.pair, dtype=torch.bool)
    reach = variants.pos <= reads.amax(dim=1)[variants.pair]
    if site.place == "one":
        read = (variants.pos[:, None] == reads[variants.pair]).any(dim=1)
        reach &= read | (variants.entry < layers)
    return reach


def groups(
    variants: Variants, length: int, budget: int, whole_cells: bool
) -> Iterator[tuple[int, int]]:
    """Spans of variants with at most ``budget`` tokens, or one variant (or cell) that has more.

    Args:
        variants: in the order in which they enter.
        length: columns of the run.
        budget: tokens.
        whole_cells: do not part the variants of a cell.
    """
    if not len(variants):
        return
    ends = (length - variants.start).cumsum(0).cpu()
    cuts = torch.arange(1, len(variants) + 1)
    if whole_cells:
        _, counts = variants.cell.cpu().unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        cuts = counts.cumsum(0)
    ends = ends[cuts - 1]  # tokens up to each place where a span may end
    start = taken = at = 0
    while at < len(cuts):
        after = int(torch.searchsorted(ends, taken + budget, right=True))
        at = max(after, at + 1)
        stop = int(cuts[at - 1])
        yield start, stop
        start, taken = stop, int(ends[at - 1])
