"""TransformerLens's patching functions, as other names of ``sweep``.

    get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric)   [layer, pos]

Same arguments, same axes, same numbers. ``patching_metric`` is a function from logits
``[batch, pos, vocab]`` to a scalar; a ``logit_difference`` will do and is many times faster,
because then only two logits are made.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.prompts import Prompts, PromptsLike, read_prompts
from neox_lab.experiments.patching.result_builder import build_result
from neox_lab.experiments.patching.runner import Question, Runner, check_ready
from neox_lab.experiments.patching.runs import blocks_of
from neox_lab.experiments.patching.sites import find_sites
from neox_lab.experiments.patching.sources import GivenActivations, check_padding
from neox_lab.experiments.patching.sweeps import sweep
from neox_lab.experiments.prompt_doctor.inside import warn_of_prompts
from neox_lab.experiments.splices import check_splices
from neox_lab.head_names import head_name
from neox_lab.interrupts import whole_answers

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.hooks.cache import ActivationCache


class ActPatch(Protocol):
    """A patching function of TransformerLens."""

    def __call__(
        self,
        model: HookedModel,
        corrupted_tokens: PromptsLike,
        clean_cache: ActivationCache,
        patching_metric: Metric,
    ) -> Tensor:
        """The metric of each cell."""


def _sweep_of(*sites: str) -> ActPatch:
    """The function that sweeps ``sites`` (several are stacked in front)."""

    def get_act_patch(
        model: HookedModel,
        corrupted_tokens: PromptsLike,
        clean_cache: ActivationCache,
        patching_metric: Metric,
    ) -> Tensor:
        asked = sites[0] if len(sites) == 1 else list(sites)
        with whole_answers():  # see ``_direct_paths``
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
    model: HookedModel,
    corrupted_tokens: PromptsLike,
    clean_cache: ActivationCache,
    corrupted_cache: ActivationCache,
    patching_metric: Metric,
    src_layer: int,
    src_head: int,
    component: Literal["q", "k", "v"] = "q",
    verbose: bool = True,
) -> Tensor:
    """Patch what one head writes into what each later head's queries, keys or values read.

    ``paths.edge_sweep`` does this for any senders and receivers.

    Args:
        model: the model.
        corrupted_tokens: ids ``[batch, pos]``.
        clean_cache: of the clean run, with ``hook_z`` and ``hook_resid_pre``.
        corrupted_cache: of the corrupted run, likewise.
        patching_metric: from logits to a scalar.
        src_layer: the sender's layer.
        src_head: the sender's head.
        component: which input of the receivers.
        verbose: show a progress bar.

    Returns:
        ``[layer, head]``; 0 in layers up to ``src_layer``, which the sender cannot reach.

    Raises:
        HookError: hooks are in place, or a function is spliced in.
        InputError: a cache's run was padded in other places.
    """
    prompts = read_prompts(model, corrupted_tokens, "corrupted_tokens")
    warn_of_prompts(model, patching_metric, {"corrupted": prompts})
    caches = (clean_cache, corrupted_cache)
    sender = (range(model.config.num_hidden_layers)[src_layer], src_head)
    return _direct_paths(model, prompts, caches, patching_metric, [sender], component, verbose)[0]


@whole_answers()  # a tensor cannot say that it is a part
@torch.no_grad()
def _direct_paths(
    model: HookedModel,
    patched: Prompts,
    caches: tuple[ActivationCache, ActivationCache],
    patching_metric: Metric,
    senders: list[tuple[int, int]],
    component: Literal["q", "k", "v"],
    verbose: bool,
) -> Tensor:
    """``get_act_patch_direct_path`` of prompts that were looked at, the clean cache first.

    Each sender is a site of its own, so that all go up the layers together: ``[sender, layer,
    head]``.
    """
    check_ready(model)
    check_splices(model, (), "Direct paths are computed from weights and cached streams alone.")
    for cache in caches:
        cache.check_model(model)
        check_padding(cache, patched)
    blocks = blocks_of(model)
    known = {f"{component} after {head_name(*sender)}": sender for sender in senders}
    changes: dict[tuple[int, int], Tensor] = {}  # what senders below write, [batch, pos, d_model]

    def activations(asked: str, layer: int) -> Tensor:
        attention, read = blocks[layer].attention, caches[1]["resid_pre", layer]
        sender = at, head = known[asked]
        if layer == at:
            weight = attention.writing().weight.reshape(-1, attention.heads, attention.d_head)
            z, own = (cache["z", layer][:, :, head] for cache in caches)
            changes[sender] = (z - own) @ weight[:, head].t()
        elif layer > at:
            read = read + changes[sender]
        return attention.project(blocks[layer].input_layernorm(read))["qkv".index(component)]

    site = find_sites(f"{component}_all_pos", model.config.use_parallel_residual)[0]
    sites = [dataclasses.replace(site, name=name, asked=name) for name in known]
    question = Question(model, patched, GivenActivations(activations), patching_metric, sites)
    values = build_result(question, Runner(question).run(verbose), "denoising").values
    values = values.view(len(senders), *values.shape[-2:])
    for found, (layer, _) in zip(values, senders, strict=True):
        found[: layer + 1] = 0.0
    return values


def get_act_patch_direct_path_all_sources(
    model: HookedModel,
    corrupted_tokens: PromptsLike,
    clean_cache: ActivationCache,
    corrupted_cache: ActivationCache,
    patching_metric: Metric,
    component: Literal["q", "k", "v"] = "q",
    verbose: bool = True,
) -> Tensor:
    """``get_act_patch_direct_path`` from every head, ``[layer, head, layer, head]``.

    Args:
        model: the model.
        corrupted_tokens: see ``get_act_patch_direct_path``, as for the rest.
        clean_cache: likewise.
        corrupted_cache: likewise.
        patching_metric: likewise.
        component: likewise.
        verbose: likewise.
    """
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    prompts = read_prompts(model, corrupted_tokens, "corrupted_tokens")
    warn_of_prompts(model, patching_metric, {"corrupted": prompts})
    caches = (clean_cache, corrupted_cache)
    senders = [(layer, head) for layer in range(layers) for head in range(heads)]
    found = _direct_paths(model, prompts, caches, patching_metric, senders, component, verbose)
    return found.view(layers, heads, layers, heads)
