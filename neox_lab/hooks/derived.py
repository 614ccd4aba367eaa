"""Activations that follow from a stored one by one cheap step.

What each head reads is the residual stream, what it writes is its ``z`` times a matrix: storing
them would take ``head`` times the memory of the residual stream. Scores and patterns follow from
queries and keys: storing them would take memory that grows with the square of the length. So a
cache makes them when asked for.

Which points follow from which stands in the table (``Row.follows_from``); the step stands here,
in ``STEPS``. What a step makes is exactly what a full cache would hold, or an error: the weights
it needs must not have changed since the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, dtype, nn

from neox_lab.errors import HookError
from neox_lab.model.attention import head_results, masked_scores
from neox_lab.model.block import Block, layer_norm_parts
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.masking import attention_mask
from neox_lab.model.parts import answers, is_hooked, plain_layer_norm, runs

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedNetwork

Maker = Callable[[Mapping[str, Tensor]], Tensor]
"""Makes one activation from others, given by full name."""


class Step(NamedTuple):
    """The way from some activations of a block to another.

    Attributes:
        run: from the tensors it follows from, in the table's order, to the one that is made.
        weights: the parameters that ``run`` multiplies with or adds.
    """

    run: Callable[..., Tensor]
    weights: Sequence[Tensor] = ()


def _head_input(block: Block, _mask: Tensor | None) -> Step:
    heads = block.attention.heads
    return Step(lambda resid: resid.unsqueeze(2).expand(-1, -1, heads, -1))


def _layer_norm_part(name: str, part: int) -> Callable[[Block, Tensor | None], Step]:
    """The step to ``hook_normalized`` (0) or ``hook_scale`` (1) of the layer norm ``name``."""

    def step(block: Block, _mask: Tensor | None) -> Step:
        norm: nn.LayerNorm = getattr(block, name)
        return Step(lambda resid: layer_norm_parts(resid, norm)[part])

    return step


def _layer_norm(name: str) -> Callable[[Block, Tensor | None], Step]:
    """The step through all of the layer norm ``name``, weight and bias included."""

    def step(block: Block, _mask: Tensor | None) -> Step:
        norm: nn.LayerNorm = getattr(block, name)

        def run(resid: Tensor) -> Tensor:
            plain = plain_layer_norm(norm, name)
            weight, bias = plain.weight.detach(), plain.bias.detach()
            return F.layer_norm(resid, plain.normalized_shape, weight, bias, plain.eps)

        return Step(run, [*norm.parameters()])

    return step


def _scores(block: Block, mask: Tensor | None) -> Step:
    scale = block.attention.scale

    def run(q: Tensor, k: Tensor) -> Tensor:
        """From rotated queries and keys ``[batch, pos, head, d_head]`` of a whole text."""
        batch, pos = q.shape[:2]
        visible = attention_mask(mask, batch, pos, 0, q.dtype, q.device)
        return masked_scores(q.transpose(1, 2), k.transpose(1, 2), visible, scale)

    return Step(run)


def _pattern(block: Block, _mask: Tensor | None) -> Step:
    model_dtype = next(block.parameters()).dtype
    return Step(lambda scores: scores.softmax(dim=-1).to(model_dtype))


def _head_results(block: Block, _mask: Tensor | None) -> Step:
    attention, dense = block.attention, block.attention.dense
    weights = [p for name, p in dense.named_parameters() if not name.endswith("bias")]
    width = attention.heads * attention.d_head
    # An adapter may be turned off or merged, which changes no weight that could be seen.
    before = answers(dense, width)

    def changed() -> bool:
        if before is None:
            return attention.dense is not dense
        now = answers(attention.dense, width)
        return now is None or not torch.equal(before, now)

    def run(z: Tensor) -> Tensor:
        if changed():
            raise HookError(
                "'attn.hook_result' is made on access, and what stands at attention.dense has "
                "changed since this run. Name it in names_filter to store it."
            )
        return head_results(z, attention.writing().weight.detach())

    return Step(run, weights)


def _neurons(block: Block, _mask: Tensor | None) -> Step:
    return Step(lambda pre: block.neurons().act(pre))


_LN1, _LN2 = "input_layernorm", "post_attention_layernorm"

STEPS: dict[str, Callable[[Block, Tensor | None], Step]] = {
    "hook_attn_in": _head_input,
    "hook_q_input": _head_input,
    "hook_k_input": _head_input,
    "hook_v_input": _head_input,
    "ln1.hook_scale": _layer_norm_part(_LN1, 1),
    "ln1.hook_normalized": _layer_norm_part(_LN1, 0),
    "attn.hook_in": _layer_norm(_LN1),
    "attn.hook_attn_scores": _scores,
    "attn.hook_pattern": _pattern,
    "attn.hook_result": _head_results,
    "ln2.hook_scale": _layer_norm_part(_LN2, 1),
    "ln2.hook_normalized": _layer_norm_part(_LN2, 0),
    "mlp.hook_in": _layer_norm(_LN2),
    "mlp.hook_post": _neurons,
}
"""From a point's name inside its block to its step, given the block and the run's mask."""


def follows(point: HookPoint, points: Mapping[str, HookPoint], past: bool) -> bool:
    """Whether the tensor at ``point`` follows from others of its run by one cheap step.

    Args:
        point: where.
        points: all hook points.
        past: whether the run began with earlier keys. What reaches back to them does not follow
            from queries and keys of the run itself.
    """
    bases = [points[name] for name in point.follows_from]
    reaches_back = "key_pos" in point.axes and not any("key_pos" in base.axes for base in bases)
    return bool(bases) and not (past and reaches_back)


def is_made_as_in_the_run(point: HookPoint, block: Block) -> bool:
    """Whether the step to ``point`` is what ``block`` does, or only an error could say.

    What a module of another kind, or one with PyTorch hooks, hands to the next is kept instead.

    Args:
        point: one that ``follows``.
        block: which it is in.
    """
    reader = {"attn.hook_in": (_LN1, block.attention), "mlp.hook_in": (_LN2, block.mlp)}
    name = point.name.removeprefix(f"blocks.{point.layer}.")
    if name not in reader:
        return True
    norm, module = getattr(block, reader[name][0]), reader[name][1]
    plain = runs(norm, nn.LayerNorm.forward) and not is_hooked(norm)
    return plain and not module._forward_pre_hooks


def maker_of(point: HookPoint, model: HookedNetwork, mask: Tensor | None) -> Maker:
    """What makes the tensor at ``point`` from those it follows from.

    Args:
        point: one that ``follows``.
        model: the model that ran.
        mask: the ``attention_mask`` of the run.

    Returns:
        The maker; it raises HookError if weights it needs have changed since this call.
    """
    assert point.layer is not None
    block = model.backbone.at_home(point.layer)
    run, weights = STEPS[point.name.removeprefix(f"blocks.{point.layer}.")](block, mask)
    seen = weights_seen(weights)

    def make(activations: Mapping[str, Tensor]) -> Tensor:
        check_weights(weights, seen, point.name)
        return run(*(activations[name] for name in point.follows_from))

    return make


Weights = list[tuple[Tensor, int, dtype]]


def weights_seen(parameters: Iterable[Tensor]) -> Weights:
    """The parameters, how often each was written to, and their dtypes; see ``check_weights``."""
    return [(p, 0 if p.is_inference() else p._version, p.dtype) for p in parameters]


def unchanged(parameters: Iterable[Tensor], seen: Weights) -> bool:
    """Whether these are the weights of ``weights_seen``, with no change that PyTorch counted."""
    now = weights_seen(parameters)
    return len(now) == len(seen) and all(
        new is old and changes == counted
        for (new, *changes), (old, *counted) in zip(now, seen, strict=True)
    )


def check_weights(parameters: Iterable[Tensor], seen: Weights, name: str) -> None:
    """Raise if a weight was changed or replaced since ``weights_seen``.

    Writing through ``.data`` escapes PyTorch's count of changes, and so this check.

    Raises:
        HookError: it was.
    """
    if not unchanged(parameters, seen):
        raise HookError(
            f"{name!r} is made on access, and the model's weights have changed since this run, so "
            "it would not be what that run computed. Name it in names_filter to store it."
        )
