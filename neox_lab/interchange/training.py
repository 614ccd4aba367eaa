"""Training of a subspace: the base must answer as the causal model says."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from neox_lab.interchange.cached_runs import CachedRuns
from neox_lab.interchange.subspaces import Subspace
from neox_lab.progress import Progress

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls to 0 on a line."""
BOUNDARY_FASTER = 10
"""How many times the rotation's learning rate that of a boundary is."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a subspace is trained.

    Attributes:
        epochs: how often each pair is seen.
        batch_size: pairs in a step.
        learning_rate: the largest of Adam's.
        seed: of the first directions and of the order of pairs.
        progress: show a bar.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    progress: bool


def train(runs: CachedRuns, labels: Tensor, subspace: Subspace, settings: Settings) -> Tensor:
    """Train ``subspace`` in place; the model's weights stay what they are.

    Args:
        runs: of the pairs.
        labels: the right answer of each pair ``[pair]``.
        subspace: what is trained.
        settings: how.

    Returns:
        The loss of each step ``[step]``, float32 on the CPU.
    """
    per_epoch = math.ceil(len(runs) / settings.batch_size)
    total = per_epoch * settings.epochs
    named = dict(subspace.named_parameters())
    rates = {name: BOUNDARY_FASTER if name == "boundary" else 1 for name in named}
    groups = [
        {"params": [weight], "lr": settings.learning_rate * rates[name]}
        for name, weight in named.items()
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, total))
    chosen = torch.Generator().manual_seed(settings.seed)
    losses: list[Tensor] = []
    with (
        Progress(total=total, unit="step", silent=not settings.progress) as bar,
        torch.enable_grad(),
    ):
        for _ in range(settings.epochs):
            order = torch.randperm(len(runs), generator=chosen).to(labels.device)
            for rows in order.split(settings.batch_size):  # type: ignore[no-untyped-call]
                subspace.progress = len(losses) / max(1, total - 1)
                found = loss(runs, labels, subspace, rows)
                weights = list(named.values())
                for weight, gradient in zip(
                    weights, torch.autograd.grad(found, weights), strict=True
                ):
                    weight.grad = gradient
                optimizer.step()
                schedule.step()
                losses.append(found.detach())
                bar.update(note=f"loss {float(losses[-1]):.3f}")
    subspace.progress = 1.0
    return torch.stack(losses).float().cpu()


def loss(runs: CachedRuns, labels: Tensor, subspace: Subspace, rows: Tensor) -> Tensor:
    """The loss of some pairs: cross-entropy of their labels, and the subspace's penalty.

    Args:
        runs: of all pairs.
        labels: of all.
        subspace: what stands between base and source.
        rows: which pairs.
    """
    logits = runs.logits(rows, subspace)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(wide, labels[rows]) + subspace.penalty()


def _rate(step: int, total: int) -> float:
    """Share of the learning rate."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return max(0.0, (total - step) / max(1, total - warm))
