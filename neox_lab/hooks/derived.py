"""Activations that are made when asked for, instead of stored.

Two kinds. *Derived*: one cheap step leads there from a stored tensor. What each head reads is the
residual stream, what it writes is its ``z`` times a matrix: storing them would take ``head`` times
the memory of the residual stream. Scores and patterns follow from queries and keys: storing them
would take memory that grows with the square of the length.
*Lean*: a block's activations all follow from the residual stream that enters it, so one tensor
``[batch, pos, d_model]`` a layer answers any question, at the price of one block's work when the
question is asked. The block asked about last is kept, because questions about a block come
together.

Both are exactly what a full cache would hold, or an error: the weights must not have changed since.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neox_lab.errors import HookError
from neox_lab.hooks.cache import ActivationCache, Maker
from neox_lab.hooks.storage import Keeping
from neox_lab.model.attention import head_results, masked_scores
from neox_lab.model.block import layer_norm_parts
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.masking import attention_mask

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedNetwork

_BASES = {
    "hook_attn_in": ("hook_resid_pre",),
    "hook_q_input": ("hook_resid_pre",),
    "hook_k_input": ("hook_resid_pre",),
    "hook_v_input": ("hook_resid_pre",),
    "ln1.hook_scale": ("hook_resid_pre",),
    "ln1.hook_normalized": ("hook_resid_pre",),
    "attn.hook_attn_scores": ("attn.hook_rot_q", "attn.hook_rot_k"),
    "attn.hook_pattern": ("attn.hook_attn_scores",),
    "attn.hook_result": ("attn.hook_z",),
    "ln2.hook_scale": ("hook_mlp_in",),
    "ln2.hook_normalized": ("hook_mlp_in",),
    "mlp.hook_post": ("mlp.hook_pre",),
}


def bases_of(point: HookPoint) -> tuple[str, ...]:
    """The hook names that ``point``'s tensor follows from by one cheap step; none if it does not.

    Scores follow from queries and keys only in a run without earlier keys.
    """
    prefix = f"blocks.{point.layer}."
    return tuple(prefix + base for base in _BASES.get(point.name.removeprefix(prefix), ()))


def derive(cache: ActivationCache, point: HookPoint) -> None:
    """Let ``cache`` make the tensor at ``point`` from those it follows from."""
    first, *others = bases_of(point)
    block = cache.model.backbone.layers[point.layer]
    attention = block.attention
    inside = point.name.removeprefix(f"blocks.{point.layer}.")
    make: Maker
    if inside in ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input"):
        heads = attention.heads

        def make(kept: ActivationCache) -> Tensor:
            return kept[first].unsqueeze(2).expand(-1, -1, heads, -1)

    elif inside.startswith("ln"):
        norm = block.input_layernorm if inside[2] == "1" else block.post_attention_layernorm
        part = 1 if inside.endswith("scale") else 0

        def make(kept: ActivationCache) -> Tensor:
            return layer_norm_parts(kept[first], norm)[part]

    elif inside == "attn.hook_attn_scores":
        scale = attention.scale

        def make(kept: ActivationCache) -> Tensor:
            return _scores(kept[first], kept[others[0]], kept.attention_mask, scale)

    elif inside == "attn.hook_pattern":
        dtype = attention.dense.weight.dtype

        def make(kept: ActivationCache) -> Tensor:
            return kept[first].softmax(dim=-1).to(dtype)

    elif inside == "mlp.hook_post":
        act = block.mlp.act

        def make(kept: ActivationCache) -> Tensor:
            return act(kept[first])

    else:
        weight = attention.dense.weight
        seen = weights_seen([weight])

        def make(kept: ActivationCache) -> Tensor:
            check_weights([weight], seen, point.name)
            return head_results(kept[first], weight.detach())

    cache.make_on_access(point.name, make)


def _scores(q: Tensor, k: Tensor, given: Tensor | None, scale: float) -> Tensor:
    """Scores from rotated queries and keys ``[batch, pos, head, d_head]`` of a whole text."""
    batch, pos = q.shape[:2]
    mask = attention_mask(given, batch, pos, 0, q.dtype, q.device)
    return masked_scores(q.transpose(1, 2), k.transpose(1, 2), mask, scale)


Weights = list[tuple[Tensor, int, torch.dtype]]


def weights_seen(parameters: Iterable[Tensor]) -> Weights:
    """The parameters, how often each was written to, and their dtypes; see ``check_weights``."""
    return [(p, 0 if p.is_inference() else p._version, p.dtype) for p in parameters]


def check_weights(parameters: Iterable[Tensor], seen: Weights, name: str) -> None:
    """Raise HookError if a weight was changed or replaced since ``weights_seen``.

    Writing through ``.data`` escapes PyTorch's count of changes, and so this check.
    """
    now = weights_seen(parameters)
    same = len(now) == len(seen) and all(
        new is old and changes == counted
        for (new, *changes), (old, *counted) in zip(now, seen, strict=True)
    )
    if not same:
        raise HookError(
            f"{name!r} is made on access, and the model's weights have changed since this run, so "
            "it would not be what that run computed. Name it in names_filter to store it."
        )


def residual_points(model: HookedNetwork, first: int, last: int) -> list[HookPoint]:
    """What a lean cache stores: the residual stream before each block and after the last one."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(first, last)]
    if last > first:
        names.append(f"blocks.{last - 1}.hook_resid_post")
    return [model.hook_points[name] for name in names]


class LeanReplay:
    """Runs single blocks again to make activations that a lean cache did not store."""

    def __init__(
        self,
        model: HookedNetwork,
        arguments: Mapping[str, Any],
        keeping: Keeping,
    ) -> None:
        """Remember how the model ran; refuse runs that could not be repeated exactly.

        Raises:
            HookError: hooks that write are active, dropout is on, a key-value cache was given, or
                tensors are to be cut or converted.
        """
        if keeping.dtype is not None or keeping.pos_slice is not None:
            raise HookError(
                "lean=True keeps whole residual streams in the model's dtype; cut or convert what "
                "you take out of the cache instead of passing pos_slice or dtype."
            )
        if model.training and any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout)):
            raise HookError(
                "lean=True repeats blocks, which dropout makes random. Call model.eval()."
            )
        if any(w.writes for p in model.hook_stack.placements for w in p.watchers):
            raise HookError(
                "lean=True repeats blocks without hooks, so what they changed would be missing. "
                "Cache without lean, or name what you need in names_filter."
            )
        if arguments.get("past_key_values") is not None:
            raise HookError("lean=True cannot repeat a run that began with past_key_values.")
        dropped = ("input_ids", "inputs_embeds", "labels", "start_at_layer", "stop_at_layer")
        self.arguments = {k: v for k, v in arguments.items() if k not in dropped}
        self.model = model
        self.seen = weights_seen(model.parameters())
        self._latest: tuple[int, ActivationCache] | None = None

    def serve(
        self, cache: ActivationCache, points: Iterable[HookPoint], first: int, last: int
    ) -> None:
        """Let ``cache`` make everything at ``points`` that layers ``first`` to ``last`` reach."""
        layers = self.model.config.num_hidden_layers
        embed = f"blocks.{first}.hook_resid_pre"
        for point in points:
            if point.layer is None:
                if point.name == "hook_embed":
                    if first == 0:
                        cache.make_on_access(point.name, lambda kept: kept[embed])
                elif last == layers:
                    cache.make_on_access(
                        point.name, functools.partial(self._make, point.name, layers)
                    )
            elif first <= point.layer < last:
                cache.make_on_access(
                    point.name, functools.partial(self._make, point.name, point.layer)
                )

    def _make(self, name: str, layer: int, kept: ActivationCache) -> Tensor:
        """The tensor at ``name``, from running block ``layer`` (or, past the last, the head)."""
        check_weights(self.model.parameters(), self.seen, name)
        if self._latest is None or self._latest[0] != layer:
            layers = self.model.config.num_hidden_layers
            start = f"blocks.{layer}.hook_resid_pre"
            if layer == layers:
                start = f"blocks.{layer - 1}.hook_resid_post"
            stop = None if layer == layers else layer + 1
            with self.model.hook_stack.suspended():
                residual = kept[start].to(self.model.backbone.embed_in.weight.device)
                _, made = self.model.run_with_cache(
                    residual, start_at_layer=layer, stop_at_layer=stop, **self.arguments
                )
            self._latest = layer, made
        return self._latest[1][name]
