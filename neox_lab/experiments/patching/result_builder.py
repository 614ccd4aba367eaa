"""From scores to a result: cells in the shape of their axes, with labels for each."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from neox_lab.experiments.metrics import metric_name
from neox_lab.experiments.patching.climb import Scores
from neox_lab.experiments.patching.labels import axis_labels
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.patching.runner import Question

Direction = Literal["denoising", "noising", "ablation"]


def build_result(question: Question, scores: Scores, direction: Direction) -> PatchResult:
    """What a sweep found.

    Args:
        question: what was asked.
        scores: what the runner answered.
        direction: which run was patched: the corrupted one in ``"denoising"``, else the clean one.
    """
    names = tuple(site.name for site in question.sites)
    axes = question.sites[0].axes
    values, computed = (_over_axes(question, scores, n) for n in (scores.values, scores.computed))
    axes = ("site", *axes) if len(names) > 1 else axes
    ends = [float(end[scores.rows_computed].mean()) for end in (scores.patched, scores.source)]
    prompts = [side for side in (question.patched, question.source.prompts) if side is not None]
    if direction == "denoising":  # clean first
        ends.reverse()
        prompts.reverse()
    labels = axis_labels(question.model, prompts, question.positions) | {"site": list(names)}
    labels |= {
        site.axes[-1]: list(map(str, site.entries)) for site in question.sites if site.entries
    }
    count = computed.sum(dim=0)
    return PatchResult(
        values=values.where(computed, 0).sum(dim=0) / count,
        computed=None if bool(count.all()) else count > 0,
        axes=axes,
        clean=ends[0],
        corrupted=ends[1],
        site=names,
        metric=metric_name(question.metric),
        direction=direction,
        labels={
            axis: labels[axis][:size] for axis, size in zip(axes, values.shape[1:], strict=True)
        },
        samples=values if scores.per_pair else None,
        base_samples=scores.patched.clone() if scores.per_pair else None,
        complete=scores.complete,
    )


def _over_axes(question: Question, scores: Scores, numbers: Tensor) -> Tensor:
    """Something of every cell ``[pair, cell]``, as ``[pair, *axes]``."""
    axes, found = question.sites[0].axes, []
    starts = scores.cells.starts()
    for site, first, stop in zip(question.sites, starts, starts[1:], strict=False):
        part = numbers[:, first:stop].reshape(-1, *scores.cells.shape(site))
        found.append(part.permute([0, *(1 + site.axes.index(axis) for axis in axes)]))
    return torch.stack(found, dim=1) if len(found) > 1 else found[0].contiguous()
