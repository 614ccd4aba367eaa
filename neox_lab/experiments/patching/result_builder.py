"""From scores to a result: cells in the shape of their axes, with labels for each."""

from __future__ import annotations

from typing import Literal

import torch

from neox_lab.experiments.metrics import metric_name
from neox_lab.experiments.patching.labels import axis_labels
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.patching.runner import Question, Scores

Direction = Literal["denoising", "noising", "ablation"]


def build_result(question: Question, scores: Scores, direction: Direction) -> PatchResult:
    """What a sweep found.

    Args:
        question: what was asked.
        scores: what the runner answered.
        direction: which run was patched: the corrupted one in ``"denoising"``, else the clean one.
    """
    names = tuple(site.name for site in question.sites)
    axes, samples = question.sites[0].axes, []
    starts = scores.cells.starts()
    for site, first, stop in zip(question.sites, starts, starts[1:], strict=False):
        part = scores.values[:, first:stop].reshape(-1, *scores.cells.shape(site))
        samples.append(part.permute([0, *(1 + site.axes.index(axis) for axis in axes)]))
    values = torch.stack(samples, dim=1) if len(samples) > 1 else samples[0].contiguous()
    axes = ("site", *axes) if len(samples) > 1 else axes
    ends = [float(scores.patched.nanmean()), float(scores.source.nanmean())]
    prompts = [side for side in (question.patched, question.source.prompts) if side is not None]
    if direction == "denoising":  # clean first
        ends.reverse()
        prompts.reverse()
    labels = axis_labels(question.model, prompts, question.positions) | {"site": list(names)}
    labels |= {
        site.axes[-1]: list(map(str, site.entries)) for site in question.sites if site.entries
    }
    return PatchResult(
        values=values.nanmean(dim=0),
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
