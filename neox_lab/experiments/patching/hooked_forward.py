"""Variants that run through hooks: where functions are spliced into the network.

``BatchedForward`` knows what a block computes and calls no hooks. A spliced function may do
anything to a tensor, so here every variant is a row of ordinary runs of one block after the other
from the patched one on, in which a hook puts the source's activation where the cell says. Hooks
are called in the order in which they were placed: the patch replaces what the functions made of the
tensor, and the functions after it see the patch. A hook point that is no site of ``SITES`` is
patched the same way.

All columns are computed, also those left of the patch and right of everything that is read: a
spliced function may look at all of them. It must treat each row of the batch by itself. One that
sums up what it found in earlier blocks needs all blocks in one run: then variants wait for the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.experiments.patching.batched_forward import Top
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.experiments.patching.runs import Activations, PlainRun, hook_name
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.variants import Variants, suffixes
from neox_lab.family import GPTNeoXModel
from neox_lab.model.hook_points import HookFunction, HookPoint

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

LEAVING = "hook_resid_post"
"""What has to be kept of a run that is made at once: with it, variants enter the next block. (What
stands at the ``hook_resid_pre`` of that block has been through the functions there already.)"""


class HookedForward:
    """Knows which variants can differ, and makes groups that take them to the top."""

    def __init__(
        self,
        model: HookedModel,
        prompts: Prompts,
        run: PlainRun,
        activations: Activations,
        sites: Sequence[Site],
        reads: Tensor | None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            model: the model, with the functions spliced in.
            prompts: those that get patched.
            run: their run.
            activations: what is patched in.
            sites: what ``Variants.site`` counts.
            reads: columns that the metric reads ``[batch, read]``; None for all.
        """
        network = model.backbone
        assert isinstance(network, GPTNeoXModel)
        self.network, self.prompts, self.run = network, prompts, run
        self.activations, self.sites, self.reads = activations, sites, reads

    def differs(self, site: Site, layer: int) -> Tensor:
        """Where patches differ from what is there, see ``PatchedStreams.differs``."""
        found = self.activations(site.hook, layer) != self.run.kept(site.hook, layer)
        if site.is_pattern:  # [batch, head, pos, source_pos]
            found = found.transpose(1, 2)
        if site.entries:
            return found[..., site.entries]
        axes = 2 + sum(axis in site.axes for axis in ("head", "source_pos"))
        return found.flatten(axes).any(dim=-1) if found.dim() > axes else found

    def trimmed(self, site: Site, variants: Variants) -> Variants:
        """All of a site's variants; each starts at the first column, and in the patched block."""
        variants.entry = variants.layer
        return variants

    def group(self) -> HookedGroup:
        """A group without variants."""
        return HookedGroup(self)

    def release(self) -> None:
        """Nothing is kept of a block."""


class HookedGroup:
    """Variants that go up together.

    Attributes:
        variants: in the order in which they entered.
        x: the residual streams of those that were in the block before ``[variant, pos, d_model]``.
    """

    def __init__(self, forward: HookedForward) -> None:
        """No variants yet."""
        self.forward, self.run = forward, forward.run
        self.variants = Variants.of({"pair": self.run.blind.nonzero().flatten()[:0]})
        self.x = self.run.entering[:0]
        self._entering: list[Tensor] = []
        self._patches: list[tuple[str, HookFunction]] = []

    def add(self, variants: Variants) -> None:
        """Take up variants whose patch is in the block that was run last, or in the embedding."""
        before = len(self.variants)
        self.variants = Variants.joined([self.variants, variants])
        if self.run.stream.at_once:
            return
        for number, layer, part, first in variants.by_site_and_layer():
            site, row = self.forward.sites[number], before + first
            self._entering.append(self.run.entering[part.pair])
            self._patches.append(self._patch(site, layer, part, row))

    def step(self, layer: int) -> None:
        """Go through one block."""
        if self.run.stream.at_once:
            return
        x = torch.cat([self.x.to(self.run.final.device), *self._entering])
        patches, self._entering, self._patches = self._patches, [], []
        self.x = self._go(x, self.variants.pair, patches, layer, layer + 1)

    def top(self) -> Top:
        """The residual streams after the last block."""
        x, reads = self.x, self.forward.reads
        if self.run.stream.at_once:
            parts = self.variants.by_site_and_layer()
            x = torch.cat([self._at_once(number, layer, part) for number, layer, part, _ in parts])
        if reads is None:
            return Top(*suffixes(self.variants.start, self.run.length), x.flatten(0, 1))
        rows = torch.arange(len(x), device=x.device)[:, None]
        return Top(None, None, x[rows, reads[self.variants.pair]])

    def _at_once(self, number: int, layer: int, variants: Variants) -> Tensor:
        """One site and layer in one run to the top: ``[variant, pos, d_model]``."""
        network, pair = self.forward.network, variants.pair
        patch = self._patch(self.forward.sites[number], layer, variants, 0)
        first = max(network.hook_stack.first(layer), 0)
        entering = self.forward.prompts.ids if first < 1 else self.run.kept(LEAVING, first - 1)
        return self._go(entering[pair], pair, [patch], first, len(network.layers))

    def _patch(
        self, site: Site, layer: int, variants: Variants, first: int
    ) -> tuple[str, HookFunction]:
        """The hook that patches ``variants``, the rows from ``first`` on."""
        rows = torch.arange(first, first + len(variants), device=variants.pair.device)
        cell = _cell(site, variants)
        values = self.forward.activations(site.hook, layer)[(variants.pair, *cell)]

        def patch(tensor: Tensor, _: HookPoint) -> None:
            there = tensor.device  # of the layer
            at = tuple(part.to(there) if isinstance(part, Tensor) else part for part in cell)
            tensor[(rows.to(there), *at)] = values.to(there, tensor.dtype)

        return hook_name(site.hook, layer), patch

    def _go(
        self,
        entering: Tensor,
        pair: Tensor,
        patches: list[tuple[str, HookFunction]],
        first: int,
        last: int,
    ) -> Tensor:
        """Blocks ``first`` to ``last - 1`` with patches: the residual streams that leave them."""
        mask = self.forward.prompts.mask
        output = self.forward.network.run_with_hooks(
            entering,
            patches,
            attention_mask=None if mask is None else mask[pair],
            start_at_layer=first,
            stop_at_layer=last,
            use_cache=False,
        )
        found: Tensor = output.last_hidden_state
        return found


def _cell(site: Site, variants: Variants) -> tuple[Tensor | slice, ...]:
    """Where each variant is patched: an index of the axes after the batch."""
    if site.entries:
        entries = torch.tensor(site.entries, device=variants.head.device)
        pos = slice(None) if site.place == "all" else variants.pos
        return pos, entries[variants.head]
    if site.is_pattern:
        axes = ["head", "pos", "source_pos"]
    else:
        axes = ["pos", "head"] if site.by_head else ["pos"]
    return tuple(getattr(variants, axis) if axis in site.axes else slice(None) for axis in axes)
