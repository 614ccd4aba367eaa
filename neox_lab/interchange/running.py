"""One run of bases in which sites carry what they carry in runs of sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.experiments.patching.prompts import (
    Prompts,
    PromptsLike,
    PromptsOrCache,
    read_prompts,
)
from neox_lab.hooks.cache import ActivationCache
from neox_lab.interchange.sites import PlacedSite, Site, place
from neox_lab.model.hook_points import HookFunction, HookPoint

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Swap: TypeAlias = "tuple[Site, PromptsOrCache]"
"""A site, and where what stands there comes from."""


def run(model: HookedModel, base: PromptsLike, *swaps: Swap) -> Any:
    """Run bases in which sites carry what they carry in runs of sources.

        nl.interchange.run(model, base, (site, source))
        nl.interchange.run(model, base, (site, source), (other_site, other_source))

    Every source runs by itself, without any exchange. A list of texts is padded on the left. In a
    ``with model.spliced(dictionary)`` block sites may be the dictionary's: ``hook_sae_acts`` with
    unit vectors as the subspace exchanges single features.

    Args:
        model: any class.
        base: the prompts that get something.
        swaps: pairs of a site and the prompts it is filled from, one source for each base; or the
            ``ActivationCache`` of a run of this model.

    Returns:
        What ``model(...)`` returns; without gradients.

    Raises:
        InputError: prompts, positions, heads or a subspace that do not fit, see ``Site``.
        HookNameError: there is no such hook point.
        CheckpointError: a cache of another model.
    """
    refuse_dropout(model)
    prompts = read_prompts(model, base, "base")
    hooks: list[tuple[str, HookFunction]] = []
    for swap in swaps:
        if not isinstance(swap, tuple) or len(swap) != 2:
            raise InputError(f"{shown(swap, 80)} is no exchange; expected (site, source).")
        hooks.append(_hook(model, prompts, *swap))
    if not hooks:
        raise InputError("There is nothing to exchange; expected (site, source).")
    with torch.no_grad():
        return model.run_with_hooks(prompts.ids, hooks, attention_mask=prompts.mask)


def _hook(
    model: HookedModel, base: Prompts, site: Site, source: PromptsOrCache
) -> tuple[str, HookFunction]:
    """The hook that writes what a source had."""
    if isinstance(source, ActivationCache):
        source.check_model(model)
        prompts = _prompts_of(source, base)
        placed = place(site, model, base, prompts)
        values = placed.read(source[placed.point.name].to(model.device), placed.source_columns)
    else:
        prompts = read_prompts(model, source, "source")
        placed = place(site, model, base, prompts)
        values = source_values(model, prompts, placed)

    def exchange(tensor: Tensor, point: HookPoint) -> None:
        own = placed.read(tensor, placed.columns)
        placed.write(tensor, placed.columns, exchanged(own, values, site.subspace))

    return placed.point.name, exchange


def exchanged(own: Tensor, other: Tensor, subspace: Tensor | None) -> Tensor:
    """``own`` with the part inside a subspace taken from ``other``, ``[batch, width]``.

    own + (other - own) R Rᵀ, without the matrix R Rᵀ.
    """
    if subspace is None:
        return other
    wide = torch.promote_types(own.dtype, torch.float32)  # rounded columns are not orthonormal
    directions = subspace.to(own.device, wide)
    return own + ((other - own).to(wide) @ directions @ directions.T).to(own.dtype)


def source_values(model: HookedModel, source: Prompts, placed: PlacedSite) -> Tensor:
    """What sources have at a site, ``[batch, width]``; layers above it do not run."""
    stop = None if placed.point.layer is None else placed.point.layer + 1
    if placed.point.name == "hook_embed":
        stop = 0
    with torch.no_grad():
        _, cache = model.run_with_cache(
            source.ids, placed.point.name, stop_at_layer=stop, attention_mask=source.mask
        )
    return placed.read(cache[placed.point.name], placed.source_columns)


def _prompts_of(cache: ActivationCache, base: Prompts) -> Prompts:
    """The prompts of a cache's run.

    Raises:
        InputError: the run began with vectors.
    """
    ids, mask = cache.input_ids, cache.attention_mask
    if ids is None or (mask is not None and mask.dim() != 2):
        raise InputError(
            "The cache does not know the tokens of its run, so positions in it cannot be counted. "
            "Give the prompts, or the cache of a run that began with tokens."
        )
    ids = ids.to(base.ids.device)
    return Prompts(ids, None if mask is None else mask.to(base.ids.device).expand_as(ids))
