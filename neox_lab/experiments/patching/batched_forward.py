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
variants arrive there (see ``climb``). Variants go up in groups, so that what a block makes of one
group fits into memory.
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
    """Knows which variants can differ, and makes groups that take them to the top."""

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

    def group(self) -> BatchedGroup:
        """A group without variants."""
        return BatchedGroup(self)

    def release(self) -> None:
        """Forget the block that was run last."""
        self.streams.release()


class BatchedGroup:
    """Variants that go up together.

    Attributes:
        variants: in the order in which they entered.
        x: the residual streams of those that were in the block before ``[token, d_model]``; after
            the last block, where only some columns are read, ``[variant, read, d_model]``.
    """

    def __init__(self, forward: BatchedForward) -> None:
        """No variants yet."""
        self.streams, self.sites, self.reads = forward.streams, forward.sites, forward.reads
        self.run, self.blocks = forward.run, forward.blocks
        self.variants = Variants.of({"pair": forward.run.blind.nonzero().flatten()[:0]})
        self.x = self._nothing()
        self._new: list[Tokens] = []

    def add(self, variants: Variants) -> None:
        """Take up variants whose patch is in the block that was run last."""
        before = len(self.variants)
        for site, layer, part, first in variants.by_site_and_layer():
            tokens = self.streams.enter(self.sites[site], layer, part)
            self._new.append(tokens._replace(variant=tokens.variant + before + first))
        self.variants = Variants.joined([self.variants, variants])
        self.pair, self.start = self.variants.pair, self.variants.start
        self.variant, self.pos = suffixes(self.start, self.run.length)
        counts = self.run.length - self.start
        self.offset = counts.cumsum(0) - counts
        self.lowest = int(self.start.min())

    def step(self, layer: int) -> None:
        """Go through one block."""
        old, new = self.x.to(self.run.cos.device), self._newcomers()
        if layer == len(self.blocks) - 1 and self.reads is not None:
            self.x = self._last_step(layer, old, new)
        else:
            self.x = self._step(layer, old, new)

    def top(self) -> Top:
        """The residual streams after the last block."""
        x = self._at_top(self.x, self._newcomers()) if self._new else self.x
        if self.reads is None:
            return Top(self.variant, self.pos, x)
        return Top(None, None, x)

    def _newcomers(self) -> Tokens:
        """The changed tokens of variants that enter now."""
        parts, self._new = self._new, []
        if not parts:
            nothing = self.pair.new_empty(0)
            return Tokens(nothing, nothing, self._nothing())
        return Tokens(*(torch.cat(found) for found in zip(*parts, strict=True)))

    def _nothing(self) -> Tensor:
        """No tokens ``[0, d_model]``."""
        return self.run.empty(0, self.run.final.shape[-1])

    def _filled(self, plain: Tensor, old: Tensor, new: Tokens, value: Tensor) -> Tensor:
        """All tokens: ``old`` of earlier variants, ``value`` where new ones differ.

        The rest of the new ones' tokens is that of the run, ``plain`` ``[batch, pos, d]``.
        """
        done = len(old)
        if done == len(self.variant):
            return old
        variant, pos = self.variant[done:], self.pos[done:]
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
        self, plain: Tensor, value: Tensor, variant: Tensor, pos: Tensor, first: int = 0
    ) -> Tensor:
        """``[variant, pos, head, d_head]`` from position ``first`` on: the run's, and ``value``."""
        spread = plain[:, first:].index_select(0, self.pair)
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

    def _step(self, layer: int, old: Tensor, new: Tokens) -> Tensor:
        """One block: from the input's tokens to the output's, ``[token, d_model]``."""
        run, block = self.run.layer(layer), self.blocks[layer]
        done = len(old)
        x, variant, pos = self._changed(old, new)
        q, k, v = self._projected(layer, x, variant, pos)
        q = self._spread(run.q, q, variant, pos, self.lowest)
        k = self._spread(run.k, k, variant, pos)
        v = self._spread(run.v, v, variant, pos)
        mask = for_variants(self.run.visible(self.lowest), self.pair)
        z = block.attention.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        z = z.transpose(1, 2).reshape(-1, x.shape[1])
        wide = self.run.length - self.lowest
        place = self.variant * wide + (self.pos - self.lowest)
        attn_out = block.attention.dense(z.index_select(0, place))
        resid_pre = self._filled(run.resid_pre, old, new, new.x)
        if not block.parallel:
            resid_mid = attn_out.add_(resid_pre)
            return block.transform(resid_mid, NO_TAP).add_(resid_mid)
        changed = block.transform(x, NO_TAP)
        mlp_out = self._filled(run.mlp_out, changed[:done], new, changed[done:])
        return mlp_out.add_(attn_out).add_(resid_pre)

    def _last_step(self, layer: int, old: Tensor, new: Tokens) -> Tensor:
        """The last block, at the positions that are read: ``[variant, read, d_model]``."""
        assert self.reads is not None
        run, block = self.run.layer(layer), self.blocks[layer]
        x, variant, pos = self._changed(old, new)
        read = self.reads[self.pair]  # [variant, read]
        pair = self.pair[:, None]
        token, which = (pos[:, None] == read[variant]).nonzero().unbind(1)
        at = variant[token], which
        q, k, v = self._projected(layer, x, variant, pos)
        queries = run.q[pair, read]  # [variant, read, head, d_head]
        queries[at] = q[token]
        k = self._spread(run.k, k, variant, pos)
        v = self._spread(run.v, v, variant, pos)
        z = block.attention.mix(
            queries.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self._reading_mask()
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

    def _reading_mask(self) -> AttentionMask:
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
        return AttentionMask(bias[self.pair, None], causal=False)

    def _at_top(self, old: Tensor, new: Tokens) -> Tensor:
        """What leaves the last block: all tokens, or ``[variant, read, d_model]``."""
        if self.reads is None:
            return self._filled(self.run.final, old, new, new.x)
        read = self.reads[self.pair]
        final = self.run.final[self.pair[:, None], read]
        token, which = (new.pos[:, None] == read[new.variant]).nonzero().unbind(1)
        final[new.variant[token], which] = new.x[token]
        return final
