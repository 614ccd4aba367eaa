"""Attribution patching of nodes: every cell of a patching sweep at once, to first order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import TEXT, check, require_model
from neox_lab.errors import InputError
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.labels import axis_labels
from neox_lab.experiments.patching.prompts import Positions, PromptsLike
from neox_lab.experiments.patching.runs import hook_name
from neox_lab.experiments.patching.sites import find_sites, refuse_moved
from neox_lab.experiments.patching.sweeps import sweep
from neox_lab.experiments.prompt_pairs import pair, refuse_steps
from neox_lab.experiments.splices import with_same_splices

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_RESULT_AXES = {"query_pos": "pos", "key_pos": "source_pos"}


def attribute_nodes(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    site: str,
    steps: int,
    positions: Positions | None,
) -> AttributionResult:
    """See ``attribution_patch``."""
    require_model(model)
    site = check("site", site, TEXT, InputError)
    (place,) = find_sites(site, model.config.use_parallel_residual, model.hook_points)
    names = [hook_name(place.hook, layer) for layer in place.layers(model.config.num_hidden_layers)]
    both = pair(model, clean, corrupted, metric, positions)
    if both.clean_columns is not None:
        refuse_moved([place])
    clean_value, _, from_clean = gradients.activations(both.clean, [*names, "hook_embed"])
    if steps:
        refuse_steps(both)
        value, rows, own = gradients.activations(both.corrupted, [*names, "hook_embed"])
        ends = own["hook_embed"], from_clean["hook_embed"]
        slopes = gradients.along_path(both.corrupted, names, *ends, steps)
    else:
        value, rows, own, slopes = gradients.run(both.corrupted, names)
    found = []
    for name in names:
        change = both.aligned(from_clean[name]).float() - own[name].float()
        shares = change * slopes[name].float()
        axes = [_RESULT_AXES.get(axis, axis) for axis in model.hook_points[name].axes]
        gone = [at for at, axis in enumerate(axes) if axis not in ("batch", *place.axes)]
        shares = shares.sum(dim=gone) if gone else shares
        found.append(_at_columns(shares, both.columns, place.axes).cpu())
    labels = axis_labels(model, [both.clean.prompts, both.corrupted.prompts], positions)
    per_row = torch.stack(found, dim=1)  # [batch, layer, ..]
    if "layer" not in place.axes:  # one hook point
        per_row = per_row[:, 0]
    return AttributionResult(
        values=per_row.sum(dim=0) if rows is None else per_row.mean(dim=0),
        axes=place.axes,
        labels={axis: labels[axis] for axis in place.axes},
        total=float(clean_value - value),
        per_row=None if rows is None else per_row,
        title=f"Attribution patching of {site}",
        value_name=f"estimated change of {metric_name(metric)}",
        facts={
            "clean": float(clean_value),
            "corrupted": float(value),
            "steps": float(steps),
        },
        _exact=with_same_splices(
            model,
            lambda: sweep(model, clean, corrupted, metric, site, positions=positions).effect(),
        ),
    )


def _at_columns(shares: Tensor, columns: Tensor | None, axes: tuple[str, ...]) -> Tensor:
    """Shares ``[batch, *axes]`` of one layer at named positions alone, if the site goes by them."""
    if columns is None or "pos" not in axes:
        return shares
    at = axes.index("pos")  # the batch stands where a site has its layers
    at += "layer" not in axes
    rows = torch.arange(columns.shape[1], device=columns.device)[:, None]
    return shares.movedim(at, 1)[rows, columns.T].movedim(1, at)
