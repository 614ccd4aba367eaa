"""``patching``: TransformerLens's functions, on this package's sweeps.

A ``get_act_patch_*`` is one sweep, computed at once, unless it is asked for what only runs of their
own can answer: cells of a table (``index_df``), or hooks that were added to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

import neox_lab.experiments.patching as native
from neox_lab.experiments.patching import (
    layer_head_dest_src_pos_pattern_patch_setter,
    layer_head_pattern_patch_setter,
    layer_head_pos_pattern_patch_setter,
    layer_head_vector_patch_setter,
    layer_pos_head_vector_patch_setter,
    layer_pos_patch_setter,
    make_df_from_ranges,
)

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.cache import ActivationCache
    from neox_lab.compat.transformer_lens.model import HookedTransformer
    from neox_lab.experiments.metrics import Metric
    from neox_lab.experiments.patching.generic import PatchSetter

_SETTERS: dict[str, tuple[str, PatchSetter, tuple[str, ...]]] = {
    **{
        name: (name, layer_pos_patch_setter, ("layer", "pos"))
        for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")
    },
    **{
        f"attn_head_{part}_by_pos": (
            "z" if part == "out" else part,
            layer_pos_head_vector_patch_setter,
            ("layer", "pos", "head"),
        )
        for part in ("out", "q", "k", "v")
    },
    **{
        f"attn_head_{part}_all_pos": (
            "z" if part == "out" else part,
            layer_head_vector_patch_setter,
            ("layer", "head"),
        )
        for part in ("out", "q", "k", "v")
    },
    "attn_head_pattern_all_pos": ("pattern", layer_head_pattern_patch_setter, ("layer", "head")),
    "attn_head_pattern_by_pos": (
        "pattern",
        layer_head_pos_pattern_patch_setter,
        ("layer", "head_index", "dest_pos"),
    ),
    "attn_head_pattern_dest_src_pos": (
        "pattern",
        layer_head_dest_src_pos_pattern_patch_setter,
        ("layer", "head_index", "dest_pos", "src_pos"),
    ),
}
_AT_ONCE = (
    "attn_head_all_pos_every",
    "attn_head_by_pos_every",
    "block_every",
    "direct_path",
    "direct_path_all_sources",
)


def generic_activation_patch(
    model: HookedTransformer,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric,
    patch_setter: PatchSetter,
    activation_name: str,
    **more: Any,
) -> Any:
    """One run a cell, see ``nl.patching.generic_activation_patch``; added hooks act on each.

    Args:
        model: the model, with its hooks.
        corrupted_tokens: ids ``[batch, pos]``.
        clean_cache: of a run whose activations are patched in.
        patching_metric: from logits ``[batch, pos, vocab]`` to one number.
        patch_setter: one of the six of this module, or one of your own.
        activation_name: short name of an activation, such as ``"resid_pre"``.
        more: ``index_axis_names`` or ``index_df``, and ``return_index_df``.
    """
    given = (corrupted_tokens, clean_cache, patching_metric, patch_setter, activation_name)
    with model.in_force():
        return native.generic_activation_patch(model.native, *given, **more)


def _patch(
    name: str,
    model: HookedTransformer,
    corrupted_tokens: Tensor,
    clean_cache: ActivationCache,
    patching_metric: Metric,
    **more: Any,
) -> Any:
    """``get_act_patch_<name>``."""
    given = (corrupted_tokens, clean_cache, patching_metric)
    if not more and not any(point.has_hooks() for point in model.hook_points()):
        return getattr(native, f"get_act_patch_{name}")(model.native, *given)
    activation, setter, axes = _SETTERS[name]
    if "index_df" not in more:
        more["index_axis_names"] = axes
    return generic_activation_patch(model, *given, setter, activation, **more)


def _at_once(name: str, model: HookedTransformer, *given: Any, **more: Any) -> Tensor:
    """``get_act_patch_<name>``, for what is several sweeps or none."""
    found: Tensor = getattr(native, f"get_act_patch_{name}")(model.native, *given, **more)
    return found


def __getattr__(name: str) -> Callable[..., Any]:
    """One of the patching functions."""
    short = name.removeprefix("get_act_patch_")
    if short in _SETTERS:
        return partial(_patch, short)
    if short in _AT_ONCE:
        return partial(_at_once, short)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All there is, the patching functions included."""
    return sorted({*globals(), *(f"get_act_patch_{name}" for name in (*_SETTERS, *_AT_ONCE))})


__all__ = [
    "generic_activation_patch",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "make_df_from_ranges",
]
