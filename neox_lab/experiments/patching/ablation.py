"""What if a part were not there? Ablation is patching from activations that say nothing.

    zero         zeros
    mean         the mean over all tokens of reference texts
    mean_by_pos  the mean over reference texts, column by column
    resample     those of another reference text, drawn at random

Padding is no part of a text: no mean counts it, and a text is resampled from one that has tokens
wherever it has its own (attention patterns: from one of the same length). A text that is longer
than all others needs a reference of its length.

Zeros are far from anything the model has seen; means and other texts keep a part's usual size
(Chan et al., "Causal scrubbing", 2022; Wang et al., arXiv:2211.00593, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.errors import InputError
from neox_lab.experiments.patching.prompts import Prompts, PromptsLike, read_prompts
from neox_lab.experiments.patching.runs import PATTERN, Activations, Stream
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
        InputError: an unknown value, or reference texts that do not fit: of another length, or
            padded where a text has tokens.
    """
    check("value", value, one_of(*VALUES), InputError)
    hooks = list(dict.fromkeys(site.hook for site in sites))
    if value == "zero":
        found = Stream(model, Prompts(inputs.ids[:1], None), hooks)
        return GivenActivations(_zeros(found, inputs), found)
    texts = inputs if reference is None else read_prompts(model, reference, "reference")
    patterns = any(site.is_pattern for site in sites)
    _check_fit(inputs, texts, value, patterns)
    if value == "resample":
        rows = _draw(inputs, texts, reference is None, seed, alike=patterns)
    found = Stream(model, texts, hooks)
    if value == "resample":
        return GivenActivations(lambda hook, layer: found(hook, layer)[rows], found)
    means = _means_over_tokens if value == "mean" else _means_by_column
    return GivenActivations(means(found, inputs, texts), found)


def _check_fit(inputs: Prompts, texts: Prompts, value: str, patterns: bool) -> None:
    """Check that activations of ``texts`` can stand in for those of ``inputs``.

    Raises:
        InputError: they cannot.
    """
    if value == "mean":
        if patterns:
            raise InputError("A mean over tokens makes no attention pattern; use 'mean_by_pos'.")
        return
    if texts.ids.shape[1] != inputs.ids.shape[1]:
        raise InputError(
            f"{value!r} goes by columns: reference texts have {texts.ids.shape[1]}, the inputs "
            f"{inputs.ids.shape[1]}. Use texts of the same length, or value='mean'."
        )
    if value == "resample":
        return  # each text finds one that fits, see ``_draw``
    if patterns and bool((torch.cat((inputs.own, texts.own)) != texts.own[0]).any()):
        raise InputError(
            "Texts of different lengths have no mean attention pattern: longer ones attend to "
            "where shorter ones are padded. Use texts of the same length, or another value."
        )
    alone = (inputs.own & ~texts.own.any(dim=0)).nonzero()
    if len(alone):
        raise InputError(
            f"Text {int(alone[0, 0])} has a token in column {int(alone[0, 1])}, where all "
            "reference texts are padded. Give a reference text that is as long."
        )


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
    """Means over the texts that have a token in a column."""

    def means(hook: str, layer: int) -> Tensor:
        of_texts = found(hook, layer)
        mean = of_texts.mean(dim=0)
        if texts.mask is not None and hook != PATTERN:  # patterns are all of one length
            own = texts.own.view(*texts.own.shape, *[1] * (of_texts.dim() - 2))
            total = torch.where(own, of_texts, 0).sum(dim=0)
            mean = total / own.sum(dim=0).clamp(min=1).to(total.dtype)
        return mean.expand(len(inputs.ids), *of_texts.shape[1:])

    return means


def _draw(inputs: Prompts, texts: Prompts, themselves: bool, seed: int, alike: bool) -> Tensor:
    """For each text one of the reference texts ``[batch]``, never itself.

    Only those are drawn that have tokens wherever it has; with ``alike``, nowhere else.

    Raises:
        InputError: there is none.
    """
    ours, theirs = inputs.own[:, None], texts.own[None]
    fits = ((ours == theirs) if alike else (theirs | ~ours)).all(dim=-1)  # [batch, text]
    if themselves:
        fits.fill_diagonal_(False)
    without = (~fits.any(dim=1)).nonzero()
    if len(without):
        row = int(without[0])
        raise InputError(
            f"To resample text {row}, give others of its {inputs.lengths[row]} tokens or more: "
            "reference=[...]."
        )
    generator = torch.Generator().manual_seed(seed)
    lots = torch.rand(fits.shape, generator=generator, dtype=torch.float32).to(fits.device)
    return lots.masked_fill(~fits, -1).argmax(dim=1)
