"""Activation patching: which parts carry the difference between two prompts?

    metric = nl.patching.logit_difference(" Mary", " John")
    result = nl.patching.sweep(model, clean, corrupted, metric, site="resid_pre")
    result                       # a heat map: layer by position
    result.top(5)                # the cells that matter most
    nl.patching.sweep(model, clean, corrupted, metric, site="z_all_pos")

Run the model on a corrupted prompt, put one activation of the clean run in its place, and see how
much of the clean answer comes back (Vig et al., arXiv:2004.12265; Meng et al., arXiv:2202.05262).
Doing that for every layer, position and head is a sweep. Others run the model once for each cell;
here a sweep is one forward pass whose batch grows on its way up, with the same numbers:

    sweeps           what users call
    prompts          pairs of prompts, side by side
    runs             the plain runs: patched and source
    sources          where patches come from
    variants         one forward pass each, if they were made one by one
    sites, effects   where one can patch, and what residual stream follows
    planning         the variants that can differ at all, in groups
    patched_streams  the residual streams with which variants enter
    batched_forward  all of them up the layers at once
    hooked_forward   the same with hooks, where functions are spliced in or a hook point is the site
    metric_readout   from the top to the metric
    runner           all of this in order
    result_builder   from scores to a result
    generic          one run a cell, with a function of one's own that patches

``ablate`` takes parts away instead; ``path_patch`` and ``edge_sweep`` ask what one part does by way
of another. ``get_act_patch_*`` are TransformerLens's names.
"""

import importlib
from typing import TYPE_CHECKING

from neox_lab.experiments.metrics import (
    LogitMetric,
    Metric,
    class_logit,
    logit_difference,
    side_logit,
    span_logit,
    tag_logit,
)
from neox_lab.experiments.patching.act_patch import (
    get_act_patch_attn_head_all_pos_every,
    get_act_patch_attn_head_by_pos_every,
    get_act_patch_attn_head_k_all_pos,
    get_act_patch_attn_head_k_by_pos,
    get_act_patch_attn_head_out_all_pos,
    get_act_patch_attn_head_out_by_pos,
    get_act_patch_attn_head_pattern_all_pos,
    get_act_patch_attn_head_pattern_by_pos,
    get_act_patch_attn_head_pattern_dest_src_pos,
    get_act_patch_attn_head_q_all_pos,
    get_act_patch_attn_head_q_by_pos,
    get_act_patch_attn_head_v_all_pos,
    get_act_patch_attn_head_v_by_pos,
    get_act_patch_attn_out,
    get_act_patch_block_every,
    get_act_patch_direct_path,
    get_act_patch_direct_path_all_sources,
    get_act_patch_mlp_out,
    get_act_patch_resid_mid,
    get_act_patch_resid_pre,
)
from neox_lab.experiments.patching.generic import (
    generic_activation_patch,
    layer_head_dest_src_pos_pattern_patch_setter,
    layer_head_pattern_patch_setter,
    layer_head_pos_pattern_patch_setter,
    layer_head_vector_patch_setter,
    layer_pos_head_vector_patch_setter,
    layer_pos_patch_setter,
    make_df_from_ranges,
)
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.patching.sites import SITES, Site
from neox_lab.experiments.patching.sweeps import ablate, sweep

if TYPE_CHECKING:
    from neox_lab.experiments.paths.path_patching import edge_sweep, path_patch

__all__ = [
    "SITES",
    "LogitMetric",
    "Metric",
    "PatchResult",
    "Site",
    "ablate",
    "class_logit",
    "edge_sweep",
    "generic_activation_patch",
    "get_act_patch_attn_head_all_pos_every",
    "get_act_patch_attn_head_by_pos_every",
    "get_act_patch_attn_head_k_all_pos",
    "get_act_patch_attn_head_k_by_pos",
    "get_act_patch_attn_head_out_all_pos",
    "get_act_patch_attn_head_out_by_pos",
    "get_act_patch_attn_head_pattern_all_pos",
    "get_act_patch_attn_head_pattern_by_pos",
    "get_act_patch_attn_head_pattern_dest_src_pos",
    "get_act_patch_attn_head_q_all_pos",
    "get_act_patch_attn_head_q_by_pos",
    "get_act_patch_attn_head_v_all_pos",
    "get_act_patch_attn_head_v_by_pos",
    "get_act_patch_attn_out",
    "get_act_patch_block_every",
    "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources",
    "get_act_patch_mlp_out",
    "get_act_patch_resid_mid",
    "get_act_patch_resid_pre",
    "layer_head_dest_src_pos_pattern_patch_setter",
    "layer_head_pattern_patch_setter",
    "layer_head_pos_pattern_patch_setter",
    "layer_head_vector_patch_setter",
    "layer_pos_head_vector_patch_setter",
    "layer_pos_patch_setter",
    "logit_difference",
    "make_df_from_ranges",
    "path_patch",
    "side_logit",
    "span_logit",
    "sweep",
    "tag_logit",
]


def __getattr__(name: str) -> object:
    """Path patching stands on the modules of this package, so it is imported when asked for."""
    if name in ("edge_sweep", "path_patch"):
        return getattr(importlib.import_module("neox_lab.experiments.paths.path_patching"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All there is, path patching included."""
    return sorted({*globals(), *__all__})
