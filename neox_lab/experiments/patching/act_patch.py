"""TransformerLens's patching functions, as other names of ``sweep``.

    get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric)   [layer, pos]

Same arguments, same axes, same numbers. ``patching_metric`` is a function from logits
``[batch, pos, vocab]`` to a scalar; a ``logit_difference`` will do and is many times faster,
because then only two logits are made.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.sweeping import sweep
from neox_lab.hooks.cache import ActivationCache


class ActPatch(Protocol):
    """A patching function of TransformerLens."""

    def __call__(
        self, model: Any, corrupted_tokens: Any, clean_cache: ActivationCache, metric: Metric, /
    ) -> Tensor:
        """The metric of each cell."""


def _sweep_of(*sites: str) -> ActPatch:
    """The function that sweeps ``sites`` (several are stacked in front)."""

    def get_act_patch(
        model: Any,
        corrupted_tokens: Any,
        clean_cache: ActivationCache,
        patching_metric: Metric,
        /,
    ) -> Tensor:
        asked = sites[0] if len(sites) == 1 else list(sites)
        return sweep(model, clean_cache, corrupted_tokens, patching_metric, asked).values

    get_act_patch.__doc__ = (
        f"The metric after patching {', '.join(sites)}; see ``sweep``.\n\n"
        "Args:\n    model: the model.\n    corrupted_tokens: ids ``[batch, pos]``.\n"
        "    clean_cache: of a run on as many clean tokens.\n"
        "    patching_metric: from logits to a scalar.\n"
    )
    return get_act_patch


get_act_patch_resid_pre = _sweep_of("resid_pre")
"""``[layer, pos]``"""
get_act_patch_resid_mid = _sweep_of("resid_mid")
"""``[layer, pos]``; sequential blocks only."""
get_act_patch_attn_out = _sweep_of("attn_out")
"""``[layer, pos]``"""
get_act_patch_mlp_out = _sweep_of("mlp_out")
"""``[layer, pos]``"""
get_act_patch_attn_head_out_by_pos = _sweep_of("z")
"""``[layer, pos, head]``"""
get_act_patch_attn_head_q_by_pos = _sweep_of("q")
"""``[layer, pos, head]``"""
get_act_patch_attn_head_k_by_pos = _sweep_of("k")
"""``[layer, pos, head]``"""
get_act_patch_attn_head_v_by_pos = _sweep_of("v")
"""``[layer, pos, head]``"""
get_act_patch_attn_head_pattern_by_pos = _sweep_of("pattern_by_dest")
"""``[layer, head, dest]``"""
get_act_patch_attn_head_pattern_dest_src_pos = _sweep_of("pattern_by_dest_source")
"""``[layer, head, dest, source]``"""
get_act_patch_attn_head_out_all_pos = _sweep_of("z_all_pos")
"""``[layer, head]``"""
get_act_patch_attn_head_q_all_pos = _sweep_of("q_all_pos")
"""``[layer, head]``"""
get_act_patch_attn_head_k_all_pos = _sweep_of("k_all_pos")
"""``[layer, head]``"""
get_act_patch_attn_head_v_all_pos = _sweep_of("v_all_pos")
"""``[layer, head]``"""
get_act_patch_attn_head_pattern_all_pos = _sweep_of("pattern_all_pos")
"""``[layer, head]``"""
get_act_patch_attn_head_all_pos_every = _sweep_of(
    "z_all_pos", "q_all_pos", "k_all_pos", "v_all_pos", "pattern_all_pos"
)
"""``[5, layer, head]``: what heads read, queries, keys, values, patterns."""
get_act_patch_attn_head_by_pos_every = _sweep_of("z", "q", "k", "v", "pattern_by_dest")
"""``[5, layer, pos, head]``: what heads read, queries, keys, values, patterns by query."""
get_act_patch_block_every = _sweep_of("resid_pre", "attn_out", "mlp_out")
"""``[3, layer, pos]``"""


def get_act_patch_direct_path(
    model: Any, corrupted_tokens: Any, clean_tokens: Any, patching_metric: Metric
) -> Tensor:
    """The direct effect of each head on the logits ``[layer, head]``; see ``paths.path_patch``.

    Args:
        model: the model.
        corrupted_tokens: ids ``[batch, pos]``.
        clean_tokens: ids ``[batch, pos]``; not a cache, because both runs are needed whole.
        patching_metric: from logits to a scalar.
    """
    from neox_lab.experiments.paths import path_patch

    return path_patch(model, clean_tokens, corrupted_tokens, patching_metric).values
