"""What each feature does to a metric: measured, or estimated from gradients.

exact       the feature's activation is replaced in a run of its own, the error term kept: the
site changes by what the dictionary writes for the difference, and by nothing else
gradient    difference of activations · ∂metric/∂activation, for all features from one run back;
with ``steps`` the gradient is averaged on the way from one activation to the other
(Marks et al., "Sparse feature circuits", arXiv:2403.19647, section 3.1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SWITCH, check, one_of, whole
from neox_lab.errors import InputError
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.agreement import Agreement, compare_largest
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.progress_report import ProgressReport
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.experiments.patching.runner import BUDGET
from neox_lab.experiments.splices import with_same_splices
from neox_lab.features.exchange import Exchange
from neox_lab.features.reading import OfOneSite

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.views import View

Method = Literal["exact", "gradient"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureEffects(AttributionResult):
    """By how much each feature changes a metric, where its activation is another.

    Attributes:
        before: its activation ``[*axes]``, mean over texts; where effects are summed, sum over
            positions.
        after: the activation that it is given, likewise.
        method: ``"exact"`` or ``"gradient"``.
    """

    before: Tensor
    after: Tensor
    method: str
    _measure: Callable[[list[int]], Tensor] | None = dataclasses.field(default=None, compare=False)

    def _columns(self) -> dict[str, Tensor]:
        return {"value": self.values, "before": self.before, "after": self.after}

    def view(self) -> View:
        """The largest effects as bars."""
        return self.bars()

    def check(self, k: int = 10, features: int = 32) -> Agreement:
        """Compare an estimate with what really happens.

        Args:
            k: how many of the largest misses to list.
            features: so many features, those of the largest estimates, are measured.

        Returns:
            Correlation, largest misses, and a picture of both numbers of every part measured.

        Raises:
            InputError: the result is exact, or came from a file and no longer knows its model.
        """
        count = check("features", features, COUNT, InputError)
        if self.method == "exact":
            raise InputError("These effects are measured, each in a run of its own.")
        if self._measure is None:
            return super().check(k)
        measure, latents = self._measure, self.labels["latent"]
        return compare_largest(
            self, lambda places: measure([int(latents[at]) for at in places]), count, k
        )


@torch.inference_mode(False)
def effects(
    model: HookedModel,
    dictionary: OfOneSite,
    inputs: PromptsLike,
    metric: Metric,
    corrupted: PromptsLike | None = None,
    *,
    method: Method = "exact",
    steps: int = 0,
    summed: bool = False,
    budget: int = BUDGET,
    progress: bool | ProgressReport = True,
) -> FeatureEffects:
    """The effect of each active feature on a metric.

    The effect is the metric with another activation of the feature, minus the metric of the run
    as it is. The other activation is 0 (the feature is ablated), or that of the ``corrupted``
    prompts. What the dictionary misses is kept, so that the site changes by (other - own) ·
    W_dec[feature] and by nothing else.

    Args:
        model: any class with a head, in evaluation mode.
        dictionary: for this model; or a layer of a cross-layer transcoder,
            ``transcoder.layer(2)``, whose features write to that layer and all after it.
        inputs: a string, a list of strings, token ids ``[batch, pos]``, or a mapping with
            ``input_ids`` and ``attention_mask``.
        metric: ``nl.patching.logit_difference(..)`` or another, see ``nl.patching.sweep``.
        corrupted: prompts of the same lengths that give the other activations; None for 0.
        method: ``"exact"``: a sweep, one run for each feature and position. ``"gradient"``: to
            first order from one gradient; ``check()`` measures the largest beside it.
        steps: with ``"gradient"``: n averages n gradients on the way between both activations of
            all features (integrated gradients, by Gauss and Legendre's rule). The estimates then
            sum to ``total`` as n grows.
        summed: exchange a feature at all positions at once; estimates are summed over positions.
        budget: tokens that a sweep computes together.
        progress: of a sweep; see ``nl.patching.sweep``.

    Returns:
        Effects over ``(pos, latent)``, or ``latent`` alone if summed, mean over texts; only cells
        whose activation differs count as computed. ``total`` is the effect of exchanging all of
        them at once. ``facts`` hold the metric of both runs, and ``missed``: the share of what
        stands there that the dictionary misses (see ``active``, which warns of it likewise).

    Raises:
        InputError: no feature is active, inputs that are no prompts or do not pair up, a metric
            that does not fit, or steps of the exact method.
        HookError: the dictionary does not fit the model, or hooks are in place.
    """
    check("method", method, one_of("exact", "gradient"), InputError)
    check("summed", summed, SWITCH, InputError)
    budget = check("budget", budget, COUNT, InputError)
    steps = check("steps", steps, whole(least=0, most=gradients.MOST_STEPS), InputError)
    if steps and method == "exact":
        raise InputError("steps are of method='gradient'; the exact method needs none.")
    exchange = Exchange.of(model, dictionary, inputs, corrupted, metric)
    if method == "gradient":
        return _estimated(exchange, summed, steps)
    found = exchange.measured(exchange.latents, summed, budget, progress)
    per_row = None
    if found.samples is not None and found.base_samples is not None:
        per_row = found.samples - found.base_samples.view(-1, *[1] * found.values.dim())
    result = _result(exchange, summed, found.effect(), per_row, found.computed, "exact", found.base)
    if found.complete:
        return result
    return dataclasses.replace(result, title=f"{result.title} (interrupted: not all is measured)")


def _estimated(exchange: Exchange, summed: bool, steps: int) -> FeatureEffects:
    """Effects to first order, see ``effects``."""
    name, run, latents = exchange.acts, exchange.run, exchange.latents
    with run.model.spliced(exchange.dictionary):
        own = gradients.run(run, [name])
        slope = own.gradients[name][..., latents]
        if steps:
            start, end = own.activations[name], exchange.after_in_full()
            slope = torch.zeros_like(slope)
            for place, weight in zip(*gradients.quadrature(steps), strict=True):
                between = {name: start + place * (end - start)}
                there = gradients.run(run, [name], replaced=between)
                slope += weight * there.gradients[name][..., latents]
    shares = ((exchange.after - exchange.before) * slope).cpu()
    shares = shares.sum(dim=1) if summed else shares
    values, per_row = shares.sum(dim=0), None
    if own.rows is not None:
        values, per_row = shares.mean(dim=0), shares
    return _result(
        exchange,
        summed,
        values,
        per_row,
        None,
        "gradient",
        float(own.value),
        {"steps": float(steps)},
    )


def _result(
    exchange: Exchange,
    summed: bool,
    values: Tensor,
    per_row: Tensor | None,
    computed: Tensor | None,
    method: Method,
    base: float,
    facts: dict[str, float] | None = None,
) -> FeatureEffects:
    """Effects over named axes, with their activations."""
    before, after = exchange.before.cpu(), exchange.after.cpu()
    differs = (before != after).any(dim=0)
    if summed:
        before, after, differs = before.sum(dim=1), after.sum(dim=1), differs.any(dim=0)
    if computed is not None:
        differs = differs & computed
    site, other = exchange.acts.rpartition(".")[0], exchange.all_at_once()
    latents = [str(latent) for latent in exchange.latents]
    labels = {"latent": latents} if summed else {"pos": exchange.tokens, "latent": latents}
    said = "estimated change" if method == "gradient" else "change"
    doing = "Ablating" if exchange.other is None else "Exchanging"
    return FeatureEffects(
        values=values,
        axes=tuple(labels),
        labels=labels,
        computed=differs,
        total=other - base,
        per_row=per_row,
        title=f"{doing} each feature of {site}",
        value_name=f"{said} of {metric_name(exchange.metric)}",
        facts={"base": base, "all exchanged": other, "missed": exchange.missed} | (facts or {}),
        before=before.mean(dim=0),
        after=after.mean(dim=0),
        method=method,
        _measure=with_same_splices(
            exchange.run.model, lambda latents: exchange.measured(latents, summed).effect()
        ),
    )
