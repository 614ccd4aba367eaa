"""A causal self-test: does every hook point do what the table says?

For each point the model is run on a few tokens and asked: does a tensor of the promised shape pass
here? Do the rows of attention patterns sum to one? And does changing the tensor change the output
(a point that can be edited without effect is a trap)? The test takes one run a point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.checks import name_not_finite
from neox_lab.family.structure import evaluating
from neox_lab.frames import make_frame
from neox_lab.hooks.table import axis_sizes, shape_at
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.identity import numbers_of
from neox_lab.model.outputs import ModelOutput
from neox_lab.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel


def check(model: HookedModel, tokens: Tensor | None = None) -> pd.DataFrame:
    """Try every hook point of ``model``.

    Args:
        model: any of the five classes.
        tokens: ids ``[batch, pos]`` to run on; None takes six spread over the vocabulary.

    Returns:
        One row a hook point: ``name``, ``shape`` that passed (None if nothing did),
        ``shape_right``, ``rows_sum_to_one`` (None except for patterns), ``change`` (largest
        change of the output when the tensor is changed), and ``ok``.

    Raises:
        InputError: ids of another shape.
    """
    name_not_finite("A weight", weights_not_finite(model))
    if tokens is None:
        vocab = model.config.vocab_size
        tokens = torch.arange(6, device=model.device)[None] * (vocab // 7) + vocab // 11
    model.prepare_inputs(tokens)  # an error in words for ids of another shape
    sizes = axis_sizes(model.config, *tokens.shape)
    # Dropout would change the output whatever hooks do.
    with evaluating(model), torch.no_grad(), model.hook_stack.suspended(but_splices=True):
        baseline = _numbers(model(tokens))
        rows = []
        with Progress(len(model.hook_points), "hook point") as bar:
            for point in model.hook_points.values():
                rows.append(_try(model, tokens, point, sizes, baseline))
                bar.update()
        return make_frame(rows)


def weights_not_finite(model: HookedModel) -> list[str]:
    """Names of the weights that hold NaN or infinity."""
    named = model.named_parameters()
    return [name for name, weight in named if not _is_finite(numbers_of(model, name, weight))]


def _is_finite(weight: Tensor) -> bool:
    """Whether all numbers are finite; no copy of a large weight is made."""
    low, high = weight.detach().aminmax() if weight.numel() else (weight.new_zeros(1),) * 2
    return bool(low.isfinite().all() and high.isfinite().all())


def _try(
    model: HookedModel, tokens: Tensor, point: HookPoint, sizes: dict[str, int], baseline: Tensor
) -> dict[str, Any]:
    """One row of the report."""
    seen: list[Tensor] = []

    def change(tensor: Tensor, hook: HookPoint) -> Tensor:
        seen.append(tensor.clone())
        return _changed(tensor, hook)

    output = model.run_with_hooks(tokens, [(point.name, change)], must_fire=False)
    effect = float((_numbers(output) - baseline).abs().nan_to_num(torch.inf).max())
    shape = tuple(seen[0].shape) if seen else None
    shape_right = shape == shape_at(point, sizes)
    sums = None
    if seen and point.name.endswith("hook_pattern"):
        rounding = max(1e-3, torch.finfo(seen[0].dtype).eps)  # each weight is rounded by itself
        sums = bool(((seen[0].float().sum(-1) - 1).abs() <= rounding).all())
    return {
        "name": point.name,
        "shape": shape,
        "shape_right": shape_right,
        "rows_sum_to_one": sums,
        "change": effect,
        "ok": shape_right and sums is not False and 0 < effect < torch.inf,
    }


def _changed(tensor: Tensor, hook: HookPoint) -> Tensor:
    """``tensor`` changed in a way that no later softmax or layer norm undoes."""
    if hook.name.endswith("hook_pattern"):
        return -0.5 * tensor
    if hook.name.endswith("hook_attn_scores"):  # minus infinity stays where it is
        return tensor + torch.arange(tensor.shape[-1], device=tensor.device)
    return tensor + tensor.roll(1, dims=-1) + 1.0


def _numbers(output: ModelOutput) -> Tensor:
    """All numbers of an output that a hook can influence, in one row."""
    names = ("last_hidden_state", "logits", "start_logits", "end_logits")
    parts = [output[name].float().flatten() for name in names if name in output]
    return torch.cat(parts)
