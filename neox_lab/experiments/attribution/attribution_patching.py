"""Attribution patching: a whole patching sweep estimated from one gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from neox_lab.checks import TEXT, check, whole
from neox_lab.errors import InputError
from neox_lab.experiments.attribution.edges import attribute_edges
from neox_lab.experiments.attribution.gradients import MOST_STEPS
from neox_lab.experiments.attribution.nodes import attribute_nodes
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.prompts import Positions, PromptsLike

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


@torch.inference_mode(False)
def attribution_patch(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    site: str = "resid_pre",
    *,
    steps: int = 0,
    positions: Positions | None = None,
) -> AttributionResult:
    """Estimate a whole patching sweep with two runs forward and one back.

    Patching the clean activation a′ of a cell into the corrupted run, where it is a, changes the
    metric by about (a′ − a) · ∂metric/∂a: to first order, for all cells from one gradient (Nanda,
    2023, "Attribution Patching: Activation Patching At Industrial Scale"). For the edge from writer
    u to reader v the estimate is (u′ − u) · ∂metric/∂(input of v), with the gradient of v's input
    alone (Syed et al., 2023, arXiv:2310.10348).

    Where the metric is far from linear between the two runs, as where attention saturates, the
    estimate is poor. ``steps`` then averages the gradient over runs whose embeddings lie between
    corrupted and clean (EAP-IG, Hanna et al., 2024, arXiv:2403.17806; here at the points of Gauss
    and Legendre's rule). ``check()`` shows how good it is.

    Args:
        model: any class with a head.
        clean: what the activations come from: a string, a list of strings, or ids ``[batch, pos]``.
        corrupted: what they are patched into; the same numbers of tokens, unless ``positions`` says
            what corresponds.
        metric: ``logit_difference(..)`` or another of ``neox_lab.experiments.metrics``, or a
            function from logits to a scalar.
        site: a site of ``nl.patching.sweep``, also a hook point, such as one of a function that is
            spliced in; or ``"edges"`` for every writer and reader.
        steps: 0 takes the gradient of the corrupted run; n averages n gradients.
        positions: named positions instead of every one, see ``nl.patching.sweep``. Edges get an
            axis ``pos``: each edge at each named position by itself.

    Returns:
        Estimated changes of the metric, as the mean over pairs; with ``per_row`` for each pair.
        ``facts`` holds the metric of both runs.

    Raises:
        InputError: an unknown site, pairs of unequal length or without difference, a metric that
            does not fit, or ``steps`` between prompts whose tokens do not stand in the same places.
        HookNameError: ``resid_mid`` of parallel blocks.
        HookError: a function is spliced in between heads and MLPs, and edges are asked for.
    """
    steps = check("steps", steps, whole(least=0, most=MOST_STEPS), InputError)
    site = check("site", site, TEXT, InputError)
    if site == "edges":
        return attribute_edges(model, clean, corrupted, metric, steps, positions)
    return attribute_nodes(model, clean, corrupted, metric, site, steps, positions)
