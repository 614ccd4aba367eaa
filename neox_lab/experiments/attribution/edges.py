"""Attribution patching of edges: from every writer to every later reader at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.experiments import graph
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.reader_slopes import line, mean_slopes
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.prompts import Positions, PromptsLike
from neox_lab.experiments.paths.path_patching import edge_sweep
from neox_lab.experiments.prompt_pairs import pair, refuse_steps
from neox_lab.experiments.splices import with_same_splices

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


def attribute_edges(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    steps: int,
    positions: Positions | None,
) -> AttributionResult:
    """See ``attribution_patch``."""
    graph.check_whole(model)
    both = pair(model, clean, corrupted, metric, positions)
    writers, readers = graph.writers(model), graph.readers(model)
    written = list(dict.fromkeys(node.writing_hook for node in writers))
    read = list(dict.fromkeys(node.reading_hook for node in readers))
    clean_value, _, from_clean = gradients.activations(both.clean, written)
    value, rows, own = gradients.activations(both.corrupted, written)
    embeds, weights = own["hook_embed"][None], [1.0]
    if steps:
        refuse_steps(both)
        places, weights = gradients.quadrature(steps)
        embeds = line(own["hook_embed"], from_clean["hook_embed"], places)
    slopes = mean_slopes(both.corrupted, read, embeds, weights)
    changes = {name: (both.aligned(from_clean[name]) - own[name]).float() for name in written}
    stacked = torch.stack([w.part_of(changes[w.writing_hook]) for w in writers])
    chosen = both.chosen
    shape = (len(both.corrupted.ids), len(chosen), len(writers), len(readers))
    scores = stacked.new_full(shape, torch.nan)
    computed = torch.zeros(shape[1:], dtype=torch.bool)
    parallel = model.config.use_parallel_residual
    found: dict[str, Tensor] = {}
    for column, reader in enumerate(readers):
        before = [at for at, w in enumerate(writers) if w.precedes(reader, parallel)]
        hook = reader.reading_hook
        if hook not in found:  # readers of one hook come one after another
            found = {hook: slopes(hook).float()}
        slope = reader.part_of(found[hook])
        by_pos = torch.einsum("wbpd,bpd->wbp", stacked[before], slope)
        scores[:, :, before, column] = torch.einsum("wbp,nbp->bnw", by_pos, chosen)
        computed[:, before, column] = True
    scores = scores.cpu()
    labels = {"writer": [w.name for w in writers], "reader": [r.name for r in readers]}
    if positions is None:
        scores, computed = scores[:, 0], computed[0]
    else:
        labels = {"pos": [str(name) for name in positions], **labels}
    return AttributionResult(
        values=scores.sum(dim=0) if rows is None else scores.mean(dim=0),
        computed=computed,
        axes=tuple(labels),
        labels=labels,
        total=float(clean_value - value),
        per_row=None if rows is None else scores,
        title="Attribution patching of edges",
        value_name=f"estimated change of {metric_name(metric)}",
        facts={"clean": float(clean_value), "corrupted": float(value), "steps": float(steps)},
        _exact=with_same_splices(
            model,
            lambda: edge_sweep(model, clean, corrupted, metric, positions=positions).effect(),
        ),
    )
