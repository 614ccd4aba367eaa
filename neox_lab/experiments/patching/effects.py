"""What a patch does: from replaced activations to the residual stream they lead to.

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

An *effect* is a function of one patched layer and of the tokens that change in it. It returns the
residual stream ``[token, d_model]`` at the layer where the patch enters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.experiments.patching.runs import PATTERN, PlainRun
from neox_lab.experiments.patching.variants import Variants
from neox_lab.model.hook_points import NO_TAP


class ChangedTokens(NamedTuple):
    """The positions at which some variants of one site and layer differ from the run.

    Attributes:
        variants: the variants.
        variant: which of them each token belongs to ``[token]``, ascending.
        pos: position ``[token]``, ascending within a variant.
        pair: which pair of prompts ``[token]``.
        head: which head is patched ``[token]``, 0 if none.
    """

    variants: Variants
    variant: Tensor
    pos: Tensor
    pair: Tensor
    head: Tensor

    def of(self, found: Tensor) -> Tensor:
        """What ``[batch, pos, ...]`` has for each token ``[token, ...]``."""
        return found[self.pair, self.pos]


class PatchedLayer:
    """One layer of the patched run, and what stands at one hook in it in both runs.

    Attributes:
        run: the patched run.
        number: of the layer.
        own: the run's activations there.
        block: the layer's weights.
    """

    def __init__(self, run: PlainRun, found: Tensor, hook: str, number: int) -> None:
        """``found`` is what the source has at the hook; nothing is computed yet."""
        self.run, self.number = run, number
        self.own, self.block = run.layer(number), run.blocks[number]
        self._found, self._hook = found, hook
        self._z: Tensor | None = None

    @cached_property
    def source(self) -> Tensor:
        """What the source has at the hook, ``[batch, pos, ...]``; queries and keys rotated."""
        found = self._found
        if self._hook in ("attn.hook_q", "attn.hook_k"):
            found = self.run.rotated(found)
        return found.transpose(1, 2) if self._hook == PATTERN else found

    @cached_property
    def patched(self) -> Tensor:
        """What the patched run has at the hook, in the same form."""
        found = self.run.at(self._hook, self.number)
        return found.transpose(1, 2) if self._hook == PATTERN else found

    def z(self, make: Callable[[PatchedLayer], Tensor]) -> Tensor:
        """``make(self)``, made once for all variants."""
        if self._z is None:
            self._z = make(self)
        return self._z

    @cached_property
    def _writing(self) -> Tensor:
        """From what heads read to the residual stream, ``[d_model, head, d_head]``."""
        weight, heads = self.block.attention.writing().weight, self.own.z.shape[2]
        return weight.reshape(len(weight), heads, -1)

    def after_attention(self, tokens: ChangedTokens, attn_out: Tensor) -> Tensor:
        """The residual stream after a block in which attention wrote ``attn_out``."""
        resid_pre = tokens.of(self.own.resid_pre)
        if self.block.parallel:
            return tokens.of(self.own.mlp_out) + attn_out + resid_pre
        resid_mid = attn_out + resid_pre
        resid_post: Tensor = self.block.transform(resid_mid, NO_TAP) + resid_mid
        return resid_post

    def after_heads(self, tokens: ChangedTokens, change: Tensor) -> Tensor:
        """The residual stream after a block in which each token's head read something else.

        Args:
            tokens: which heads, where.
            change: of what they read ``[token, d_head]``.
        """
        weight, heads = self._writing, self.own.z.shape[2]
        written = change.new_empty(len(change), len(weight))
        for head in range(heads):
            of_head = (tokens.head == head).nonzero().flatten()
            if len(of_head):
                read = change.index_select(0, of_head)
                written.index_copy_(0, of_head, read @ weight[:, head].t())
        return self.after_attention(tokens, tokens.of(self.own.attn_out) + written)


Effect = Callable[[PatchedLayer, ChangedTokens], Tensor]
"""From one patched layer and the tokens that change to the residual stream ``[token, d_model]``."""


def as_residual(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """What is replaced is the residual stream itself."""
    return tokens.of(layer.source)


def as_resid_mid(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """What is replaced is the residual stream between attention and MLP."""
    resid_mid = tokens.of(layer.source)
    resid_post: Tensor = layer.block.transform(resid_mid, NO_TAP) + resid_mid
    return resid_post


def as_attn_out(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """What is replaced is what attention writes."""
    return layer.after_attention(tokens, tokens.of(layer.source))


def as_mlp_out(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """What is replaced is what the MLP writes."""
    mlp_out, run = tokens.of(layer.source), layer.own
    if layer.block.parallel:
        return mlp_out + tokens.of(run.attn_out) + tokens.of(run.resid_pre)
    return mlp_out + (tokens.of(run.attn_out) + tokens.of(run.resid_pre))


def as_z(make: Callable[[PatchedLayer], Tensor]) -> Effect:
    """The effect of heads that read what ``make`` gives, ``[batch, pos, head, d_head]``."""

    def effect(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
        cell = tokens.pair, tokens.pos, tokens.head
        return layer.after_heads(tokens, layer.z(make)[cell] - layer.own.z[cell])

    return effect


def z_itself(layer: PatchedLayer) -> Tensor:
    """``z`` of the source."""
    return layer.source


def z_of_queries(layer: PatchedLayer) -> Tensor:
    """``z`` with the source's queries."""
    return layer.run.mix(layer.number, layer.source, layer.own.k, layer.own.v)


def z_of_keys(layer: PatchedLayer) -> Tensor:
    """``z`` with the source's keys at every position."""
    return layer.run.mix(layer.number, layer.own.q, layer.source, layer.own.v)


def z_of_values(layer: PatchedLayer) -> Tensor:
    """``z`` with the source's values at every position."""
    return layer.run.mix(layer.number, layer.own.q, layer.own.k, layer.source)


def z_of_patterns(layer: PatchedLayer) -> Tensor:
    """``z`` with the source's attention weights."""
    pattern = layer.source.transpose(1, 2)  # [batch, head, pos, source_pos]
    return torch.matmul(pattern, layer.own.v.transpose(1, 2)).transpose(1, 2)


def one_key(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """One head's key at one position is replaced, for every later query."""
    return _one_position(layer, tokens, "k")


def one_value(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """One head's value at one position is replaced, for every later query."""
    return _one_position(layer, tokens, "v")


def _one_position(layer: PatchedLayer, tokens: ChangedTokens, part: str) -> Tensor:
    run, variants = layer.own, tokens.variants
    # Heads do not see each other, so one pass serves every head of a pair and position.
    batch = len(run.z)
    cells = variants.pos * batch + variants.pair
    distinct, which = cells.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    pos, pair = distinct // batch, distinct % batch
    number = torch.arange(len(distinct), device=pair.device)
    parts = {"q": run.q[pair], "k": run.k[pair], "v": run.v[pair]}
    parts[part][number, pos] = layer.source[pair, pos]
    z = layer.run.mix(layer.number, parts["q"], parts["k"], parts["v"], pair)
    own = run.z[tokens.pair, tokens.pos, tokens.head]
    return layer.after_heads(tokens, z[which[tokens.variant], tokens.pos, tokens.head] - own)


def one_weight(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
    """One attention weight of one head is replaced."""
    source_pos = tokens.variants.source_pos[tokens.variant]
    change = layer.source - layer.patched  # [batch, pos, head, source_pos]
    weight = change[tokens.pair, tokens.pos, tokens.head, source_pos]
    value = layer.own.v[tokens.pair, source_pos, tokens.head]
    return layer.after_heads(tokens, weight[:, None] * value)
