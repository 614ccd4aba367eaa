"""What a sweep has to compute: its cells, the variants that can differ, and groups of them.

Three kinds of variants are left out, because they are the plain run itself: those whose patched
value equals what is there, those that lie right of everything the metric reads, and those after
the last block at a position the metric does not read. (Of variants that run through spliced
functions, which may look ahead, only the first.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from neox_lab.experiments.patching.batched_forward import Top
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


class Group(Protocol):
    """Variants that go up together.

    Attributes:
        variants: which ones.
        x: their residual streams, as far as they are.
    """

    variants: Variants
    x: Tensor

    def add(self, variants: Variants) -> None:
        """Take up variants whose patch is in the block that was run last, or in the embedding."""

    def step(self, layer: int) -> None:
        """Go through one block."""

    def top(self) -> Top:
        """The residual streams after the last block."""


class Forward(Protocol):
    """A way to run the variants of some pairs: ``BatchedForward`` or ``HookedForward``."""

    def differs(self, site: Site, layer: int) -> Tensor:
        """Where patches differ from what is there, see ``PatchedStreams.differs``."""

    def trimmed(self, site: Site, variants: Variants) -> Variants:
        """Those of a site's variants that can change what is read, with their ``start``."""

    def group(self) -> Group:
        """A group without variants."""

    def release(self) -> None:
        """Forget the block that was run last."""


def find_variants(forward: Forward, cells: Cells, pairs: slice, layer: int) -> Variants:
    """The variants of one layer that have to be computed, by site and cell, pairs innermost.

    Args:
        forward: will run them.
        cells: of the whole sweep; the run may be shorter, if nothing further right is read.
        pairs: which pairs ``forward`` has.
        layer: that was run last; with block 0 goes the embedding, which counts as layer -1.
    """
    nothing = cells.columns.new_empty(0)
    parts = [Variants.of({"pair": nothing})]
    columns = cells.columns[:, pairs]
    for number, (site, first) in enumerate(zip(cells.sites, cells.starts(), strict=False)):
        if site.layer is not None and max(site.layer, 0) != layer:
            continue
        at = layer if site.layer is None else site.layer
        part = _differing(forward.differs(site, at), site, columns)
        place = {"layer": torch.full_like(part.pair, at), "head": part.head}
        place |= {"pos": part.cell, "source_pos": part.source_pos}
        if site.entries:
            place[site.axes[-1]] = part.head
        cell = torch.zeros_like(part.pair)
        for axis, size in zip(site.axes, cells.shape(site), strict=True):
            cell = cell * size + place[axis]
        part.cell, part.layer = cell + first, place["layer"]
        part.entry = torch.full_like(cell, site.entry(at))
        part.site = torch.full_like(cell, number)
        parts.append(forward.trimmed(site, part))
    variants = Variants.joined(parts)
    order = torch.argsort(variants.pair, stable=True)
    order = order[torch.argsort(variants.cell[order], stable=True)]
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


def spans(
    variants: Variants, length: int, budget: int, whole_cells: bool, held: int
) -> Iterator[tuple[int, int]]:
    """Spans of variants with at most ``budget`` tokens, or one variant (or cell) that has more.

    Args:
        variants: by cell.
        length: columns of the run.
        budget: tokens.
        whole_cells: do not part the variants of a cell.
        held: tokens of the group that the first span is added to; if there are any, the first span
            may be empty.
    """
    if not len(variants):
        return
    ends = (length - variants.start).cumsum(0).cpu()
    cuts = torch.arange(1, len(variants) + 1)
    if whole_cells:
        _, counts = variants.cell.cpu().unique_consecutive(return_counts=True)  # type: ignore[no-untyped-call]
        cuts = counts.cumsum(0)
    ends = ends[cuts - 1]  # tokens up to each place where a span may end
    start, at, taken = 0, 0, -held
    while at < len(cuts):
        after = int(torch.searchsorted(ends, taken + budget, right=True))
        at = max(after, at if taken < 0 else at + 1)
        stop = int(cuts[at - 1]) if at else 0
        yield start, stop
        start, taken = stop, int(ends[at - 1]) if at else 0
