"""One forward pass whose batch grows on its way up.

A variant enters at the first layer whose input it changes, and from there goes up with all others.
Only what can differ is computed. Tokens of all variants lie in one list ``[token, d_model]``,
without padding, so that every matrix is multiplied once a layer with all of them:

    in the layer it enters    queries, keys, values and MLP only where its input changed;
                              attention for every position from there on
    in layers above           every position from the first changed one on
    in the last layer         queries and MLP only where the metric reads

Left of a variant's first changed position everything is that of the patched run. Its keys and
values are put in front of the variant's own, so attention is ordinary attention, and ``Block`` and
``Attention`` do all the arithmetic. Of the patched run one layer is asked for at a time, when the
variants arrive there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.experiments.patching.patched_streams import PatchedStreams, Tokens
from neox_lab.experiments.patching.runs import for_variants
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.variants import Variants, suffixes
from neox_lab.model.hook_points import NO_TAP
from neox_lab.model.masking import AttentionMask
from neox_lab.model.rotary import rotate


class Top(NamedTuple):
    """Residual streams after the last block.

    Attributes:
        variant: number of the variant ``[token]``; None if ``x`` has an axis for what is read.
        pos: position ``[token]``; None likewise.
        x: ``[token, d_model]``, or ``[variant, read, d_model]``.
    """

    variant: Tensor | None
    pos: Tensor | None
    x: Tensor


class BatchedForward:
    """Takes variants from where they enter to the top."""

    def __init__(
        self, streams: PatchedStreams, sites: Sequence[Site], reads: Tensor | None
    ) -> None:
        """Nothing is computed yet.

        Args:
            streams: makes the tokens with which variants enter.
            sites: what ``Variants.site`` counts.
            reads: columns that the metric reads ``[batch, read]``; None for all.
        """
        self.streams, self.sites, self.reads = streams, sites, reads
        self.run = streams.run
        self.blocks = self.run.blocks

    def differs(self, site: Site, layer: int) -> Tensor:
        """Where patches differ from what is there, see ``PatchedStreams.differs``."""
        return self.streams.differs(site, layer)

    def trimmed(self, site: Site, variants: Variants) -> Variants:
        """Those of a site's variants that can change what is read, with their ``start``."""
        variants.start = variants.pos
        if self.reads is None:
            variants.start = variants.pos.masked_fill(self.run.blind[variants.pair], 0)
            return variants
        reach = variants.pos <= self.reads.amax(dim=1)[variants.pair]
        if site.place == "one":
            read = (variants.pos[:, None] == self.reads[variants.pair]).any(dim=1)
            reach &= read | (variants.entry < len(self.blocks))
        return variants[reach]

    def __call__(self, variants: Variants) -> Top:
        """The residual streams of ``variants``, ordered by entry, after the last block."""
        layers = len(self.blocks)
        self.pair, self.start = variants.pair, variants.start
        self.variant, self.pos = suffixes(self.start, self.run.length)
        counts = self.run.length - self.start
        self.offset = counts.cumsum(0) - counts
        self.lowest = int(self.start.min())
        entered = torch.bincount(variants.entry, minlength=layers + 1).cumsum(0).tolist()
        x = self._nothing()
        tops, before = [], 0
        for layer in range(int(variants.entry[0]), layers + 1):
            now = entered[layer]
            new = self._newcomers(variants[before:now], before)
            if layer == layers:
                tops.append(self._at_top(x, new, before, now))
            elif layer == layers - 1 and self.reads is not None:
                tops.append(self._last_step(layer, x, new, now))
            else:
                x = self._step(layer, x, new, now)
            before = now
        if self.reads is None:
            return Top(self.variant, self.pos, tops[0])
        return Top(None, None, torch.cat(tops))

    def _newcomers(self, entering: Variants, before: int) -> Tokens:
        """The changed tokens of variants that enter now, after ``before`` others."""
        parts = [
            (first, self.streams.enter(self.sites[site], layer, part))
            for site, layer, part, first in entering.by_site_and_layer()
        ]
        if not parts:
            nothing = entering.pair.new_empty(0)
            return Tokens(nothing, nothing, self._nothing())
        return Tokens(
            torch.cat([part.variant + before + first for first, part in parts]),
            torch.cat([part.pos for _, part in parts]),
            torch.cat([part.x for _, part in parts]),
        )

    def _nothing(self) -> Tensor:
        """No tokens ``[0, d_model]``."""
        return self.run.empty(0, self.run.layer(0).resid_pre.shape[-1])

    def _tokens(self, now: int) -> int:
        """How many tokens the first ``now`` variants have."""
        if now == len(self.pair):
            return len(self.variant)
        return int(self.offset[now])

    def _filled(self, plain: Tensor, old: Tensor, new: Tokens, value: Tensor, now: int) -> Tensor:
        """All tokens of ``now`` variants: ``old`` of earlier ones, ``value`` where new ones differ.

        The rest of the new ones' tokens is that of the run, ``plain`` ``[batch, pos, d]``.
        """
        done, total = len(old), self._tokens(now)
        if done == total:
            return old
        variant, pos = self.variant[done:total], self.pos[done:total]
        fresh = plain[self.pair[variant], pos]
        fresh.index_copy_(0, self._place(new) - done, value)
        return torch.cat((old, fresh)) if done else fresh

    def _place(self, tokens: Tokens) -> Tensor:
        """Where tokens stand in the list of all tokens ``[token]``."""
        return self.offset[tokens.variant] + tokens.pos - self.start[tokens.variant]

    def _projected(self, layer: int, x: Tensor, variant: Tensor, pos: Tensor) -> tuple[Tensor, ...]:
        """Rotated queries and keys, and values, of changed tokens: ``[token, head, d_head]``."""
        block = self.blocks[layer]
        q, k, v = block.attention.project(block.input_layernorm(x))
        cos, sin = self.run.cos[pos], self.run.sin[pos]
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _spread(
        self, plain: Tensor, value: Tensor, variant: Tensor, pos: Tensor, now: int, first: int = 0
    ) -> Tensor:
        """``[variant, pos, head, d_head]`` from position ``first`` on: the run's, and ``value``."""
        spread = plain[:, first:].index_select(0, self.pair[:now])
        flat = spread.view(-1, *spread.shape[2:])
        flat.index_copy_(0, variant * spread.shape[1] + (pos - first), value)
        return spread

    def _changed(self, old: Tensor, new: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens whose input to a block differs from the run's: value, variant and position."""
        done = len(old)
        if not len(new.variant):
            return old, self.variant[:done], self.pos[:done]
        if not done:
            return new.x, new.variant, new.pos
        return (
            torch.cat((old, new.x)),
            torch.cat((self.variant[:done], new.variant)),
            torch.cat((self.pos[:done], new.pos)),
        )

    def _step(self, layer: int, old: Tensor, new: Tokens, now: int) -> Tensor:
        """One block: from the input's tokens to the output's, ``[token, d_model]``."""
        run, block = self.run.layer(layer), self.blocks[layer]
        done, total = len(old), self._tokens(now)
        x, variant, pos = self._changed(old, new)
        q, k, v = self._projected(layer, x, variant, pos)
        q = self._spread(run.q, q, variant, pos, now, self.lowest)
        k = self._spread(run.k, k, variant, pos, now)
        v = self._spread(run.v, v, variant, pos, now)
        mask = for_variants(self.run.visible(self.lowest), self.pair[:now])
        z = block.attention.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        z = z.transpose(1, 2).reshape(-1, x.shape[1])
        wide = self.run.length - self.lowest
        place = self.variant[:total] * wide + (self.pos[:total] - self.lowest)
        attn_out = block.attention.dense(z.index_select(0, place))
        resid_pre = self._filled(run.resid_pre, old, new, new.x, now)
        if not block.parallel:
            resid_mid = attn_out.add_(resid_pre)
            return block.transform(resid_mid, NO_TAP).add_(resid_mid)
        changed = block.transform(x, NO_TAP)
        mlp_out = self._filled(run.mlp_out, changed[:done], new, changed[done:], now)
        return mlp_out.add_(attn_out).add_(resid_pre)

    def _last_step(self, layer: int, old: Tensor, new: Tokens, now: int) -> Tensor:
        """The last block, at the positions that are read: ``[variant, read, d_model]``."""
        assert self.reads is not None
        run, block = self.run.layer(layer), self.blocks[layer]
        x, variant, pos = self._changed(old, new)
        read = self.reads[self.pair[:now]]  # [variant, read]
        pair = self.pair[:now, None]
        token, which = (pos[:, None] == read[variant]).nonzero().unbind(1)
        at = variant[token], which
        q, k, v = self._projected(layer, x, variant, pos)
        queries = run.q[pair, read]  # [variant, read, head, d_head]
        queries[at] = q[token]
        k = self._spread(run.k, k, variant, pos, now)
        v = self._spread(run.v, v, variant, pos, now)
        z = block.attention.mix(
            queries.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self._reading_mask(now)
        )
        attn_out = block.attention.dense(z.transpose(1, 2).flatten(2))
        resid_pre = run.resid_pre[pair, read]
        resid_pre[at] = x[token]
        if not block.parallel:
            resid_mid = attn_out + resid_pre
            return block.transform(resid_mid, NO_TAP) + resid_mid
        mlp_out = run.mlp_out[pair, read]
        mlp_out[at] = block.transform(x[token], NO_TAP)
        return mlp_out + attn_out + resid_pre

    def _reading_mask(self, now: int) -> AttentionMask:
        """Who may look at whom, for queries at the positions that are read."""
        assert self.reads is not None
        last = self.run.length - 1
        if self.run.mask is None and bool((self.reads == last).all()):
            return AttentionMask(None, causal=False)
        shape = (self.run.batch, 1, self.run.length, self.run.length)
        bias = self.run.visible().full_bias(self.run.empty(*shape))
        if bias is None:  # a single position
            return AttentionMask(None, causal=False)
        batch = torch.arange(self.run.batch, device=self.reads.device)[:, None]
        bias = bias.expand(self.run.batch, -1, -1, -1)[batch, 0, self.reads]
        return AttentionMask(bias[self.pair[:now], None], causal=False)

    def _at_top(self, old: Tensor, new: Tokens, before: int, now: int) -> Tensor:
        """What leaves the last block: all tokens, or ``[variant, read, d_model]`` of newcomers."""
        if self.reads is None:
            return self._filled(self.run.final, old, new, new.x, now)
        read = self.reads[self.pair[before:now]]
        final = self.run.final[self.pair[before:now, None], read]
        variant = new.variant - before
        token, which = (new.pos[:, None] == read[variant]).nonzero().unbind(1)
        final[variant[token], which] = new.x[token]
        return final
