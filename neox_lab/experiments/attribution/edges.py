"""Attribution patching of edges: from every writer to every later reader at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neox_lab.experiments import graph
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.graph import Node
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.prompts import Positions
from neox_lab.experiments.prompt_pairs import pair, refuse_steps

WRITING = {"embed": "hook_embed", "head": "attn.hook_result", "mlp": "hook_mlp_out"}


def attribute_edges(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    steps: int,
    positions: Positions | None,
) -> AttributionResult:
    """See ``attribution_patch``."""
    both = pair(model, clean, corrupted, metric, positions)
    base = both.base
    writers, readers = graph.writers(model), graph.readers(model)
    written = list(dict.fromkeys(writing_hook(node) for node in writers))
    read = list(dict.fromkeys(reading_hook(node) for node in readers))
    clean_value, _, there = gradients.activations(both.source, written)
    if steps:
        refuse_steps(both)
        value, rows, here = gradients.activations(base, written)
        ends = here["hook_embed"], there["hook_embed"]
        slopes = gradients.along_path(base, read, *ends, steps)
    else:
        value, rows, here, slopes = gradients.run(base, read, written)
    changes = {name: (both.aligned(there[name]) - here[name]).float() for name in written}
    stacked = torch.stack([of_node(changes[writing_hook(w)], w) for w in writers])
    chosen = both.chosen
    shape = (len(base.ids), len(chosen), len(writers), len(readers))
    scores = stacked.new_full(shape, torch.nan)
    parallel = model.config.use_parallel_residual
    for column, reader in enumerate(readers):
        before = [at for at, w in enumerate(writers) if w.precedes(reader, parallel)]
        slope = of_node(slopes[reading_hook(reader)], reader).float()
        by_pos = torch.einsum("wbpd,bpd->wbp", stacked[before], slope)
        scores[:, :, before, column] = torch.einsum("wbp,nbp->bnw", by_pos, chosen)
    scores = scores.cpu()
    labels = {"writer": [w.name for w in writers], "reader": [r.name for r in readers]}
    if positions is None:
        scores = scores[:, 0]
    else:
        labels = {"pos": list(positions), **labels}
    return AttributionResult(
        values=scores.sum(dim=0) if rows is None else scores.mean(dim=0),
        axes=tuple(labels),
        labels=labels,
        total=float(clean_value - value),
        per_row=None if rows is None else scores,
        title="Attribution patching of edges",
        value_name=f"estimated change of {metric_name(metric)}",
        facts={"clean": float(clean_value), "corrupted": float(value), "steps": float(steps)},
        _exact=lambda: _exact_changes(model, clean, corrupted, metric, positions),
    )


def writing_hook(node: Node) -> str:
    """Where what a writer adds to the residual stream can be seen."""
    name = WRITING[node.kind]
    return name if node.kind == "embed" else f"blocks.{node.layer}.{name}"


def reading_hook(node: Node) -> str:
    """Where what a reader takes from the residual stream can be seen."""
    if node.kind == "logits":
        return f"blocks.{node.layer - 1}.hook_resid_post"
    name = f"hook_{node.part}_input" if node.kind == "head" else "hook_mlp_in"
    return f"blocks.{node.layer}.{name}"


def of_node(tensor: Tensor, node: Node) -> Tensor:
    """A node's own part of what stands at its hook, ``[batch, pos, d_model]``."""
    return tensor[:, :, node.head] if node.kind == "head" else tensor


def _exact_changes(
    model: Any, clean: Any, corrupted: Any, metric: Metric, positions: Positions | None
) -> Tensor:
    from neox_lab.experiments.paths import path_patching as paths

    return paths.edge_sweep(model, clean, corrupted, metric, positions=positions).effect()
