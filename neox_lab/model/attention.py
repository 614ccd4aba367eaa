r"""Multi-head self-attention with partly rotated queries and keys.

For each head, with d = d_head and M the mask (0 or minus infinity):

    q, k, v = rows of W_qkv x + b_qkv      stored per head as [q | k | v]: head 0's q, k, v,
                                           then head 1's, and so on (not all q, then all k)
    q, k    = rotate the first rotary_ndims of d dimensions by position (see ``rotary``)
    pattern = softmax(q kᵀ / √d + M)       Vaswani et al., arXiv:1706.03762
    z       = pattern v                    what each head read, [batch, pos, head, d_head]
    out     = Σ_head W_O[head] z[head] + b_O

The fused kernel computes ``z`` without ever storing ``pattern``. Only when someone watches the
scores or the pattern are they made, in float32 at least (products of half-precision queries and
keys can exceed 65504 and would become infinite).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neox_lab.config import GPTNeoXConfig
from neox_lab.kernels.linear import Linear
from neox_lab.model.hook_points import NO_TAP, Tap
from neox_lab.model.key_value_cache import LayerKeysValues
from neox_lab.model.masking import AttentionMask
from neox_lab.model.parts import Affine, affine, at_least_float32, refuse_among
from neox_lab.model.rotary import HALF_PRECISION, rotate


class SplitInput(NamedTuple):
    """Inputs of single heads that hooks took apart.

    Attributes:
        normalized: each head's own input after the layer norm, ``[batch, pos, head, d_model]``.
        heads: which heads use theirs, boolean ``[head]``; the others share the common one. None
            if all share it, and only the gradient of their own input is wanted.
    """

    normalized: Tensor
    heads: Tensor | None


class Attention(nn.Module):
    """Self-attention of one block."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        """Weights ``query_key_value [3 d_model, d_model]`` and ``dense [d_model, d_model]``."""
        super().__init__()
        d_model = config.hidden_size
        self.heads = config.num_attention_heads
        self.d_head = config.head_size
        self.scale = self.d_head**-0.5
        self.dropout = config.attention_dropout
        self.query_key_value = Linear(d_model, 3 * d_model, bias=config.attention_bias)
        self.dense = Linear(d_model, d_model, bias=config.attention_bias)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        keys_values: LayerKeysValues | None = None,
        tap: Tap = NO_TAP,
        split_inputs: tuple[SplitInput | None, ...] | None = None,
    ) -> Tensor:
        """Read from all visible positions.

        Args:
            x: normalised residual stream ``[batch, pos, d_model]``.
            rotation: cosines and sines ``[batch or 1, pos, 1, rotary_ndims]``.
            mask: visibility of the past and of these positions.
            keys_values: this layer's cache, extended in place, or None.
            tap: hook points of this block.
            split_inputs: for queries, keys and values, the heads' own inputs where hooks
                altered them; such a head does not read ``x``, and so not ``attn.hook_in``.

        Returns:
            What attention adds to the residual stream, ``[batch, pos, d_model]``.
        """
        batch, pos, _ = x.shape
        q, k, v = self.project(tap("attn.hook_in", x))
        if split_inputs is not None:
            q, k, v = self._from_split_inputs((q, k, v), split_inputs)

        q = rotate(tap("attn.hook_q", q), *rotation)
        k = rotate(tap("attn.hook_k", k), *rotation)
        v = tap("attn.hook_v", v)
        if v.requires_grad:
            v = v.contiguous()  # a view would keep queries and keys alive until the backward pass
        q = tap("attn.hook_rot_q", q).transpose(1, 2)  # [batch, head, pos, d_head]
        k = tap("attn.hook_rot_k", k).transpose(1, 2)
        v = v.transpose(1, 2)
        if keys_values is not None:
            k, v = keys_values.append(k, v)  # [batch, head, key_pos, d_head]

        z = self.mix(q, k, v, mask, tap)
        z = tap("attn.hook_z", z.transpose(1, 2))  # [batch, pos, head, d_head]
        if tap.watched("attn.hook_result"):
            return self._sum_of_results(z, tap)
        return self.dense(z.reshape(batch, pos, self.heads * self.d_head))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values before rotation, each ``[..., head, d_head]``.

        Args:
            x: normalised residual stream ``[..., d_model]``.
        """
        # view, not unflatten: decoding pays for every layer of Python
        qkv = self.query_key_value(x).view(*x.shape[:-1], self.heads, 3, self.d_head)
        return qkv.unbind(-2)

    def reading(self) -> Affine:
        """What turns the normalised residual stream into ``[head, (q, k, v), d_head]``.

        Raises:
            HookError: no linear map stands there, or PyTorch hooks change what attention reads.
        """
        refuse_among(self._forward_pre_hooks, "attention")
        width = self.heads * self.d_head
        return affine(self.query_key_value, width, "attention.query_key_value")

    def writing(self) -> Affine:
        """What turns ``z`` of all heads into what attention writes.

        Raises:
            HookError: no linear map stands there, or PyTorch hooks change what attention writes.
        """
        refuse_among(self._forward_hooks, "attention")
        return self.projection()

    def projection(self) -> Affine:
        """What turns ``z`` of all heads into what PyTorch hooks on attention, if any, are shown.

        Raises:
            HookError: no linear map stands there.
        """
        return affine(self.dense, self.heads * self.d_head, "attention.dense")

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, tap: Tap = NO_TAP
    ) -> Tensor:
        """What each head reads: ``z`` ``[batch, head, query_pos, d_head]``.

        Args:
            q: rotated queries ``[batch, head, query_pos, d_head]``.
            k: rotated keys ``[batch, head, key_pos, d_head]``.
            v: values ``[batch, head, key_pos, d_head]``.
            mask: who may look at whom.
            tap: hook points of this block.
        """
        if mask.blind or tap.watched("attn.hook_attn_scores", "attn.hook_pattern"):
            return self._attend_in_the_open(q, k, v, mask, tap)
        dtype, bias = q.dtype, mask.bias
        if q.shape[2] == 1 and dtype in HALF_PRECISION and q.device.type == "cpu":
            # For one query the kernel of half precision takes longer than both conversions.
            q, k, v, bias = q.float(), k.float(), v.float(), None if bias is None else bias.float()
        z = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=bias,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask.causal,
            scale=self.scale,
        )
        return z.to(dtype)

    def _attend_in_the_open(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, tap: Tap
    ) -> Tensor:
        """The same attention with scores and pattern made: ``z`` ``[batch, head, pos, d_head]``."""
        scores = tap("attn.hook_attn_scores", masked_scores(q, k, mask, self.scale))
        pattern = tap("attn.hook_pattern", scores.softmax(dim=-1).to(q.dtype))
        pattern = F.dropout(pattern, self.dropout, self.training)
        return torch.matmul(pattern, v)

    def _sum_of_results(self, z: Tensor, tap: Tap) -> Tensor:
        """Project each head by itself, show the parts, add them up: ``[batch, pos, d_model]``."""
        weight, bias = self.projection()
        result = tap("attn.hook_result", head_results(z, weight))
        out = result.sum(dim=2)
        return out if bias is None else out + bias

    def _from_split_inputs(
        self, shared: tuple[Tensor, ...], inputs: tuple[SplitInput | None, ...]
    ) -> tuple[Tensor, ...]:
        """Queries, keys and values, taken from a head's own input where it has one."""
        matrix, bias = self.reading()
        weight = matrix.reshape(self.heads, 3, self.d_head, -1)
        biases = None if bias is None else bias.view(self.heads, 3, self.d_head)
        made = []
        for part, (tensor, own) in enumerate(zip(shared, inputs, strict=True)):
            if own is not None and own.heads is None:
                # Nothing is added to the value; the gradient reaches the heads' own inputs too.
                probe = torch.einsum("bphd,hed->bphe", own.normalized, weight[:, part].detach())
                tensor = tensor + (probe - probe.detach())
            elif own is not None and own.heads is not None:
                projected = torch.einsum("bphd,hed->bphe", own.normalized, weight[:, part])
                if biases is not None:
                    projected = projected + biases[:, part]
                tensor = torch.where(own.heads[:, None], projected, tensor)
            made.append(tensor)
        return tuple(made)


def masked_scores(q: Tensor, k: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """Scaled and masked scores, in float32 at least, ``[batch, head, query_pos, key_pos]``.

    Args:
        q: rotated queries ``[batch, head, query_pos, d_head]``.
        k: rotated keys ``[batch, head, key_pos, d_head]``.
        mask: who may look at whom.
        scale: 1 / √d_head.
    """
    q, k = at_least_float32(q), at_least_float32(k)
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    bias = mask.full_bias(scores)
    return scores if bias is None else scores + bias


def head_results(z: Tensor, output_weight: Tensor) -> Tensor:
    """What each head writes to the residual stream, before the shared bias.

    Args:
        z: ``[batch, pos, head, d_head]``.
        output_weight: the output projection ``[d_model, head * d_head]``.

    Returns:
        ``[batch, pos, head, d_model]``; its sum over heads plus the bias is ``hook_attn_out``.
    """
    batch, pos, heads, d_head = z.shape
    weight = output_weight.reshape(-1, heads, d_head)  # [d_model, head, d_head]
    return torch.einsum("bphe,dhe->bphd", z, weight)
