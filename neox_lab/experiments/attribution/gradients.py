"""Activations and the metric's gradient at them, from one run forward and one back.

Gradients are those of the paths that begin at a hook point: the residual stream and what the MLP
reads from it may be the same numbers, but each has its own gradient. Weights get none; their
``.grad`` stays what it was, and frozen models work as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import check, whole
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import BoundMetric, output_logits
from neox_lab.experiments.prompt_pairs import Batch
from neox_lab.hooks import reads_only
from neox_lab.model.attention import head_results
from neox_lab.model.hook_points import HookFunction, HookPoint

if TYPE_CHECKING:
    pass

MOST_STEPS = 4096  # the places of more take longer to find than they are worth
NO_GRADIENT = (
    "The metric has no gradient at the logits, as a count or an argmax has none. Use one that "
    "changes smoothly, such as logit_difference, or exact runs."
)


class Run(NamedTuple):
    """What one run forward and back gives.

    Attributes:
        value: the metric, a scalar.
        rows: the metric of each row ``[batch]``, or None.
        activations: by hook name.
        gradients: by hook name; of ``value``, or, with ``rows``, of each row's own number.
    """

    value: Tensor
    rows: Tensor | None
    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def run(
    batch: Batch,
    names: Sequence[str],
    reading: Sequence[str] = (),
    embeds: Tensor | None = None,
    replaced: Mapping[str, Tensor] | None = None,
) -> Run:
    """Run ``batch`` and backpropagate its metric to hook points.

    Args:
        batch: what to run.
        names: full hook names.
        reading: hook names whose activations are wanted without a gradient.
        embeds: embeddings to run on instead of the tokens' own, ``[batch, pos, d_model]``.
        replaced: for some of ``names``, what stands there instead.

    Raises:
        InputError: the metric has no gradient.
    """
    seen: dict[str, Tensor] = {}
    given = replaced or {}

    def begin(tensor: Tensor, _: HookPoint) -> Tensor:
        """Let gradients end at the embeddings, whether or not weights want any."""
        start = tensor if embeds is None else embeds.to(tensor)
        seen["hook_embed"] = start.detach().requires_grad_()
        return seen["hook_embed"]

    def keep(tensor: Tensor, point: HookPoint) -> Tensor:
        if point.name in given:
            tensor = given[point.name].to(tensor).detach().requires_grad_()
        seen[point.name] = tensor  # a copy of its own, which only what comes after it reads
        return tensor

    @reads_only
    def read(tensor: Tensor, point: HookPoint) -> None:
        seen[point.name] = tensor

    hooks: list[tuple[str, HookFunction]] = [("hook_embed", begin), *even_padding(batch)]
    hooks += [(name, keep) for name in names if name != "hook_embed"]
    hooks += [(name, read) for name in reading if name not in names]
    with torch.enable_grad():
        output = batch.model.run_with_hooks(batch.ids, hooks, **batch.arguments)
        value, rows = batch.measure(output_logits(output))
        if not value.requires_grad:
            raise InputError(NO_GRADIENT)
        wanted = [seen[name] for name in names]
        gradients = torch.autograd.grad(
            value if rows is None else rows.sum(), wanted, allow_unused=True, materialize_grads=True
        )
    home = value.device  # layers may be on others
    return Run(
        value.detach(),
        None if rows is None else rows.detach(),
        {name: tensor.detach().to(home) for name, tensor in seen.items()},
        {name: found.to(home) for name, found in zip(names, gradients, strict=True)},
    )


def even_padding(batch: Batch, copies: int = 1) -> list[tuple[str, HookFunction]]:
    """Hooks that end gradients where padding in front of a text looks at something.

    It looks evenly at everything, whatever the scores are; autograd, in transformers as here, still
    goes back through them. Metrics that read padding would see it.

    Args:
        batch: what runs.
        copies: of it, side by side.
    """
    ahead = batch.own.cumsum(dim=1).repeat(copies, 1)[:, None, :, None] == 0

    def even(scores: Tensor, _: HookPoint) -> Tensor:
        return torch.where(ahead.to(scores.device), scores.detach(), scores)

    return [("blocks.*.attn.hook_attn_scores", even)] if bool(ahead.any()) else []


def along_path(
    batch: Batch,
    names: Sequence[str],
    start: Tensor,
    end: Tensor,
    steps: int,
    method: str = "eap-ig",
) -> dict[str, Tensor]:
    """Gradients averaged over embeddings on the straight line from ``start`` to ``end``.

    Args:
        batch: what to run.
        names: full hook names.
        start: embeddings ``[batch, pos, d_model]``.
        end: likewise.
        steps: see ``rule_of``.
        method: see ``rule_of``.
    """
    totals: dict[str, Tensor] = {}
    for place, weight in zip(*rule_of(method, steps), strict=True):
        found = run(batch, names, embeds=start + place * (end - start)).gradients
        for name, gradient in found.items():
            totals[name] = totals.get(name, 0) + weight * gradient
    return totals


def rule_of(method: str, steps: int) -> tuple[list[float], list[float]]:
    """Where an estimate takes its gradients, and with which weights.

    Args:
        method: ``"eap"`` at the start alone, ``"both-ends"`` at the start and the end; any other
            along the whole way.
        steps: gradients along the whole way.

    Returns:
        Places from 0, the start, to 1, the end; weights that add up to 1.
    """
    if method == "eap":
        return [0.0], [1.0]
    if method == "both-ends":
        return [0.0, 1.0], [0.5, 0.5]
    return quadrature(steps)


def quadrature(steps: int) -> tuple[list[float], list[float]]:
    """Places and weights of Gauss and Legendre's rule on the interval from 0 to 1.

    Its sum is the integral of polynomials up to degree 2 steps - 1.

    Raises:
        InputError: fewer than one step.
    """
    steps = check("steps", steps, whole(least=1, most=MOST_STEPS), InputError)
    places, weights = np.polynomial.legendre.leggauss(steps)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


@torch.no_grad()
def activations(
    batch: Batch, names: Sequence[str]
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """The metric, the metric of each row, and activations by name, of a plain run.

    Where nothing of a user's stands in the network, only the logits that the metric reads are
    computed, and what heads write is made of what they read.
    """
    model = batch.model
    if model.hook_stack.placements:
        output, cache = model.run_with_cache(batch.ids, list(names), **batch.arguments)
        value, rows = batch.measure(output_logits(output))
        return value, rows, {name: cache[name] for name in names}
    layers = model.config.num_hidden_layers
    last = f"blocks.{layers - 1}.hook_resid_post"
    kept = {name: name.replace("attn.hook_result", "attn.hook_z") for name in names}
    _, cache = model.run_with_cache(
        batch.ids, [last, *kept.values()], stop_at_layer=layers, **batch.arguments
    )
    found = batch.measure_streams(cache[last])[0]
    rows = found if isinstance(batch.metric, BoundMetric) else None
    tensors = {}
    for name, made_of in kept.items():
        tensors[name] = cache[made_of]
        if name != made_of:
            block = model.backbone.at_home(int(name.split(".")[1]))
            tensors[name] = head_results(tensors[name], block.attention.projection().weight)
    return found.mean(), rows, tensors
