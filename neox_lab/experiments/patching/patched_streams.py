"""What a patch puts into the residual stream: the values with which rows enter the climb.

Every patch comes down to a residual stream that differs at some positions. Residual streams are
replaced as they are. What attention or the MLP writes is replaced in the sum that makes the next
residual stream, so that nothing of the block is computed again (in a sequential block, the MLP at
the positions that changed). What happens inside attention is first turned into what heads read
(``z``); each layer's is made once, for all heads and positions:

    q, pattern   z with the other queries (or weights) and the run's own keys and values
    k, v         z with the other keys (or values) everywhere, or at one position

and the difference of one head's ``z`` times its part of the output matrix is added to what
attention writes. This is exact: heads are summed (Elhage et al., "A mathematical framework for
transformer circuits", 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.experiments.patching.runs import BaseRun, Source
from neox_lab.experiments.patching.sites import Site
from neox_lab.model.attention import masked_scores
from neox_lab.model.hook_points import NO_TAP

if TYPE_CHECKING:
    from neox_lab.experiments.patching.variants import Rows


class Tokens(NamedTuple):
    """Positions of rows that changed.

    Attributes:
        row: number of the row ``[token]``, ascending.
        pos: position, ascending within a row.
        x: the residual stream there ``[token, d_model]``.
    """

    row: Tensor
    pos: Tensor
    x: Tensor


class Arrivals:
    """Makes the tokens with which rows enter, from the patched run and a source."""

    def __init__(self, base: BaseRun, source: Source, may_differ: Tensor) -> None:
        """Nothing is computed yet.

        Args:
            base: the run that gets patched.
            source: what is patched in.
            may_differ: False where patches are known to change nothing ``[batch, pos]``.
        """
        self.base, self.source, self.may_differ = base, source, may_differ
        self.heads = base.layers[0].z.shape[2]
        self._made: tuple[tuple[str, int], Tensor] | None = None

    def differs(self, site: Site, layer: int) -> Tensor:
        """Where the source differs from the run.

        Returns:
            boolean ``[batch, pos]``, ``[batch, pos, head]`` for heads, or ``[batch, pos, head,
            source_pos]`` for single attention weights.
        """
        if site.is_pattern:
            found = self._patterns(layer) != self._own_pattern(layer)  # [batch, head, query, key]
            found = found.transpose(1, 2)
            found = found if "source_pos" in site.axes else found.any(dim=-1)
        else:
            found = (self._other(site, layer) != self.base.at(site.hook, layer)).any(dim=-1)
        known = self.may_differ.reshape(*self.may_differ.shape, *[1] * (found.dim() - 2))
        return found & known

    def __call__(self, site: Site, layer: int, rows: Rows) -> Tokens:
        """The tokens with which ``rows`` of one site and layer enter ``site.entry(layer)``."""
        from neox_lab.experiments.patching.variants import suffixes

        number = torch.arange(len(rows), device=rows.pair.device)
        row, pos = number, rows.pos
        if site.place != "one":
            row, pos = suffixes(rows.start, self.base.length)
        pair = rows.pair[row]
        if site.by_head:
            read = self._read(site, layer, rows, row, pos)
            delta = self._written(layer, rows.head[row], read)
            attn_out = self.base.layers[layer].attn_out[pair, pos] + delta
            return Tokens(row, pos, self._after_attention(layer, pair, pos, attn_out))
        value = self.source(site.hook, layer)[pair, pos]
        return Tokens(row, pos, self._from_value(site, layer, pair, pos, value))

    def _from_value(
        self, site: Site, layer: int, pair: Tensor, pos: Tensor, value: Tensor
    ) -> Tensor:
        """The residual stream ``[token, d_model]`` that a value of the whole stream leads to."""
        run = self.base.layers[layer]
        block = self.base.blocks[layer]
        match site.name:
            case "attn_out":
                return self._after_attention(layer, pair, pos, value)
            case "mlp_out" if block.parallel:
                return value + run.attn_out[pair, pos] + run.resid_pre[pair, pos]
            case "mlp_out":
                return value + (run.attn_out[pair, pos] + run.resid_pre[pair, pos])
            case "resid_mid":
                mlp_out: Tensor = block.transform(value, NO_TAP) + value
                return mlp_out
            case _:
                return value

    def _after_attention(self, layer: int, pair: Tensor, pos: Tensor, attn_out: Tensor) -> Tensor:
        """The residual stream after a block in which attention wrote ``attn_out``."""
        run = self.base.layers[layer]
        block = self.base.blocks[layer]
        if block.parallel:
            return run.mlp_out[pair, pos] + attn_out + run.resid_pre[pair, pos]
        resid_mid = attn_out + run.resid_pre[pair, pos]
        resid_post: Tensor = block.transform(resid_mid, NO_TAP) + resid_mid
        return resid_post

    def _written(self, layer: int, head: Tensor, read: Tensor) -> Tensor:
        """What ``read`` ``[token, d_head]`` of the heads ``[token]`` becomes in the stream."""
        dense = self.base.blocks[layer].attention.dense
        weight = dense.weight.view(dense.out_features, self.heads, -1)
        written = read.new_empty(len(read), dense.out_features)
        for number in range(self.heads):
            here = (head == number).nonzero().flatten()
            if not len(here):
                continue
            written.index_copy_(0, here, read.index_select(0, here) @ weight[:, number].t())
        return written

    def _read(self, site: Site, layer: int, rows: Rows, row: Tensor, pos: Tensor) -> Tensor:
        """By how much each row's head reads something else, ``[token, d_head]``."""
        pair, head = rows.pair[row], rows.head[row]
        run = self.base.layers[layer]
        if "source_pos" in site.axes:
            other = self._patterns(layer) - self._own_pattern(layer)
            weight = other[pair, head, pos, rows.source_pos]
            return weight[:, None] * run.v[pair, rows.source_pos, head]
        if site.place == "onward":
            return self._read_onward(site, layer, rows, row, pos)
        return self._all_read(site, layer)[pair, pos, head] - run.z[pair, pos, head]

    def _read_onward(self, site: Site, layer: int, rows: Rows, row: Tensor, pos: Tensor) -> Tensor:
        """``_read`` for a key or value that changes at one position only."""
        base, run = self.base, self.base.layers[layer]
        other = self._other(site, layer)
        # Heads do not see each other, so one variant serves every head of a pair and position.
        at = rows.pos * base.batch + rows.pair
        variants, variant = at.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        changed = variants // base.batch
        pair = variants % base.batch
        number = torch.arange(len(variants), device=pair.device)
        q, k, v = (part[pair] for part in (run.q, run.k, run.v))
        target = k if site.hook == "attn.hook_k" else v
        target[number, changed] = other[pair, changed]
        read = base.mix(layer, q, k, v, pair)
        head = rows.head[row]
        return read[variant[row], pos, head] - run.z[rows.pair[row], pos, head]

    def _all_read(self, site: Site, layer: int) -> Tensor:
        """What heads read if the site is replaced everywhere, ``[batch, pos, head, d_head]``."""
        if self._made is None or self._made[0] != (site.hook, layer):
            self._made = (site.hook, layer), self._make_read(site, layer)
        return self._made[1]

    def _make_read(self, site: Site, layer: int) -> Tensor:
        run = self.base.layers[layer]
        match site.hook:
            case "attn.hook_z":
                return self.source(site.hook, layer)
            case "attn.hook_pattern":
                return torch.matmul(self._patterns(layer), run.v.transpose(1, 2)).transpose(1, 2)
            case "attn.hook_q":
                return self.base.mix(layer, self._other(site, layer), run.k, run.v)
            case "attn.hook_k":
                return self.base.mix(layer, run.q, self._other(site, layer), run.v)
            case _:
                return self.base.mix(layer, run.q, run.k, self._other(site, layer))

    def _other(self, site: Site, layer: int) -> Tensor:
        """What the source has at a site; queries and keys rotated, as in the run."""
        part = self.source(site.hook, layer)
        return self.base.turned(part) if site.hook in ("attn.hook_q", "attn.hook_k") else part

    def _patterns(self, layer: int) -> Tensor:
        return self.source("attn.hook_pattern", layer)

    def _own_pattern(self, layer: int) -> Tensor:
        """The run's attention weights ``[batch, head, query_pos, key_pos]``."""
        run, attention = self.base.layers[layer], self.base.blocks[layer].attention
        q, k = run.q.transpose(1, 2), run.k.transpose(1, 2)
        scores = masked_scores(q, k, self.base.visible(), attention.scale)
        return scores.softmax(dim=-1).to(run.q.dtype)
