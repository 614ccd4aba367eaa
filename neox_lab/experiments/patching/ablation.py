"""What if a part were not there? Ablation is patching from activations that say nothing.

    zero         zeros
    mean         the mean over all tokens of reference texts
    mean_by_pos  the mean over reference texts, column by column
    resample     those of another reference text, drawn at random

Zeros are far from anything the model has seen; means and other texts keep a part's usual size
(Chan et al., "Causal scrubbing", 2022; Wang et al., arXiv:2211.00593, section 2.2).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from neox_lab.errors import InputError, nearest
from neox_lab.experiments.patching.prompts import Prompts, read_prompts
from neox_lab.experiments.patching.runs import Source, activations, needed_hooks
from neox_lab.experiments.patching.sites import Site
from neox_lab.model.network import Network

Value = Literal["zero", "mean", "mean_by_pos", "resample"]
VALUES = ("zero", "mean", "mean_by_pos", "resample")


def replacement(
    model: Any, inputs: Prompts, sites: list[Site], value: str, reference: Any, seed: int
) -> Source:
    """The activations that stand in for those of ``inputs``.

    Args:
        model: the model.
        inputs: the prompts that get ablated.
        sites: where.
        value: see the module.
        reference: texts for means and resampling; None for the inputs themselves.
        seed: of the draws.

    Raises:
        InputError: an unknown value, or reference texts that do not fit.
    """
    if value not in VALUES:
        raise InputError(
            f"value={value!r}; expected one of {', '.join(VALUES)}.{nearest(value, VALUES)}"
        )
    network, hooks = model.backbone, needed_hooks(sites)
    if value == "zero":
        return _zeros(network, inputs, hooks)
    texts = inputs if reference is None else read_prompts(model, reference, "reference")
    if value == "mean" and any(site.is_pattern for site in sites):
        raise InputError("A mean over tokens makes no attention pattern; use 'mean_by_pos'.")
    if value != "mean" and texts.ids.shape[1] != inputs.ids.shape[1]:
        raise InputError(
            f"{value!r} goes by columns: reference texts have {texts.ids.shape[1]}, the inputs "
            f"{inputs.ids.shape[1]}. Use texts of the same length, or value='mean'."
        )
    if value == "resample":
        return _resampled(network, inputs, texts, reference is None, hooks, seed)
    return _means(network, inputs, texts, hooks, over_columns=value == "mean")


def _zeros(network: Network, inputs: Prompts, hooks: list[str]) -> Source:
    _, own = activations(network, inputs.ids[:1], None, hooks)
    batch = len(inputs.ids)

    def source(hook: str, layer: int) -> Tensor:
        found = own(hook, layer)
        return found.new_zeros(1).expand(batch, *found.shape[1:])

    return source


def _means(
    network: Network, inputs: Prompts, texts: Prompts, hooks: list[str], over_columns: bool
) -> Source:
    _, run = activations(network, texts.ids, texts.mask, hooks)
    own, (batch, width) = texts.own, inputs.ids.shape

    def source(hook: str, layer: int) -> Tensor:
        found = run(hook, layer)
        if over_columns:
            return found[own].mean(dim=0).expand(batch, width, *found.shape[2:])
        return found.mean(dim=0).expand(batch, *found.shape[1:])

    return source


def _resampled(
    network: Network, inputs: Prompts, texts: Prompts, themselves: bool, hooks: list[str], seed: int
) -> Source:
    generator = torch.Generator().manual_seed(seed)
    batch, count = len(inputs.ids), len(texts.ids)
    if themselves and count < 2:
        raise InputError("To resample one text, give others: reference=[...].")
    if themselves:  # everyone gets another one
        drawn = torch.randint(1, count, (batch,), generator=generator)
        rows = (torch.arange(batch) + drawn) % count
    else:
        rows = torch.randint(count, (batch,), generator=generator)
    rows = rows.to(inputs.ids.device)
    _, run = activations(network, texts.ids, texts.mask, hooks)
    return lambda hook, layer: run(hook, layer)[rows]
