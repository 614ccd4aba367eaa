"""Variants that run through hooks: where functions are spliced into the network.

``BatchedForward`` knows what a block computes and calls no hooks. A spliced function may do
anything to a tensor, so here every variant is a row of an ordinary run from the patched block to
the last one, in which a hook puts the source's activation where the cell says. Hooks are called in
the order in which they were placed: the patch replaces what the functions made of the tensor, and
the functions after it see the patch. A hook point that is no site of ``SITES`` is patched the same
way.

All columns are computed, also those left of the patch and right of everything that is read: a
spliced function may look at all of them. It must treat each row of the batch by itself.
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
from neox_lab.model.hook_points import HookPoint

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

LEAVING = "hook_resid_post"
"""What has to be kept of the patched run: with it, variants enter the next block. (What stands at
the ``hook_resid_pre`` of that block has been through the functions there already.)"""


class HookedForward:
    """Runs variants from the patched block to the last one, with a hook that patches."""

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
        """All of a site's variants; each starts at the first column."""
        return variants

    def __call__(self, variants: Variants) -> Top:
        """The residual streams of ``variants`` after the last block."""
        parts = variants.by_site_and_layer()
        x = torch.cat([self._run(self.sites[site], layer, part) for site, layer, part, _ in parts])
        if self.reads is None:
            return Top(*suffixes(variants.start, self.run.length), x.flatten(0, 1))
        rows = torch.arange(len(x), device=x.device)[:, None]
        return Top(None, None, x[rows, self.reads[variants.pair]])

    def _run(self, site: Site, layer: int, variants: Variants) -> Tensor:
        """One site and layer: the residual streams ``[variant, pos, d_model]``."""
        pair, mask = variants.pair, self.prompts.mask
        rows = torch.arange(len(pair), device=pair.device)
        cell, source = _cell(site, variants), self.activations(site.hook, layer)

        def patch(tensor: Tensor, _: HookPoint) -> None:
            tensor[(rows, *cell)] = source[(pair, *cell)].to(tensor.dtype)

        first = max(self.network.hook_stack.first(layer), 0)
        entering = self.prompts.ids if first < 1 else self.run.kept(LEAVING, first - 1)
        output = self.network.run_with_hooks(
            entering[pair],
            [(hook_name(site.hook, layer), patch)],
            attention_mask=None if mask is None else mask[pair],
            start_at_layer=first,
            stop_at_layer=len(self.network.layers),
            use_cache=False,
        )
        final: Tensor = output.last_hidden_state
        return final


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
