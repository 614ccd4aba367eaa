"""What one pass over a corpus keeps of every latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neox_lab.activations.documents import mixed
from neox_lab.features.heaps import Entries, Highest, one_of_each
from neox_lab.sae.codes import Codes

PER_OCTAVE, LOWEST, BINS = 2, 2.0**-16, 64
"""Bins of the histogram: two for each factor of 2, from the lowest activation to 2^16."""
ENTRIES = 2**20
"""Activations looked at together."""
SPLITS = ("train", "held-out")


class Tokens(NamedTuple):
    """Which tokens a batch has.

    Attributes:
        counted: those that count, ``[batch, pos]``.
        place: number in the corpus, ``[batch, pos]``, int64.
        window: number of the window, that of its first token, ``[batch, pos]``, int64.
        held_out: of which split, ``[batch]``.
    """

    counted: Tensor
    place: Tensor
    window: Tensor
    held_out: Tensor


class Tables:
    """Counts, highest entries and a random sample of every latent.

    Attributes:
        active: tokens at which it is active, ``[latent]``, int64.
        total: sum of its activations, ``[latent]``, float64.
        highest: its highest activation, ``[latent]``; 0 where it never is active.
        histogram: tokens by activation, ``[latent, bin]``, int64.
        top: the highest windows, by split.
        sample: windows drawn at random from those where it is active, by split.
    """

    def __init__(
        self, latents: int, top: int, sample: int, seed: int, device: torch.device
    ) -> None:
        """Empty tables.

        Args:
            latents: how many.
            top: windows kept of each.
            sample: windows drawn of each.
            seed: which are drawn.
            device: where the tables are.
        """
        self.active = torch.zeros(latents, dtype=torch.int64, device=device)
        self.total = torch.zeros(latents, dtype=torch.float64, device=device)
        self.highest = torch.full((latents,), -torch.inf, device=device, dtype=torch.float32)
        self.histogram = torch.zeros(latents, BINS, dtype=torch.int64, device=device)
        self.top = {split: Highest(latents, top, device) for split in SPLITS}
        self.sample = {split: Highest(latents, sample, device) for split in SPLITS}
        self._recent = torch.zeros_like(self.total)  # of the group that is being read
        self._seed = mixed(torch.tensor(seed, device=device))

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        counts = (self.active, self.total, self.highest, self.histogram)
        heaps = (*self.top.values(), *self.sample.values())
        return sum(each.nbytes for each in counts) + sum(each.bytes for each in heaps)

    def group_done(self) -> None:
        """A group was read. Sums are made group by group, whoever reads them."""
        self.total += self._recent
        self._recent.zero_()

    def arrays(self) -> dict[str, Any]:
        """What the tables hold once they are closed, for ``add`` of others."""
        found: dict[str, Any] = {
            name: getattr(self, name).cpu().numpy()
            for name in ("active", "total", "highest", "histogram")
        }
        for kind, heaps in (("top", self.top), ("sample", self.sample)):
            for split, heap in heaps.items():
                latent, rank = (heap.place >= 0).nonzero(as_tuple=True)
                columns = (heap.score, heap.value, heap.place)
                entries = [latent, *(column[latent, rank] for column in columns)]
                found[f"{kind} {split}"] = [column.cpu().numpy() for column in entries]
        return found

    def add(self, arrays: Mapping[str, Any]) -> None:
        """What others hold, of another group."""
        device = self.active.device
        there = {
            name: torch.from_numpy(arrays[name]).to(device)
            for name in ("active", "total", "highest", "histogram")
        }
        self.active += there["active"]
        self.total += there["total"]
        self.highest = torch.maximum(self.highest, there["highest"])
        self.histogram += there["histogram"]
        for kind, heaps in (("top", self.top), ("sample", self.sample)):
            for split, heap in heaps.items():
                columns = arrays[f"{kind} {split}"]
                heap.offer(Entries(*(torch.from_numpy(each).to(device) for each in columns)))

    def close(self) -> None:
        """No more are coming."""
        for heap in (*self.top.values(), *self.sample.values()):
            heap.settle()

    def take(self, codes: Codes, tokens: Tokens, window: int) -> None:
        """Take in a batch, a few windows at a time where many latents are active.

        Args:
            codes: ``[batch, pos, slot]``.
            tokens: which they are.
            window: tokens of a window; the first begins at the start of each row.
        """
        batch, length, slots = codes.indices.shape
        step = window * max(1, ENTRIES // max(1, batch * window * slots))
        for start in range(0, length, step):
            part = slice(start, start + step)
            values = codes.values[:, part].float()
            active = (values != 0) & tokens.counted[:, part, None]
            row, _, _ = active.nonzero(as_tuple=True)
            slot_of = (slice(None), part)
            entries = Entries(
                codes.indices[slot_of][active],
                values[active],
                values[active],
                tokens.place[slot_of][..., None].expand(active.shape)[active],
            )
            cells = tokens.window[slot_of][..., None].expand(active.shape)[active]
            self._count(entries)
            for split, held_out in zip(SPLITS, (False, True), strict=True):
                chosen = tokens.held_out[row] == held_out
                self._keep(split, entries.select(chosen), cells[chosen])

    def _count(self, entries: Entries) -> None:
        latent, value, latents = entries.latent, entries.value, len(self.active)
        self.active += latent.bincount(minlength=latents)
        self._recent.index_add_(0, latent, value.double())
        self.highest.scatter_reduce_(0, latent, value, "amax")
        positive = value > 0
        octave = (value[positive] / LOWEST).log2() * PER_OCTAVE
        cell = latent[positive] * BINS + octave.long().clamp(0, BINS - 1)
        self.histogram += cell.bincount(minlength=latents * BINS).view(latents, BINS)

    def _keep(self, split: str, entries: Entries, cells: Tensor) -> None:
        """Offer the highest entry of each window and latent to both heaps.

        What cannot enter goes first: it is nearly all. A window's entries share the number they are
        drawn by, so of the sample windows are dropped whole.
        """
        group = (entries.latent << 40) + cells  # of one latent in one window
        drawn = mixed(mixed(self._seed + cells) + entries.latent) >> 40 & 0xFFFFFF
        drawn_by = entries._replace(score=drawn.float() / 2**24)
        for heap, offered in ((self.top[split], entries), (self.sample[split], drawn_by)):
            may = heap.may_enter(offered.latent, offered.score)
            heap.offer(one_of_each(group[may], offered.select(may)))


def bin_edges() -> Tensor:
    """The activations between the bins of the histogram, ``[bin + 1]``."""
    return LOWEST * 2 ** (torch.arange(BINS + 1, dtype=torch.float32) / PER_OCTAVE)
