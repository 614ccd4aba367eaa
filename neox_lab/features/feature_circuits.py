"""Sparse feature circuits: which features carry a behaviour, and whether they do it alone.

Nodes are the features of dictionaries, and what each dictionary misses (its error), at all
positions together (Marks et al., "Sparse feature circuits", arXiv:2403.19647). The effect of a node
is an integrated gradient: one site at a time goes from the run to another run, on corrupted
prompts or with every value 0. Chosen nodes are then tested:

    faithfulness    everything else has the value of the other run
    completeness    the other nodes alone are kept: low if the circuit lacks nothing

both as (m - m(∅)) / (m(M) - m(∅)), with m(∅) where every node has the other run's value, and beside
random circuits of as many nodes. Edges say which nodes act on which, see ``feature_edges``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, check, number, one_of, several, whole
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.errors import InputError
from neox_lab.experiments.attribution.agreement import Agreement, compare_largest
from neox_lab.experiments.attribution.gradients import MOST_STEPS
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.experiments.splices import with_same_splices
from neox_lab.features.feature_edges import FeatureEdges, feature_edges
from neox_lab.features.spliced_runs import SplicedRuns
from neox_lab.frames import make_frame
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.sae import Dictionary
    from neox_lab.views import CurvesView, View

Errors = Literal["nodes", "kept", "exchanged"]
POINTS = 8  # sizes of a curve, if none are given


class _Asked(NamedTuple):
    """Arguments of ``FeatureCircuit.faithfulness``."""

    sizes: Sequence[int] | None
    errors: Errors
    random: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureCircuit(AttributionResult):
    """The effect of each node on a metric, estimated.

    ``values`` are over one axis, ``component``: nodes by name, such as ``1.mlp_out f123`` and
    ``1.mlp_out error``. ``facts`` hold, beside the metric of both ends, for each site the exact
    effect of exchanging all of it, which its nodes' effects sum to as ``steps`` grow.
    """

    _curves: Callable[[FeatureCircuit, _Asked], CircuitCurves] | None = dataclasses.field(
        default=None, compare=False
    )
    _measure: Callable[[list[int]], Tensor] | None = dataclasses.field(default=None, compare=False)
    _edges: Callable[[list[int], float], FeatureEdges] | None = dataclasses.field(
        default=None, compare=False
    )

    def nodes(self, threshold: float = 0.1) -> pd.DataFrame:
        """The nodes whose effect is larger than a threshold, in the metric's unit.

        Args:
            threshold: least absolute effect.

        Returns:
            ``component`` and ``value``, the largest first.

        Raises:
            InputError: no number.
        """
        threshold = check("threshold", threshold, number(least=0), InputError)
        found = self.top(len(self.values))
        return found[found["value"].abs() > threshold].reset_index(drop=True)

    def edges(self, threshold: float = 0.01, *, node_threshold: float = 0.1) -> FeatureEdges:
        """Direct effects of nodes on nodes of later sites, and on the metric.

        The effect of u on d is the change of u, times the derivative of d with respect to u, times
        the metric's mean gradient at d, summed over positions, mean over texts. What goes by way
        of a third site with a dictionary is left out, as that is made of other edges; the linear
        path ``W_skip`` of a transcoder is no such site. Effects on the metric are those of its
        gradient in the run as it is. A run back for each node above the threshold.

        Args:
            threshold: least absolute effect of an edge, in the metric's unit.
            node_threshold: least absolute effect of a node, see ``nodes``.

        Returns:
            A row for each edge, the largest first; a network as a picture.

        Raises:
            InputError: no numbers, or the result came from a file and no longer knows its model.
            HookError: other functions are spliced in than when it was made.
        """
        threshold = check("threshold", threshold, number(least=0), InputError)
        least = check("node_threshold", node_threshold, number(least=0), InputError)
        if self._edges is None:
            raise InputError("This circuit came from a file and no longer knows its model.")
        chosen = (self.values.abs() > least).nonzero()[:, 0].tolist()
        return self._edges(chosen, threshold)

    def view(self) -> View:
        """The largest effects as bars."""
        return self.bars()

    def check(self, k: int = 10, nodes: int = 32) -> Agreement:
        """Compare estimates with what really happens when a node is exchanged by itself.

        Args:
            k: how many of the largest misses to list.
            nodes: so many nodes, those of the largest estimates, are measured, a run each.

        Returns:
            Correlation, largest misses, and a picture of both numbers of every node measured.

        Raises:
            InputError: the result came from a file and no longer knows its model.
            HookError: other functions are spliced in than when it was made.
        """
        count = check("nodes", nodes, COUNT, InputError)
        if self._measure is None:
            return super().check(k)
        return compare_largest(self, self._measure, count, k)

    def faithfulness(
        self,
        sizes: Sequence[int] | None = None,
        errors: Errors = "nodes",
        *,
        random: int = 5,
        seed: int = 0,
    ) -> CircuitCurves:
        """Does the circuit of the nodes of largest effect do what the whole model does?

        Args:
            sizes: numbers of nodes; None takes some from one to all.
            errors: ``"nodes"``: errors are nodes like features. ``"kept"``: always as they are in
                the run. ``"exchanged"``: always those of the other run.
            random: so many random circuits of each size.
            seed: of these, and of the interval over prompts.

        Raises:
            InputError: sizes that the circuit does not have, or the result came from a file.
            HookError: other functions are spliced in than when it was made.
        """
        check("errors", errors, one_of("nodes", "kept", "exchanged"), InputError)
        random = check("random", random, whole(least=0, most=1000), InputError)
        seed = check("seed", seed, SEED, InputError)
        if self._curves is None:
            raise InputError("This circuit came from a file and no longer knows its model.")
        return self._curves(self, _Asked(sizes, errors, random, seed))


@dataclasses.dataclass(frozen=True)
class CircuitCurves(Result):
    """Faithfulness and completeness over the number of nodes.

    Attributes:
        frame: one row a size: ``nodes``, ``faithfulness`` and ``completeness``, each with ``_low``
            and ``_high`` over prompts, and ``random`` (mean faithfulness of random circuits of as
            many nodes), ``random_low`` and ``random_high`` (lowest and highest).
        errors: what was done with errors.
        ends: the metric of the whole model, and with every node exchanged.
        title: the headline.
    """

    frame: pd.DataFrame
    errors: str
    ends: dict[str, float]
    title: str

    def view(self) -> CurvesView:
        """All curves over the number of nodes, sizes at equal distances."""
        from neox_lab.views import CurvesView, Line

        frame, places = self.frame, list(range(len(self.frame)))
        names = {
            "faithfulness": "circuit",
            "completeness": "without the circuit",
            "random": "random circuits",
        }
        lines = {
            said: Line(places, frame[name], frame[f"{name}_low"], frame[f"{name}_high"])
            for name, said in names.items()
            if frame[name].notna().any()
        }
        sizes = [f"{nodes:,}" for nodes in frame["nodes"]]
        levels = {"whole model": 1.0, "nothing": 0.0}
        return CurvesView(self.title, lines, "nodes", "share of the behaviour", sizes, levels)


@torch.inference_mode(False)
def circuit(
    model: HookedModel,
    dictionaries: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary],
    inputs: PromptsLike,
    metric: Metric,
    corrupted: PromptsLike | None = None,
    *,
    steps: int = 8,
) -> FeatureCircuit:
    """The effect of every active feature and every error of dictionaries on a metric.

    Args:
        model: any class with a head, in evaluation mode.
        dictionaries: for this model, each at a site of its own; a list or a mapping such as
            ``nl.gym.dictionaries()`` gives.
        inputs: prompts with the behaviour, see ``nl.features.effects``.
        metric: see ``nl.patching.sweep``.
        corrupted: prompts of the same lengths without it, whose values nodes get when they are
            exchanged; None for 0.
        steps: gradients on the way from one run to the other, at the points of Gauss and
            Legendre's rule.

    Returns:
        Effects, mean over texts: what the metric would become with the node's other value, minus
        what it is. ``total`` is the effect of exchanging all nodes. ``nodes(threshold)`` chooses,
        ``check()`` measures, ``faithfulness()`` tests, ``edges()`` joins. A dictionary that misses
        most of what stands at its site is warned of, as in ``active``.

    Raises:
        InputError: no dictionaries or two at one site, prompts that do not pair up, or a metric
            that does not fit.
        HookError: a dictionary does not fit the model.
    """
    steps = check("steps", steps, whole(least=1, most=MOST_STEPS), InputError)
    runs = SplicedRuns.of(model, dictionaries, inputs, corrupted, metric)
    nodes = runs.nodes
    per_row = torch.cat([runs.gradients(n, steps) for n in range(len(runs.sites))], dim=1)
    base, other = float(runs.measure().mean()), float(runs.measure(kept=()).mean())
    facts = {"base": base, "all exchanged": other, "steps": float(steps)}
    for site, place in enumerate(runs.sites):
        whole_site = [node for node in nodes if node.site == site]
        facts[f"all of {place.name}"] = float(runs.measure(whole_site).mean()) - base

    def measured(chosen: list[int]) -> Tensor:
        return torch.stack([runs.measure([nodes[at]]).mean() - base for at in chosen])

    def edges(chosen: list[int], threshold: float) -> FeatureEdges:
        return feature_edges(runs, [nodes[at] for at in chosen], steps, threshold)

    count = len(runs.sites)
    where = runs.sites[0].name if count == 1 else f"{count} dictionaries"
    return FeatureCircuit(
        values=per_row.mean(dim=0),
        axes=("component",),
        labels={"component": [runs.name(node) for node in nodes]},
        total=other - base,
        per_row=per_row if len(per_row) > 1 else None,
        title=f"Features of {where}, exchanged one by one",
        value_name=f"estimated change of {metric_name(metric)}",
        facts=facts,
        _curves=with_same_splices(model, lambda found, asked: _curves(found, runs, asked)),
        _measure=with_same_splices(model, measured),
        _edges=with_same_splices(model, edges),
    )


def _sizes(sizes: Sequence[int] | None, runs: SplicedRuns, errors: Errors) -> list[int]:
    """Sizes of circuits, increasing.

    Raises:
        InputError: numbers of nodes that there are not.
    """
    most = sum(node.latent >= 0 or errors == "nodes" for node in runs.nodes)
    if sizes is None:
        return sorted({round(size) for size in np.geomspace(1, most, POINTS)})
    given = several("sizes", sizes, "numbers of nodes", InputError)
    found = sorted({check("sizes", one, whole(least=0, most=most), InputError) for one in given})
    if not found:
        raise InputError(f"sizes is empty; give numbers of nodes, at most {most}.")
    return found


def _curves(result: FeatureCircuit, runs: SplicedRuns, asked: _Asked) -> CircuitCurves:
    """See ``FeatureCircuit.faithfulness``."""
    errors, random, seed = asked.errors, asked.random, asked.seed
    sizes = _sizes(asked.sizes, runs, errors)
    nodes = runs.nodes
    kept = {node for node in nodes if node.latent < 0 and errors == "kept"}
    order = result.values.abs().nan_to_num().argsort(descending=True, stable=True).tolist()
    ranked = [nodes[at] for at in order if nodes[at].latent >= 0 or errors == "nodes"]
    generator = torch.Generator().manual_seed(seed)
    circuits = [set(ranked[:size]) for size in sizes]
    drawn = [
        {ranked[at] for at in torch.randperm(len(ranked), generator=generator)[:size].tolist()}
        for size in sizes
        for _ in range(random)
    ]
    whole_model, nothing = runs.measure(), runs.measure(kept=kept)
    samples = [runs.measure(kept=chosen | kept) for chosen in (*circuits, *drawn)]
    samples += [runs.measure(kept=set(ranked) - chosen | kept) for chosen in circuits]
    found = faithfulness(torch.stack(samples), whole_model, nothing, seed)
    count, last = len(sizes), len(sizes) * (1 + random)
    by_chance = found.value[count:last].view(count, random) if random else None
    missing = [float("nan")] * count
    columns: dict[str, object] = {"nodes": sizes}
    for name, part in (("faithfulness", slice(0, count)), ("completeness", slice(last, None))):
        columns[name] = found.value[part].tolist()
        columns[f"{name}_low"] = found.low[part].tolist()
        columns[f"{name}_high"] = found.high[part].tolist()
    columns["random"] = missing if by_chance is None else by_chance.mean(dim=1).tolist()
    columns["random_low"] = missing if by_chance is None else by_chance.amin(dim=1).tolist()
    columns["random_high"] = missing if by_chance is None else by_chance.amax(dim=1).tolist()
    ends = {"whole model": float(whole_model.mean()), "nothing": float(nothing.mean())}
    said = {"nodes": "errors are nodes", "kept": "errors kept", "exchanged": "errors exchanged"}
    title = f"Circuits of {len(ranked):,} nodes by effect; {said[errors]}"
    return CircuitCurves(make_frame(columns), errors, ends, title)
