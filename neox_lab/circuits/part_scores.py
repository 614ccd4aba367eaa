"""How much each head, MLP and neuron matters, exactly and by estimates.

A score is the effect on the metric of *removing* the part, as for edges (see ``scoring``): the
metric of the clean prompts when everything that the part writes is what it writes for the corrupted
prompts, minus the metric of the clean run. A part that helps has a negative score:

    exact      one run for each part
    eap        (u' - u) · ∂metric/∂u at the clean run: two runs forward, one back
    both-ends  the same, with the mean of the gradients at the clean and the corrupted run
    eap-ig     the gradient averaged over embeddings between clean and corrupted

A node's estimate is the sum of the estimates of its edges. A neuron is one activation of an MLP,
after the activation function, at all positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SWITCH, check, one_of, whole
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.curve import SHARES, FaithfulnessCurve, Nodes, checked_shares, curve
from neox_lab.circuits.edges import edge_labels, edge_table
from neox_lab.circuits.neuron_runs import neuron_hook, removed
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.runs import Ablation, CircuitRuns
from neox_lab.circuits.selection import counted, require_all, wanted
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.agreement import Agreement, compare_largest
from neox_lab.experiments.attribution.gradients import MOST_STEPS
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.graph import node_of
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.experiments.prompt_pairs import Batch, Pair
from neox_lab.experiments.splices import BELOW_OUTPUTS, check_splices, with_same_splices

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

PartMethod = Literal["exact", "eap", "eap-ig", "both-ends"]
PART_METHODS: tuple[PartMethod, ...] = ("exact", "eap", "eap-ig", "both-ends")
UNIT = "change of {} when the {} is removed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeScores(AttributionResult):
    """What removing the embedding, a head or an MLP does to the metric; see the module.

    ``values`` is over one axis, ``component``: ``"embed"``, ``"L0H0"``, .., ``"MLP5"``; ``total``
    is the metric of the corrupted minus that of the clean prompts.

    Attributes:
        method: how they were found.
        parallel: the wiring.
    """

    method: str
    parallel: bool
    _asked: Asked | None = dataclasses.field(default=None, compare=False)

    def circuit(
        self, nodes: int | None = None, share: float | None = None, *, helping: bool = False
    ) -> Circuit:
        """The heads and MLPs that matter most, with every edge among them.

        All edges into and out of other heads and MLPs are outside; the embedding and the logits are
        always in. The value of an edge is the score of its writer.

        Args:
            nodes: how many heads and MLPs.
            share: or which share of them, from 0 to 1.
            helping: rank by how much they help (the most negative scores), rather than by how much
                they matter either way.

        Raises:
            InputError: not exactly one of ``nodes`` and ``share``, or one out of range; or a score
                is NaN.
        """
        require_all(self, torch.ones_like(self.is_computed))
        count = wanted("nodes", nodes, share, len(self.values) - 1)
        check("helping", helping, SWITCH, InputError)
        weight = -self.values if helping else self.values.abs()
        best = (1 + weight[1:].argsort(descending=True, stable=True)[:count]).tolist()
        order_name = "most helpful" if helping else "largest"
        kept, labels = self._among(best)
        return Circuit(
            values=self.values[:, None].expand(kept.shape).contiguous(),
            computed=kept,
            axes=("writer", "reader"),
            labels=labels,
            parallel=self.parallel,
            name=f"Circuit of the {count:,} {order_name} heads and MLPs by {self.method}",
            value_name="score of the writer: " + self.value_name,
            _asked=self._asked,
        )

    def _among(self, chosen: Sequence[int]) -> tuple[Tensor, dict[str, list[str]]]:
        """The edges among some components, the embedding and the logits, and all labels."""
        names = self.labels["component"]
        inside = {names[0], "logits", *(names[at] for at in chosen)}
        layers = sum(name.startswith("MLP") for name in names)
        heads = (len(names) - 1) // layers - 1 if layers else 0
        writers = [node_of(name, layers) for name in names]
        readers = graph.readers_of(layers, heads)
        wrote = torch.tensor([node.name in inside for node in writers])
        read = torch.tensor([node.name.split(".")[0] in inside for node in readers])
        table = edge_table(writers, readers, self.parallel)
        return table & wrote[:, None] & read, edge_labels(writers, readers)

    def faithfulness(
        self,
        shares: Sequence[float] = SHARES,
        *,
        helping: bool = False,
        clean: PromptsLike | None = None,
        corrupted: PromptsLike | None = None,
        metric: Metric | None = None,
        model: HookedModel | None = None,
        ablation: Ablation = "resample",
        random: int = 5,
        seed: int = 0,
    ) -> FaithfulnessCurve:
        """How faithful circuits of whole nodes are, beside as many nodes at random.

        ``cpr`` and ``cmd`` are over the share of nodes that was requested, as in MIB. Its weighted
        count of edges (each times the kept share of what its writer writes) is that of all edges
        where a node is in as a whole: the column ``edges``.

        Args:
            shares: of all heads and MLPs, each above 0, at most 1.
            helping: see ``circuit``.
            clean: see ``Circuit.evaluate``; give prompts that no score was made from.
            corrupted: see ``Circuit.evaluate``.
            metric: see ``Circuit.evaluate``.
            model: see ``Circuit.evaluate``.
            ablation: see ``Circuit.evaluate``.
            random: random circuits for each size.
            seed: of these, and of the intervals.

        Raises:
            InputError: an argument makes no sense.
            HookError: a function is spliced in between heads and MLPs.
        """
        wished = checked_shares(shares)
        count = len(self.values) - 1

        def at_random(share: float, chance: Random) -> Tensor:
            return self._among(chance.sample(range(1, count + 1), counted(share, count)))[0]

        return curve(
            [self.circuit(share=each, helping=helping) for each in wished], wished,
            f"Circuits of nodes by {self.method}", clean, corrupted, metric, model,
            ablation=ablation, random=random, seed=seed, nodes=Nodes(count, at_random),
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronScores(AttributionResult):
    """What removing a neuron does to the metric; see the module.

    ``values`` is over one axis, ``component``: ``"L0N0"``, ``"L0N1"``, ..

    Attributes:
        method: how they were found.
    """

    method: str
    _measure: Callable[[list[int]], Tensor] | None = dataclasses.field(default=None, compare=False)

    def check(self, k: int = 10, neurons: int = 32) -> Agreement:
        """Compare with what really happens when a neuron is removed by itself.

        Args:
            k: how many of the largest misses to list.
            neurons: so many, those of the largest scores, are measured, a run each.

        Returns:
            Correlation, largest misses, and a picture of both numbers of every neuron measured.

        Raises:
            InputError: the result came from a file and no longer knows its model.
            HookError: other functions are spliced in than when it was made.
        """
        count = check("neurons", neurons, COUNT, InputError)
        if self._measure is None:
            return super().check(k)
        return compare_largest(self, self._measure, count, k)


@torch.inference_mode(False)
def node_scores(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    method: PartMethod = "eap-ig",
    *,
    steps: int = 5,
) -> NodeScores:
    """Score the embedding, every head and every MLP.

    Args:
        model: any class with a head.
        clean: see ``scores``.
        corrupted: see ``scores``.
        metric: see ``scores``.
        method: see the module.
        steps: gradients that ``"eap-ig"`` averages.

    Returns:
        A score for each node, as the mean over pairs; with ``per_row`` for each pair.

    Raises:
        InputError: see ``scores``.
        HookError: a function is spliced in between heads and MLPs.
    """
    question = _Question(model, clean, corrupted, metric, method, steps)
    nodes = graph.writers(model)

    def exact() -> Tensor:
        runs = CircuitRuns(question.both, "resample")
        without = runs.table.repeat(len(nodes), 1, 1)
        without[torch.arange(len(nodes)), torch.arange(len(nodes))] = False
        return (runs.measure(without) - runs.clean).T  # [sample, node]

    def estimated() -> Tensor:
        shares = question.shares(list(dict.fromkeys(node.writing_hook for node in nodes)))
        each = {name: share.sum(dim=(1, -1)) for name, share in shares.items()}  # over pos, d_model
        return torch.stack(
            [found[:, node.head] if node.kind == "head" else found
             for node in nodes for found in [each[node.writing_hook]]],
            dim=1,
        )  # fmt: skip

    fields = question.fields(exact if method == "exact" else estimated, "node")
    return NodeScores(
        labels={"component": [node.name for node in nodes]},
        parallel=model.config.use_parallel_residual,
        _exact=with_same_splices(model, lambda: exact().mean(dim=0)),
        _asked=question.asked,
        **fields,
    )


@torch.inference_mode(False)
def neuron_scores(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    method: PartMethod = "eap-ig",
    *,
    steps: int = 5,
) -> NeuronScores:
    """Score every neuron: each activation of an MLP after its activation function.

    Args:
        model: any class with a head.
        clean: see ``scores``.
        corrupted: see ``scores``.
        metric: see ``scores``.
        method: see the module; ``"exact"`` runs the model once for each neuron, so an estimate with
            ``check()``, which measures the largest, is the usual way.
        steps: gradients that ``"eap-ig"`` averages.

    Returns:
        A score for each neuron, as the mean over pairs; with ``per_row`` for each pair.

    Raises:
        InputError: see ``scores``; or an MLP without neurons.
        HookError: a function is spliced in elsewhere than within heads.
    """
    heads = [glob for glob in BELOW_OUTPUTS if ".attn." in glob]
    check_splices(model, heads, f"What neurons write may not go on as it is. {graph.FEATURES}")
    question = _Question(model, clean, corrupted, metric, method, steps)
    layers = range(model.config.num_hidden_layers)
    places = [(layer, number) for layer in layers for number in range(_width(model, layer))]

    def exact() -> Tensor:
        return removed(question.both, places, silent=False).T

    def estimated() -> Tensor:
        shares = question.shares([neuron_hook(layer) for layer in layers])
        return torch.cat([share.sum(dim=1) for share in shares.values()], dim=-1)

    def measure(chosen: Sequence[int]) -> Tensor:
        return removed(question.both, [places[at] for at in chosen]).mean(dim=1)

    fields = question.fields(exact if method == "exact" else estimated, "neuron")
    return NeuronScores(
        labels={"component": [f"L{layer}N{number}" for layer, number in places]},
        _measure=with_same_splices(model, measure),
        **fields,
    )


def _width(model: HookedModel, layer: int) -> int:
    return model.backbone.block(layer).neurons().d_mlp


class _Question:
    """What is asked, checked, and what gradients at any activations say to it."""

    def __init__(
        self,
        model: HookedModel,
        clean: PromptsLike,
        corrupted: PromptsLike,
        metric: Metric,
        method: PartMethod,
        steps: int,
    ) -> None:
        self.method = check("method", method, one_of(*PART_METHODS), InputError)
        self.steps = check("steps", steps, whole(least=1, most=MOST_STEPS), InputError)
        graph.check_whole(model)
        self.asked = Asked(model, clean, corrupted, metric)
        self.both: Pair = self.asked.pair()
        (clean_value, rows, _), (corrupted_value, _, _) = (
            gradients.activations(side, []) for side in self.sides
        )
        self.ends = float(clean_value), float(corrupted_value)
        self.knows_rows = rows is not None

    @property
    def sides(self) -> tuple[Batch, Batch]:
        """Clean and corrupted prompts; removing is patching from the corrupted ones."""
        return self.both.corrupted, self.both.clean

    def shares(self, names: list[str]) -> dict[str, Tensor]:
        """Change times gradient of each activation, by hook name, ``[batch, pos, ..]``."""
        clean, corrupted = self.sides
        known = list(dict.fromkeys([*names, "hook_embed"]))
        own, other = (gradients.activations(side, known)[2] for side in (clean, corrupted))
        ends = own["hook_embed"], other["hook_embed"]
        slopes = gradients.along_path(clean, names, *ends, self.steps, self.method)
        return {n: (other[n] - own[n]).float() * slopes[n].float() for n in names}

    def fields(self, found: Callable[[], Tensor], part: str) -> dict[str, Any]:
        """What both kinds of results hold; ``found`` gives scores ``[sample, part]``."""
        rows = found().float().cpu()
        exact = self.method == "exact"
        if not exact and not self.knows_rows:
            rows = rows.sum(dim=0, keepdim=True)
        unit = UNIT.format(metric_name(self.asked.metric), part)
        return {
            "values": rows.mean(dim=0),
            "axes": ("component",),
            "total": self.ends[1] - self.ends[0],
            "per_row": rows if self.knows_rows else None,
            "title": f"{part.capitalize()}s by {self.method}",
            "value_name": unit if exact else f"estimated {unit}",
            "facts": {"clean": self.ends[0], "corrupted": self.ends[1], "steps": float(self.steps)},
            "method": self.method,
        }
