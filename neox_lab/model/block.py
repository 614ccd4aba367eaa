"""One transformer block, in its two wirings.

    parallel (GPT-NeoX-20B, Pythia)          sequential (RedPajama-INCITE, GPT-2's)

         x ──────┬─────────┐                      x ──────┐
         │      ln1       ln2                     │      ln1
         │       │         │                      │   attention
         │   attention    mlp                     x ──────┤  (+)  resid_mid
         │       │         │                      │      ln2
         x ─(+)──┴───(+)───┘                      │      mlp
                                                  x ──────┘  (+)

Parallel: y = x + attention(ln1(x)) + mlp(ln2(x)); the MLP does not see what attention of the same
block wrote, so there is no residual stream "in the middle". Sequential: m = x + attention(ln1(x)),
y = m + mlp(ln2(m)). (Wang and Komatsuzaki, GPT-J-6B, 2021; Black et al., arXiv:2204.06745.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import HookError
from neox_lab.kernels.linear import Linear
from neox_lab.kinship import Kin
from neox_lab.model.activations import ACTIVATION_FUNCTIONS
from neox_lab.model.attention import Attention, SplitInput
from neox_lab.model.hook_points import NO_TAP, Tap
from neox_lab.model.key_value_cache import LayerKeysValues
from neox_lab.model.masking import AttentionMask
from neox_lab.model.parts import (
    Affine,
    affine,
    at_least_float32,
    plain_layer_norm,
    refuse_among,
    takes_tap,
)

SPLIT_INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input")


class MLP(nn.Module):
    """W_out f(W_in x + b_in) + b_out, one position at a time."""

    def __init__(self, config: GPTNeoXConfig) -> None:
        """Weights ``dense_h_to_4h [d_mlp, d_model]`` and ``dense_4h_to_h [d_model, d_mlp]``."""
        super().__init__()
        self.d_model, self.d_mlp = config.hidden_size, config.intermediate_size
        self.dense_h_to_4h = Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = Linear(config.intermediate_size, config.hidden_size)
        self.act = ACTIVATION_FUNCTIONS[config.hidden_act]

    def forward(self, x: Tensor, tap: Tap = NO_TAP) -> Tensor:
        """From normalised ``[batch, pos, d_model]`` to what the MLP adds, of the same shape."""
        x = tap("mlp.hook_in", x)
        pre = tap("mlp.hook_pre", self.dense_h_to_4h(x))  # [batch, pos, d_mlp]
        post = tap("mlp.hook_post", self.act(pre))
        return self.dense_4h_to_h(post)

    def reading(self) -> Affine:
        """W_in and b_in.

        Raises:
            HookError: no linear map stands there, or PyTorch hooks change what the MLP reads.
        """
        refuse_among(self._forward_pre_hooks, "mlp")
        return affine(self.dense_h_to_4h, self.d_model, "mlp.dense_h_to_4h")

    def writing(self) -> Affine:
        """W_out and b_out.

        Raises:
            HookError: no linear map stands there, or PyTorch hooks change what the MLP writes.
        """
        refuse_among(self._forward_hooks, "mlp")
        return affine(self.dense_4h_to_h, self.d_mlp, "mlp.dense_4h_to_h")


class Block(Kin, nn.Module):
    """One layer of the network.

    What looks for layers that can be recomputed finds it as transformers' own, see ``kinship``.
    """

    kin_module: ClassVar[str] = "transformers.modeling_layers"
    kin_name: ClassVar[str | None] = "GradientCheckpointingLayer"

    def __init__(self, config: GPTNeoXConfig) -> None:
        """Two layer norms, attention, MLP; wired by ``config.use_parallel_residual``."""
        super().__init__()
        self.parallel = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_dropout = nn.Dropout(config.hidden_dropout)
        self.post_mlp_dropout = nn.Dropout(config.hidden_dropout)
        self.attention = Attention(config)
        self.mlp = MLP(config)

    def forward(
        self,
        resid_pre: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        keys_values: LayerKeysValues | None = None,
        tap: Tap = NO_TAP,
        recompute: bool = False,
    ) -> Tensor:
        """From the residual stream before the block to the one after, ``[batch, pos, d_model]``.

        With ``recompute`` what is inside is computed again in the backward pass; PyTorch's hooks on
        the block run once all the same.
        """
        if recompute:
            return self._gradient_checkpointing_func(self.forward, resid_pre, rotation, mask)
        resid_pre = tap("hook_resid_pre", resid_pre)
        attn_out = self.attend(resid_pre, rotation, mask, keys_values, tap)
        if self.parallel:
            mlp_out = self.transform(resid_pre, tap)
            resid_post = mlp_out + attn_out + resid_pre
        else:
            resid_mid = tap("hook_resid_mid", attn_out + resid_pre)
            mlp_out = self.transform(resid_mid, tap)
            resid_post = mlp_out + resid_mid
        return tap("hook_resid_post", resid_post)

    @staticmethod
    def _gradient_checkpointing_func(run: Callable[..., Tensor], *given: object) -> Tensor:
        """``run(*given)``, again in the backward pass; transformers' name for it."""
        return checkpoint(run, *given, use_reentrant=False)

    def attend(
        self,
        resid: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        keys_values: LayerKeysValues | None,
        tap: Tap,
    ) -> Tensor:
        """What attention adds to the residual stream ``[batch, pos, d_model]``."""
        split = self._split_inputs(resid, tap)
        x = layer_norm(resid, self.input_layernorm, tap, "ln1.hook_scale", "ln1.hook_normalized")
        out = self.attention(x, rotation, mask, keys_values, tap, split)
        if self.training:
            out = self.post_attention_dropout(out)
        return tap("hook_attn_out", out)

    def transform(self, resid: Tensor, tap: Tap) -> Tensor:
        """What the MLP adds to the residual stream ``[batch, pos, d_model]``."""
        mlp_in = tap("hook_mlp_in", resid)
        norm = self.post_attention_layernorm
        x = layer_norm(mlp_in, norm, tap, "ln2.hook_scale", "ln2.hook_normalized")
        # A module of somebody's own reads x alone, as upstream's does.
        hooks_inside = tap is not NO_TAP and takes_tap(self.mlp)
        out = self.mlp(x, tap=tap) if hooks_inside else self.mlp(x)
        if self.training:
            out = self.post_mlp_dropout(out)
        return tap("hook_mlp_out", out)

    def neurons(self) -> MLP:
        """The MLP, if it has neurons between two matrices.

        Raises:
            HookError: a module of another kind stands there.
        """
        if isinstance(self.mlp, MLP):
            return self.mlp
        raise HookError(
            f"mlp is a {type(self.mlp).__name__}; this needs an MLP with dense_h_to_4h and "
            "dense_4h_to_h, whose neurons it can look at."
        )

    def _split_inputs(self, resid: Tensor, tap: Tap) -> tuple[SplitInput | None, ...] | None:
        """Offer each head its own input to queries, keys and values; return those hooks altered.

        A tensor that is only read costs nothing: it is the residual stream, seen once per head
        through a stride of zero. Where hooks may write, only heads whose input really differs
        leave the shared path, so that the others keep their values to the last bit. Where only
        gradients are watched, the heads' inputs are a copy at which gradients end, and every
        other gradient stays what it is.
        """
        if not tap.watched("hook_attn_in", *SPLIT_INPUTS):
            return None
        shared = resid.unsqueeze(2).expand(-1, -1, self.attention.heads, -1)
        written = tap.written("hook_attn_in", *SPLIT_INPUTS)
        if tap.altered("hook_attn_in", *SPLIT_INPUTS) and not written:
            shared = shared.detach().requires_grad_(resid.requires_grad)
        attn_in = tap("hook_attn_in", shared)  # [batch, pos, head, d_model]
        made: list[SplitInput | None] = []
        for name in SPLIT_INPUTS:
            own = tap(name, attn_in)
            if not tap.altered("hook_attn_in", name):
                made.append(None)
                continue
            if not written:
                made.append(SplitInput(_with_frozen_weights(self.input_layernorm, own), None))
                continue
            heads = (own != shared).any(dim=-1).any(dim=0).any(dim=0)
            if own.requires_grad:  # gradients are wanted through every head's own input
                heads = torch.ones_like(heads)
            made.append(SplitInput(self.input_layernorm(own), heads))
        return tuple(made)


def _with_frozen_weights(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm of ``x`` through which gradients reach ``x`` but not the weights."""
    norm = plain_layer_norm(norm, "input_layernorm")
    weight, bias = norm.weight.detach(), norm.bias.detach()
    return torch.nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def layer_norm(x: Tensor, norm: nn.LayerNorm, tap: Tap, scale_name: str, out_name: str) -> Tensor:
    """Layer norm of ``x`` ``[..., d_model]`` (Ba et al., arXiv:1607.06450), in steps if watched.

    scale = √(variance + eps), float32 at least, ``[..., 1]``; normalized = (x − mean) / scale;
    the result is normalized · weight + bias.
    """
    if not tap.watched(scale_name, out_name):
        return norm(x)
    if not tap.altered(scale_name, out_name):
        _show_layer_norm(x, norm, tap, scale_name, out_name)
        return norm(x)
    norm = plain_layer_norm(norm, f"The layer norm at {out_name}")
    exact = at_least_float32(x)
    centred = exact - exact.mean(dim=-1, keepdim=True)
    scale = (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    normalized = centred / tap(scale_name, scale)
    return tap(out_name, normalized.to(x.dtype)) * norm.weight + norm.bias


def _show_layer_norm(
    x: Tensor, norm: nn.LayerNorm, tap: Tap, scale_name: str, out_name: str
) -> None:
    """Show the parts of a layer norm to those who only read."""
    normalized, scale = layer_norm_parts(x, norm)
    tap(scale_name, scale)
    tap(out_name, normalized)


def layer_norm_parts(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """``hook_normalized`` and ``hook_scale`` of a layer norm of ``x``; one kernel makes both.

    Raises:
        HookError: it is no layer norm of PyTorch's, or PyTorch hooks may change what it reads.
    """
    if norm._forward_pre_hooks or type(norm).forward is not nn.LayerNorm.forward:
        norm = plain_layer_norm(norm, "The layer norm")
    normalized, _, inverse = torch.native_layer_norm(
        at_least_float32(x), norm.normalized_shape, None, None, norm.eps
    )
    return normalized.to(x.dtype), inverse.reciprocal()
