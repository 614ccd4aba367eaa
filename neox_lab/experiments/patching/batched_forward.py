"""One forward pass whose batch grows as it climbs.

A row enters at the first layer whose input it changes, and from there goes up with all other rows.
Only what can differ is computed. Tokens of all rows lie in one list ``[token, d_model]``, without
padding, so that every matrix is multiplied once a layer with all of them:

    in the layer a row enters   queries, keys, values and MLP only where its input changed;
                                attention for every position from there on
    in layers above             every position from the first changed one on
    in the last layer           queries and MLP only where the metric reads

Left of a row's first changed position everything is that of the patched run. Its keys and values
are put in front of the row's own, so attention is ordinary attention, and ``Block`` and
``Attention`` do all the arithmetic.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.experiments.patching.patched_streams import Arrivals, Tokens
from neox_lab.experiments.patching.runs import for_rows
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.variants import Rows, suffixes
from neox_lab.model.hook_points import NO_TAP
from neox_lab.model.masking import AttentionMask
from neox_lab.model.rotary import rotate


class Top(NamedTuple):
    """Residual streams after the last block.

    Attributes:
        row: number of the row ``[token]``; None if ``x`` has an axis for what is read.
        pos: position ``[token]``; None likewise.
        x: ``[token, d_model]``, or ``[row, read, d_model]``.
    """

    row: Tensor | None
    pos: Tensor | None
    x: Tensor


class Climb:
    """Takes rows from where they enter to the top."""

    def __init__(self, arrivals: Arrivals, sites: list[Site], reads: Tensor | None) -> None:
        """Nothing is computed yet.

        Args:
            arrivals: makes the tokens with which rows enter.
            sites: what ``Rows.site`` counts.
            reads: columns that the metric reads ``[batch, read]``; None for all.
        """
        self.arrivals, self.sites, self.reads = arrivals, sites, reads
        self.base = arrivals.base
        self.layers = len(self.base.layers)

    def __call__(self, rows: Rows) -> Top:
        """The residual streams of ``rows``, ordered by entry, after the last block."""
        self.pair, self.start = rows.pair, rows.start
        self.row, self.pos = suffixes(self.start, self.base.length)
        counts = self.base.length - self.start
        self.offset = counts.cumsum(0) - counts
        self.lowest = int(self.start.min())
        entered = torch.bincount(rows.entry, minlength=self.layers + 1).cumsum(0).tolist()
        x = self.base.final.new_empty(0, self.base.final.shape[-1])
        tops, before = [], 0
        for layer in range(int(rows.entry[0]), self.layers + 1):
            now = entered[layer]
            new = self._newcomers(rows, before, now)
            if layer == self.layers:
                tops.append(self._at_top(x, new, before, now))
            elif layer == self.layers - 1 and self.reads is not None:
                tops.append(self._last_step(layer, x, new, now))
            else:
                x = self._step(layer, x, new, now)
            before = now
        if self.reads is None:
            return Top(self.row, self.pos, tops[0])
        return Top(None, None, torch.cat(tops))

    def _newcomers(self, rows: Rows, before: int, now: int) -> Tokens:
        """The changed tokens of rows ``before`` to ``now - 1``, numbered as in the group."""
        parts = [
            (here, self.arrivals(self.sites[site], layer, part))
            for site, layer, part, here in rows[before:now].runs()
        ]
        if not parts:
            nothing = rows.pair.new_empty(0)
            return Tokens(nothing, nothing, self.base.final.new_empty(0, self.base.final.shape[-1]))
        return Tokens(
            torch.cat([part.row + before + here.start for here, part in parts]),
            torch.cat([part.pos for _, part in parts]),
            torch.cat([part.x for _, part in parts]),
        )

    def _tokens(self, now: int) -> int:
        """How many tokens the first ``now`` rows have."""
        if now == len(self.pair):
            return len(self.row)
        return int(self.offset[now])

    def _filled(self, base: Tensor, old: Tensor, new: Tokens, value: Tensor, now: int) -> Tensor:
        """All tokens of ``now`` rows: ``old`` of earlier rows, ``value`` where newcomers differ.

        The rest of the newcomers' tokens is that of the run, ``base`` ``[batch, pos, d]``.
        """
        done, total = len(old), self._tokens(now)
        if done == total:
            return old
        row, pos = self.row[done:total], self.pos[done:total]
        fresh = base[self.pair[row], pos]
        fresh.index_copy_(0, self._place(new) - done, value)
        return torch.cat((old, fresh)) if done else fresh

    def _place(self, tokens: Tokens) -> Tensor:
        """Where tokens stand in the list of all tokens ``[token]``."""
        return self.offset[tokens.row] + tokens.pos - self.start[tokens.row]

    def _projected(self, layer: int, x: Tensor, row: Tensor, pos: Tensor) -> tuple[Tensor, ...]:
        """Rotated queries and keys, and values, of changed tokens: ``[token, head, d_head]``."""
        block = self.base.blocks[layer]
        q, k, v = block.attention.project(block.input_layernorm(x))
        cos, sin = self.base.cos[pos], self.base.sin[pos]
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _spread(
        self, base: Tensor, value: Tensor, row: Tensor, pos: Tensor, now: int, first: int = 0
    ) -> Tensor:
        """``[row, pos, head, d_head]`` from position ``first`` on: the run's, and ``value``."""
        spread = base[:, first:].index_select(0, self.pair[:now])
        flat = spread.view(-1, *spread.shape[2:])
        flat.index_copy_(0, row * spread.shape[1] + (pos - first), value)
        return spread

    def _changed(self, old: Tensor, new: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens whose input to a block differs from the run's: value, row and position."""
        done = len(old)
        if not len(new.row):
            return old, self.row[:done], self.pos[:done]
        if not done:
            return new.x, new.row, new.pos
        return (
            torch.cat((old, new.x)),
            torch.cat((self.row[:done], new.row)),
            torch.cat((self.pos[:done], new.pos)),
        )

    def _step(self, layer: int, old: Tensor, new: Tokens, now: int) -> Tensor:
        """One block: from the input's tokens to the output's, ``[token, d_model]``."""
        run, block = self.base.layers[layer], self.base.blocks[layer]
        done, total = len(old), self._tokens(now)
        x, row, pos = self._changed(old, new)
        q, k, v = self._projected(layer, x, row, pos)
        q = self._spread(run.q, q, row, pos, now, self.lowest)
        k = self._spread(run.k, k, row, pos, now)
        v = self._spread(run.v, v, row, pos, now)
        mask = for_rows(self.base.visible(self.lowest), self.pair[:now])
        z = block.attention.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        z = z.transpose(1, 2).reshape(-1, x.shape[1])
        wide = self.base.length - self.lowest
        here = self.row[:total] * wide + (self.pos[:total] - self.lowest)
        attn_out = block.attention.dense(z.index_select(0, here))
        resid_pre = self._filled(run.resid_pre, old, new, new.x, now)
        if not block.parallel:
            resid_mid = attn_out.add_(resid_pre)
            return block.transform(resid_mid, NO_TAP).add_(resid_mid)
        changed = block.transform(x, NO_TAP)
        mlp_out = self._filled(run.mlp_out, changed[:done], new, changed[done:], now)
        return mlp_out.add_(attn_out).add_(resid_pre)

    def _last_step(self, layer: int, old: Tensor, new: Tokens, now: int) -> Tensor:
        """The last block, at the positions that are read: ``[row, read, d_model]``."""
        assert self.reads is not None
        run, block = self.base.layers[layer], self.base.blocks[layer]
        x, row, pos = self._changed(old, new)
        read = self.reads[self.pair[:now]]  # [row, read]
        pair = self.pair[:now, None]
        token, which = (pos[:, None] == read[row]).nonzero().unbind(1)
        at = row[token], which
        q, k, v = self._projected(layer, x, row, pos)
        queries = run.q[pair, read]  # [row, read, head, d_head]
        queries[at] = q[token]
        k = self._spread(run.k, k, row, pos, now)
        v = self._spread(run.v, v, row, pos, now)
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
        last = self.base.length - 1
        if self.base.mask is None and bool((self.reads == last).all()):
            return AttentionMask(None, causal=False)
        shape = (self.base.batch, 1, self.base.length, self.base.length)
        bias = self.base.visible().full_bias(self.base.final.new_empty(shape))
        if bias is None:  # a single position
            return AttentionMask(None, causal=False)
        batch = torch.arange(self.base.batch, device=self.reads.device)[:, None]
        bias = bias.expand(self.base.batch, -1, -1, -1)[batch, 0, self.reads]
        return AttentionMask(bias[self.pair[:now], None], causal=False)

    def _at_top(self, old: Tensor, new: Tokens, before: int, now: int) -> Tensor:
        """What leaves the last block: all tokens, or ``[row, read, d_model]`` of newcomers."""
        if self.reads is None:
            return self._filled(self.base.final, old, new, new.x, now)
        read = self.reads[self.pair[before:now]]
        final = self.base.final[self.pair[before:now, None], read]
        row = new.row - before
        token, which = (new.pos[:, None] == read[row]).nonzero().unbind(1)
        final[row[token], which] = new.x[token]
        return final
