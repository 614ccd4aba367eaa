"""Dictionaries in a network by plain hooks and dense matrices, and gradients by hand."""

from __future__ import annotations

from typing import Any

import torch
from dictionaries import dense
from torch import Tensor

from neox_lab.experiments.metrics import bind, output_logits


def padded(ids: Tensor) -> dict[str, Tensor]:
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


class Hands:
    """All dictionaries in the network by plain hooks; a run in which nodes have other values."""

    def __init__(self, model: Any, ours: list[Any], inputs: Any, metric: Any) -> None:
        self.model, self.ours, self.inputs = model, ours, inputs
        self.metric = bind(metric, model, inputs)
        self.acts: dict[str, Tensor] = {}
        self.errors: dict[str, Tensor] = {}

    def run(self, change: Any = None) -> Tensor:
        """The metric of each text; ``change(site, acts, error)`` returns both anew."""
        read: dict[str, Tensor] = {}
        hooks: list[Any] = []
        for ours in self.ours:

            def write(target: Tensor, hook: Any, ours: Any = ours) -> Tensor:
                x = read.get(hook.name, target)
                acts = ours.encode(x).dense()
                error = target - dense(ours, acts, x)
                self.acts[hook.name], self.errors[hook.name] = acts, error
                if change is not None:
                    acts, error = change(hook.name, acts, error)
                return dense(ours, acts, x) + error

            if ours.is_transcoder:

                def keep(x: Tensor, hook: Any, site: str = ours.site_out) -> None:
                    read[site] = x

                hooks.append((ours.site_in, keep))
            hooks.append((ours.site_out, write))
        mask = self.inputs["attention_mask"]
        ids = self.inputs["input_ids"]
        output = self.model.run_with_hooks(ids, hooks, attention_mask=mask)
        return self.metric.per_row(output_logits(output))


WEIGHTS = ((0.5 - 0.15**0.5, 5 / 18), (0.5, 8 / 18), (0.5 + 0.15**0.5, 5 / 18))
"""Places and weights of Gauss and Legendre's rule with three steps."""


def mean_slopes(
    hands: Hands, other: Hands | None, site: str
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """Change of a site's activations and error, 0 at padding, and the mean gradient on the way."""
    hands.run()
    start = [hands.acts[site].detach(), hands.errors[site].detach()]
    end = [torch.zeros_like(x) for x in start]
    if other is not None:
        end = [other.acts[site].detach(), other.errors[site].detach()]
    slopes = [torch.zeros_like(x) for x in start]
    for place, weight in WEIGHTS:
        between = [
            (a + place * (b - a)).detach().requires_grad_() for a, b in zip(start, end, strict=True)
        ]

        def put(at: str, acts: Tensor, error: Tensor, between: list[Tensor] = between) -> Any:
            return between if at == site else (acts, error)

        gradients = torch.autograd.grad(hands.run(put).sum(), between)
        slopes = [s + weight * g for s, g in zip(slopes, gradients, strict=True)]
    mask = hands.inputs["attention_mask"][..., None]
    acts, error = ((b - a) * mask for a, b in zip(start, end, strict=True))
    return (acts, error), slopes
