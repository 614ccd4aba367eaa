"""ACDC: take edges away, one after another, as long as nobody misses them.

From the logits down, each edge is removed by itself; if the metric then moves away from the clean
run's by less than a threshold more than before, it stays removed (Conmy et al., 2023,
arXiv:2304.14997). Parts of one layer stand at one level, in parallel blocks its MLP too, so the
order within a layer is arbitrary, and another order may give another circuit. How far that goes is
part of the answer: the search is made in several orders.
"""

from __future__ import annotations

import dataclasses
import itertools
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, check, number
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.edges import edge_labels
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.runs import Ablation, CircuitRuns
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.progress_report import ProgressReport, watched
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.frames import make_frame
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.views import NetworkView


@dataclasses.dataclass(frozen=True)
class AcdcResult(FrameResult):
    """Circuits that were found by taking edges away, one for each order.

    Attributes:
        circuits: what was left, without dangling edges.
        frame: one row for each order: ``order``, ``edges``, ``metric``, ``faithfulness`` with
            ``low`` and ``high`` over prompts, and ``runs`` that were made.
        threshold: how much more the metric might move for one edge, in its own unit.
    """

    circuits: tuple[Circuit, ...]
    frame: pd.DataFrame
    threshold: float

    @property
    def jaccard(self) -> float:
        """Mean Jaccard index of the edges of two orders; NaN where there is one order."""
        pairs = itertools.combinations(self.circuits, 2)
        found = [one.overlap(other)["jaccard"] for one, other in pairs]
        return float(np.mean(found)) if found else float("nan")

    @property
    def shared(self) -> Circuit:
        """The edges that are left in every order."""
        kept = torch.stack([circuit.kept for circuit in self.circuits]).all(dim=0)
        name = f"Edges left by ACDC in all of {len(self.circuits)} orders"
        return dataclasses.replace(self.circuits[0], computed=kept, name=name).pruned()

    def view(self) -> NetworkView:
        """The circuit of the first order, each edge with the number of orders that left it."""
        counts = torch.stack([circuit.kept.float() for circuit in self.circuits]).sum(dim=0)
        first = self.circuits[0]
        name = f"Circuit by ACDC, threshold {self.threshold:g}"
        if len(self.circuits) > 1:
            name += f"; mean Jaccard index of {len(self.circuits)} orders {self.jaccard:.2f}"
        what = "in how many orders the edge is left"
        values = counts * first.kept
        return dataclasses.replace(first, values=values, name=name, value_name=what).view()


def acdc(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    threshold: float,
    *,
    ablation: Ablation = "resample",
    orders: int = 3,
    seed: int = 0,
    progress: bool | ProgressReport = True,
) -> AcdcResult:
    """Take edges away as long as the metric stays where it is; see the module.

    The distance is the mean over prompts of ``|metric - metric of the clean run|``. Every edge
    costs a run from its reader's layer up, in every order: the 32,347 edges of Pythia-160m are for
    a GPU, and ``scores`` ranks them in seconds.

    Args:
        model: any class with a head.
        clean: see ``scores``.
        corrupted: see ``scores``.
        metric: see ``scores``; it needs no gradient.
        threshold: an edge whose removal adds less than this to the distance is removed.
        ablation: see ``Circuit.evaluate``.
        orders: how many orders are tried.
        seed: of the orders.
        progress: a bar with the time left, or who is told; see ``nl.patching.sweep``.

    Returns:
        A circuit for each order, and how much they agree.

    Raises:
        InputError: an argument makes no sense, the metric is NaN, or nothing is left.
        HookError: a function is spliced in between heads and MLPs.
    """
    threshold = check("threshold", threshold, number(above=0, below=float("inf")), InputError)
    orders = check("orders", orders, COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    asked = Asked(model, clean, corrupted, metric)
    runs = CircuitRuns(asked.pair(), ablation)
    runs.require_numbers()
    total, kept, counts = int(runs.table.sum()), [], []
    with watched(progress, "edge") as watch:
        for order in range(orders):
            left, made = runs.table.clone(), 0
            distance = 0.0
            for done, (row, column) in enumerate(_order(runs, Random(seed + order)), 1):
                left[row, column] = False
                if not _is_read(left, runs, column):
                    continue
                made += 1
                moved = _distance(runs, left)
                if moved - distance < threshold:
                    distance = moved
                else:
                    left[row, column] = True
                watch.report(order * total + done, orders * total)
            kept.append(left)
            counts.append(made)
    return _result(runs, asked, kept, counts, threshold)


def _result(
    runs: CircuitRuns, asked: Asked, kept: list[Tensor], counts: list[int], threshold: float
) -> AcdcResult:
    labels = edge_labels(runs.writers, runs.readers)
    circuits = tuple(
        Circuit(
            values=left.float(),
            computed=left,
            axes=("writer", "reader"),
            labels=labels,
            parallel=runs.parallel,
            name=f"Circuit by ACDC, threshold {threshold:g} {metric_name(asked.metric)}",
            value_name="1 for an edge that is left",
            _asked=asked,
        ).pruned()
        for left in kept
    )
    if not any(circuit.edges for circuit in circuits):
        raise InputError(
            f"Nothing is left at threshold={threshold:g}: no single edge moves the metric by as "
            "much. Give a smaller one."
        )
    tables = [circuit.kept for circuit in circuits]
    samples = runs.measure(torch.stack([runs.table, runs.table & False, *tables]))
    ratio = faithfulness(samples, samples[0], samples[1])
    frame = make_frame(
        {
            "order": list(range(len(circuits))),
            "edges": [circuit.edges for circuit in circuits],
            "metric": samples[2:].double().mean(dim=1).tolist(),
            "faithfulness": ratio.value[2:].tolist(),
            "low": ratio.low[2:].tolist(),
            "high": ratio.high[2:].tolist(),
            "runs": counts,
        }
    )
    return AcdcResult(circuits, frame, threshold)


def _order(runs: CircuitRuns, chance: Random) -> list[tuple[int, int]]:
    """Edges from the logits down; those of one layer, and of one writer's layer, at random."""
    columns = list(range(len(runs.readers)))
    chance.shuffle(columns)
    columns.sort(key=lambda column: -_level(runs, column))
    found = []
    for column in columns:
        rows = runs.table[:, column].nonzero().flatten().tolist()
        chance.shuffle(rows)
        rows.sort(key=lambda row: -runs.writers[row].layer)
        found += [(row, column) for row in rows]
    return found


def _level(runs: CircuitRuns, column: int) -> float:
    """How far up a reader stands; in sequential blocks the MLP stands above its heads."""
    node = runs.readers[column]
    return node.layer + (0.5 if node.kind == "mlp" and not runs.parallel else 0.0)


def _is_read(left: Tensor, runs: CircuitRuns, column: int) -> bool:
    """Whether anybody reads what this reader's part writes; if not, its edges change nothing."""
    node = runs.readers[column]
    if node.kind == "logits":
        return True
    row = next(
        row
        for row, writer in enumerate(runs.writers)
        if (writer.kind, writer.layer, writer.head) == (node.kind, node.layer, node.head)
    )
    return bool(left[row].any())


def _distance(runs: CircuitRuns, left: Tensor) -> float:
    return float((runs.measure(left[None])[0] - runs.clean).abs().mean())
