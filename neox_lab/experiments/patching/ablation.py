"""What if a part were not there? Ablation is patching from activations that say nothing.

    zero         zeros
    mean         the mean over all tokens of reference texts
    mean_by_pos  the mean over reference texts, column by column
    resample     those of another reference text, drawn at random

Zeros are far from anything the model has seen; means and other texts keep a part's usual size
(Chan et al., "Causal scrubbing", 2022; Wang et al., arXiv:2211.00593, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.errors import InputError, nearest
from neox_lab.experiments.patching.prompts import Prompts, PromptsLike, read_prompts
from neox_lab.experiments.patching.runs import Activations, run_and_keep
from neox_lab.experiments.patching.sites import Site
from neox_lab.experiments.patching.sources import GivenActivations

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Value = Literal["zero", "mean", "mean_by_pos", "resample"]
VALUES = ("zero", "mean", "mean_by_pos", "resample")


@torch.no_grad()
def ablation_source(
    model: HookedModel,
    inputs: Prompts,
    sites: Sequence[Site],
    value: str,
    reference: PromptsLike | None,
    seed: int,
) -> GivenActivations:
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
    hooks = list(dict.fromkeys(site.hook for site in sites))
    if value == "zero":
        _, found = run_and_keep(model, Prompts(inputs.ids[:1], None), hooks)
        return GivenActivations(_zeros(found, inputs))
    texts = inputs if reference is None else read_prompts(model, reference, "reference")
    if value == "mean" and any(site.is_pattern for site in sites):
        raise InputError("A mean over tokens makes no attention pattern; use 'mean_by_pos'.")
    if value != "mean" and texts.ids.shape[1] != inputs.ids.shape[1]:
        raise InputError(
            f"{value!r} goes by columns: reference texts have {texts.ids.shape[1]}, the inputs "
            f"{inputs.ids.shape[1]}. Use texts of the same length, or value='mean'."
        )
    if value == "resample":
        rows = _draw(len(inputs.ids), len(texts.ids), reference is None, seed).to(texts.ids.device)
    _, found = run_and_keep(model, texts, hooks)
    if value == "resample":
        return GivenActivations(lambda hook, layer: found(hook, layer)[rows])
    means = _means_over_tokens if value == "mean" else _means_by_column
    return GivenActivations(means(found, inputs, texts))


def _zeros(found: Activations, inputs: Prompts) -> Activations:
    def zeros(hook: str, layer: int) -> Tensor:
        like = found(hook, layer)
        return like.new_zeros(1).expand(len(inputs.ids), *like.shape[1:])

    return zeros


def _means_over_tokens(found: Activations, inputs: Prompts, texts: Prompts) -> Activations:
    def means(hook: str, layer: int) -> Tensor:
        of_texts = found(hook, layer)
        return of_texts[texts.own].mean(dim=0).expand(*inputs.ids.shape, *of_texts.shape[2:])

    return means


def _means_by_column(found: Activations, inputs: Prompts, texts: Prompts) -> Activations:
    def means(hook: str, layer: int) -> Tensor:
        of_texts = found(hook, layer)
        return of_texts.mean(dim=0).expand(len(inputs.ids), *of_texts.shape[1:])

    return means


def _draw(batch: int, count: int, themselves: bool, seed: int) -> Tensor:
    """For each of ``batch`` texts one of ``count`` reference texts ``[batch]``, never itself.

    Raises:
        InputError: a single text and no other.
    """
    generator = torch.Generator().manual_seed(seed)
    if not themselves:
        return torch.randint(count, (batch,), generator=generator)
    if count < 2:
        raise InputError("To resample one text, give others: reference=[...].")
    drawn = torch.randint(1, count, (batch,), generator=generator)
    return (torch.arange(batch) + drawn) % count
