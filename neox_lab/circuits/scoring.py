"""How much each edge of the network matters, exactly and by estimates.

A score is the effect on the metric of *removing* the edge: the metric of the clean prompts when
the reader sees along this one edge what the writer writes for the corrupted prompts, minus the
metric of the clean run. An edge that helps has a negative score, whatever the method:

    exact           one run for each edge
    eap             (u' - u) · ∂metric/∂v at the clean run: two runs forward, one back
    both-ends       the same, with the mean of the gradients at the clean and the corrupted run
    eap-ig          the gradient averaged over embeddings between clean and corrupted
    ig-activations  the gradient averaged while the writer's own output goes from u to u'

u and u' are what the writer writes for clean and corrupted prompts, v is what the reader reads. EAP
is Syed et al., 2023, arXiv:2310.10348; EAP-IG Hanna et al., 2024, arXiv:2403.17806, there with the
places k/m of the left rule, here with Gauss and Legendre's. Of ``ig-activations`` the sum over a
writer's edges is the exact effect of replacing all that it writes, which tells how good the
integral is. ``scores.check()`` sets any of them beside the exact numbers.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check, one_of, whole
from neox_lab.circuits.circuit import Circuit, chosen
from neox_lab.circuits.curve import SHARES, FaithfulnessCurve, checked_shares, curve
from neox_lab.circuits.eap_files import read
from neox_lab.circuits.edges import edge_labels, edge_table
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.recovery import recovery
from neox_lab.circuits.runs import Ablation
from neox_lab.circuits.selection import greedy, highest, require_all, wanted
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.attribution.gradients import MOST_STEPS
from neox_lab.experiments.attribution.reader_slopes import Added, Slopes, line, mean_slopes
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.experiments.paths.path_patching import edge_sweep
from neox_lab.experiments.prompt_pairs import Pair
from neox_lab.experiments.splices import with_same_splices
from neox_lab.model.parts import at_least_float32

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Method = Literal["exact", "eap", "eap-ig", "ig-activations", "both-ends"]
METHODS: tuple[Method, ...] = ("exact", "eap", "eap-ig", "ig-activations", "both-ends")
EXACT_UNIT = "change of {} when the edge is removed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdgeScores(AttributionResult):
    """What removing each edge does to the metric; see the module.

    ``values`` is ``[writer, reader]``; ``is_computed`` is True where the model has an edge (that
    was reached, if a sweep was interrupted), and ``total`` what removing all edges does: the metric
    of the corrupted minus that of the clean prompts.

    Attributes:
        method: how they were found.
        parallel: the wiring.
    """

    method: str
    parallel: bool
    _asked: Asked | None = dataclasses.field(default=None, compare=False)

    def _table(self) -> Tensor:
        """True for every edge of the model, ``[writer, reader]``, all of which have scores.

        Raises:
            InputError: some have not.
        """
        layers = sum(name.startswith("MLP") for name in self.labels["writer"])
        writers, readers = (
            [graph.node_of(name, layers) for name in self.labels[axis]] for axis in self.axes
        )
        table = edge_table(writers, readers, self.parallel)
        require_all(self, table)
        return table

    def circuit(
        self,
        edges: int | None = None,
        share: float | None = None,
        *,
        method: Literal["threshold", "greedy"] = "threshold",
        helping: bool = False,
    ) -> Circuit:
        """The edges that matter most, as a circuit.

        Edges that lie on no way from the embedding to the logits are left out, so that there may be
        fewer than asked for; the scores stay as they are.

        Args:
            edges: how many.
            share: or which share of all edges, from 0 to 1.
            method: ``"threshold"``: those of the largest score; ``"greedy"``: grown from the
                logits, each time the largest that leads to a part which is in already.
            helping: rank edges by how much they help (the most negative scores), rather than by
                how much they matter either way.

        Raises:
            InputError: not exactly one of ``edges`` and ``share``, or one out of range; or a score
                is not known, as after an interrupted sweep.
        """
        table = self._table()
        count = wanted("edges", edges, share, int(table.sum()))
        check("method", method, one_of("threshold", "greedy"), InputError)
        check("helping", helping, SWITCH, InputError)
        weight = -self.values if helping else self.values.abs()
        found = chosen(self, table, "", self._asked, self.parallel)
        writers, readers = found.writers, found.readers
        if method == "greedy":
            kept = greedy(weight, table, count, writers, readers)
        else:
            kept = highest(weight, table, count)
        order = "most helpful" if helping else "largest"
        pruned = dataclasses.replace(found, computed=kept).pruned()
        left_out = int(kept.sum()) - pruned.edges
        some = f"{pruned.edges:,} of the " if left_out else "the "
        name = f"Circuit of {some}{count:,} {order} edges by {self.method}"
        name += ", grown from the logits" if method == "greedy" else ""
        name += f" ({left_out:,} lead{'s' * (left_out == 1)} nowhere)" if left_out else ""
        return dataclasses.replace(pruned, name=name)

    def recovery(self, truth: Circuit | Sequence[tuple[str, str]]) -> dict[str, float]:
        """How well the sizes of the scores tell a circuit that is known.

        Args:
            truth: the true circuit, or its edges as pairs of writer and reader; planted models have
                them (``nl.gym.planted_ioi().edges``).

        Returns:
            ``auroc``: how often a true edge has a larger score than another one, either way (1 for
            perfect, 0.5 for chance); ``found``: the share of true edges among as many of the
            largest scores; ``smallest_true`` and ``largest_other``, sizes of scores.

        Raises:
            InputError: the truth is none of this model, or has none or all of its edges; or a
                score is not known.
        """
        self._table()
        return recovery(self, truth, self.parallel)

    def to_eap_ig(self, path: str | os.PathLike[str], d_model: int | None = None) -> None:
        """Write the scores, with every edge in the graph, as EAP-IG and MIB read them.

        Args:
            path: ends in ``.json`` or ``.pt``; scores there are the negative of ours.
            d_model: width of the model; needed only of scores that came from a file.

        Raises:
            InputError: another ending, or the width or a score is not known.
            CheckpointError: it cannot be written.
        """
        chosen(self, self._table(), "", self._asked, self.parallel).to_eap_ig(path, d_model)

    def faithfulness(
        self,
        shares: Sequence[float] = SHARES,
        *,
        method: Literal["threshold", "greedy"] = "threshold",
        helping: bool = False,
        clean: PromptsLike | None = None,
        corrupted: PromptsLike | None = None,
        metric: Metric | None = None,
        model: HookedModel | None = None,
        ablation: Ablation = "resample",
        random: int = 5,
        seed: int = 0,
    ) -> FaithfulnessCurve:
        """How faithful circuits of many sizes are, beside random ones of the same size.

        Args:
            shares: of all edges, each above 0, at most 1.
            method: see ``circuit``.
            helping: see ``circuit``; MIB's CPR ranks like this, its CMD by magnitude.
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
        wanted = checked_shares(shares)
        circuits = [self.circuit(share=each, method=method, helping=helping) for each in wanted]
        name = f"Circuits by {self.method}" + (", grown" if method == "greedy" else "")
        return curve(
            circuits, wanted, name, clean, corrupted, metric, model,
            ablation=ablation, random=random, seed=seed,
        )  # fmt: skip


@torch.inference_mode(False)
def scores(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    method: Method = "eap-ig",
    *,
    steps: int = 5,
) -> EdgeScores:
    """Score every edge of the model.

    ``node_scores`` does the same for heads and MLPs, ``neuron_scores`` for neurons, and
    ``nl.features.circuit`` for features of dictionaries.

    Args:
        model: any class with a head.
        clean: the prompts with the behaviour.
        corrupted: what edges carry when they are removed; as many tokens, pair by pair, with the
            same roles in the same places (``nl.check_prompts`` looks).
        metric: ``logit_difference(..)`` or another of ``neox_lab.experiments.metrics``, or a
            function from logits to a scalar.
        method: see the module.
        steps: gradients that ``"eap-ig"`` and ``"ig-activations"`` average, for each writer of the
            latter.

    Returns:
        A score for each edge, as the mean over pairs; with ``per_row`` for each pair.

    Raises:
        InputError: an unknown method, pairs of unequal length or without difference, or a metric
            that does not fit, such as one without a gradient where one is needed.
        HookError: a function is spliced in between heads and MLPs.
    """
    check("method", method, one_of(*METHODS), InputError)
    steps = check("steps", steps, whole(least=1, most=MOST_STEPS), InputError)
    graph.check_whole(model)
    asked = Asked(model, clean, corrupted, metric)
    both = asked.pair()

    def exact() -> Tensor:
        return edge_sweep(model, corrupted, clean, metric, progress=False).effect()

    question = _Question(both)
    table = edge_table(question.writers, question.readers, question.parallel)
    known = table
    if method == "exact":
        sweep = edge_sweep(model, corrupted, clean, metric)
        values, per_row = sweep.effect(), None
        known = table & sweep.is_computed
        if sweep.samples is not None and sweep.base_samples is not None:
            per_row = sweep.samples - sweep.base_samples[:, None, None]
        ends = sweep.base, sweep.clean
    else:
        found = question.estimate(method, steps)
        values = found.sum(dim=0) if question.rows is None else found.mean(dim=0)
        per_row, ends = None if question.rows is None else found, question.ends
    done = f" (interrupted after {int(known.sum()):,} of {int(table.sum()):,})"
    return EdgeScores(
        values=values.masked_fill(~known, torch.nan),
        computed=known,
        axes=("writer", "reader"),
        labels=edge_labels(question.writers, question.readers),
        total=ends[1] - ends[0],
        per_row=None if per_row is None else per_row.masked_fill(~known, torch.nan),
        title=f"Edges by {method}" + ("" if torch.equal(known, table) else done),
        value_name=("" if method == "exact" else "estimated ")
        + EXACT_UNIT.format(metric_name(metric)),
        facts={"clean": ends[0], "corrupted": ends[1], "steps": float(steps)},
        method=method,
        parallel=question.parallel,
        _exact=with_same_splices(model, exact),
        _asked=asked,
    )


def read_scores(path: str | os.PathLike[str]) -> EdgeScores:
    """Scores that EAP-IG or ``to_eap_ig`` wrote; they know no model and no prompts.

    Args:
        path: a ``.json`` or ``.pt`` file.

    Returns:
        Scores with our sign: an edge that helps has a negative one.

    Raises:
        InputError: another ending.
        CheckpointError: it is no such file.
    """
    found = read(path)
    table = edge_table(found.writers, found.readers, found.parallel)
    return EdgeScores(
        values=found.values.masked_fill(~table, torch.nan),
        computed=table,
        axes=("writer", "reader"),
        labels=edge_labels(found.writers, found.readers),
        total=math.nan,
        per_row=None,
        title="Edges from a file",
        value_name=EXACT_UNIT.format("the metric"),
        facts={},
        method="a file of EAP-IG",
        parallel=found.parallel,
    )


def read_circuit(path: str | os.PathLike[str]) -> Circuit:
    """The edges that a file of EAP-IG says are in the graph, as a circuit; see ``read_scores``."""
    kept = read(path).kept
    found = read_scores(path)
    return chosen(found, kept, "Circuit from a file of EAP-IG", None, found.parallel)


class _Question:
    """Both runs of one question, and the estimates that gradients give.

    Attributes:
        both: its ``corrupted`` side are the clean prompts, which edges are removed from.
        rows: the metric of each clean prompt, or None if the metric does not know rows.
        ends: the metric of the clean and of the corrupted prompts.
    """

    def __init__(self, both: Pair) -> None:
        self.both, self.model = both, both.corrupted.model
        self.parallel = self.model.config.use_parallel_residual
        self.writers, self.readers = graph.writers(self.model), graph.readers(self.model)
        self.read = list(dict.fromkeys(node.reading_hook for node in self.readers))

    def estimate(self, method: str, steps: int) -> Tensor:
        """Scores of each pair ``[pair, writer, reader]``, or of all together ``[1, ..]``."""
        clean, corrupted = self.both.corrupted, self.both.clean
        written = list(dict.fromkeys(node.writing_hook for node in self.writers))
        layers = self.model.config.num_hidden_layers if method == "ig-activations" else 0
        streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(layers)]
        value, self.rows, own = gradients.activations(clean, [*written, *streams])
        other_value, _, other = gradients.activations(corrupted, written)
        self.ends = float(value), float(other_value)
        shape = (len(clean.ids), len(self.writers), *own["hook_embed"].shape[1:])
        changes = at_least_float32(own["hook_embed"]).new_empty(shape)
        for name in written:
            change = other[name] - own[name]
            for row, node in enumerate(self.writers):
                if node.writing_hook == name:
                    changes[:, row] = node.part_of(change)
        start, end = own["hook_embed"], other["hook_embed"]
        if method == "ig-activations":
            return self._by_writer(start, [own[name] for name in streams], changes, steps)
        places, weights = gradients.rule_of(method, steps)
        slopes = mean_slopes(clean, self.read, line(start, end, places), weights)
        return self._products(changes, slopes)

    def _products(self, changes: Tensor, slopes: Slopes, only: int | None = None) -> Tensor:
        """Changes of writers times the slopes of the readers after them, for each pair.

        Args:
            changes: ``[batch, writer, pos, d_model]``.
            slopes: of the readers.
            only: one writer; all if None.
        """
        scores = changes.new_zeros(len(changes), len(self.writers), len(self.readers))
        for name in self.read:
            columns = [at for at, reader in enumerate(self.readers) if reader.reading_hook == name]
            rows = [
                at
                for at, node in enumerate(self.writers)
                if node.precedes(self.readers[columns[0]], self.parallel) and only in (None, at)
            ]
            if rows:
                some = slice(rows[0], rows[-1] + 1)  # writers come in the order in which they write
                slope = slopes(name).to(changes).view(*changes[:, 0].shape[:2], len(columns), -1)
                slope = slope.transpose(1, 2).flatten(2)  # [batch, reader, pos * d_model]
                found = changes[:, some].flatten(2) @ slope.transpose(1, 2)
                scores[:, some, columns[0] : columns[-1] + 1] = found
        scores = scores.float()
        return (scores if self.rows is not None else scores.sum(dim=0, keepdim=True)).cpu()

    def _by_writer(
        self, embed: Tensor, streams: list[Tensor], changes: Tensor, steps: int
    ) -> Tensor:
        """The integral for each writer by itself: its output goes from u to u', nobody else's."""
        total, clean = torch.zeros((), dtype=torch.float32), self.both.corrupted
        places, weights = gradients.quadrature(steps)
        for row, node in enumerate(self.writers):
            if not changes[:, row].any():
                continue
            reading = [
                name
                for name in self.read
                if any(
                    reader.reading_hook == name and node.precedes(reader, self.parallel)
                    for reader in self.readers
                )
            ]
            path = line(torch.zeros_like(changes[:, row]), changes[:, row], places)
            embeds, added = embed + path, None
            if node.kind != "embed":
                embeds, added = embed.expand_as(path), Added(node, path, streams[node.layer])
            slopes = mean_slopes(clean, reading, embeds, weights, added)
            total = total + self._products(changes, slopes, row)
        return total
