"""Patched streams: the residual streams with which variants enter the batched forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.experiments.patching.effects import ChangedTokens, PatchedLayer
from neox_lab.experiments.patching.runs import Activations, PlainRun
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.variants import Variants, suffixes


class Tokens(NamedTuple):
    """Positions of variants that changed.

    Attributes:
        variant: number of the variant ``[token]``, ascending.
        pos: position, ascending within a variant.
        x: the residual stream there ``[token, d_model]``.
    """

    variant: Tensor
    pos: Tensor
    x: Tensor


class PatchedStreams:
    """Makes the tokens with which variants enter, from the patched run and the source."""

    def __init__(self, run: PlainRun, activations: Activations, may_differ: Tensor) -> None:
        """Nothing is computed yet.

        Args:
            run: the run that gets patched.
            activations: what is patched in.
            may_differ: False where patches are known to change nothing ``[batch, pos]``.
        """
        self.run, self.activations, self.may_differ = run, activations, may_differ
        self._made: dict[str, PatchedLayer] = {}

    def differs(self, site: Site, layer: int) -> Tensor:
        """Where the source differs from the run.

        Returns:
            boolean ``[batch, pos]``, ``[batch, pos, head]`` for heads, or ``[batch, pos, head,
            source_pos]`` for single attention weights.
        """
        both = self._layer(site, layer)
        found = both.source != both.patched
        axes = 2 + sum(axis in site.axes for axis in ("head", "source_pos"))
        if found.dim() > axes:
            found = found.flatten(axes).any(dim=-1)
        return found & self.may_differ.reshape(*self.may_differ.shape, *[1] * (axes - 2))

    def enter(self, site: Site, layer: int, variants: Variants) -> Tokens:
        """The tokens with which ``variants`` of one site and layer enter ``site.entry(layer)``."""
        variant = torch.arange(len(variants), device=variants.pair.device)
        pos = variants.pos
        if site.place != "one":
            variant, pos = suffixes(variants.start, self.run.length)
        head = variants.head[variant]
        tokens = ChangedTokens(variants, variant, pos, variants.pair[variant], head)
        assert site.effect is not None  # of every site that does not need hooks
        return Tokens(variant, pos, site.effect(self._layer(site, layer), tokens))

    def release(self) -> None:
        """Forget the layer that was asked about."""
        self._made = {}

    def _layer(self, site: Site, layer: int) -> PatchedLayer:
        """One layer, kept until another is asked for: its variants may come in several groups."""
        made = self._made.get(site.name)
        if made is None or made.number != layer:
            asked = site.asked or site.hook
            made = PatchedLayer(self.run, self.activations(asked, layer), site.hook, layer)
            self._made[site.name] = made
        return made
