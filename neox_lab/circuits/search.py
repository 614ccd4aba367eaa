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
from collections.abc import Callable
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.checks import COUNT, SEED, check, number
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.edges import edge_labels
from neox_lab.circuits.elsewhere import runs_there, sendable
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.runs import Ablation, CircuitRuns
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor, run_pieces
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.progress_report import ProgressReport, watched
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.family.origins import Origin, origin_of
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
    executor: AnyExecutor | None = None,
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
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers take an
            order each; they load the model for themselves (``docs/many-machines.md``).
        progress: a bar with the time left, or who is told; see ``nl.patching.sweep``.

    Returns:
        A circuit for each order, and how much they agree.

    Raises:
        InputError: an argument makes no sense, the metric is NaN, nothing is left, or workers could
            not load the model.
        HookError: a function is spliced in between heads and MLPs.
        LostWorkerError: the worker of an order was lost again and again.
    """
    threshold = check("threshold", threshold, number(above=0, below=float("inf")), InputError)
    orders = check("orders", orders, COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    check("executor", executor, EXECUTOR, InputError)
    asked = Asked(model, clean, corrupted, metric)
    both = asked.pair()
    runs = CircuitRuns(both, ablation)
    runs.require_numbers()
    total = int(runs.table.sum())
    found: dict[int, tuple[Tensor, int]] = {}
    with watched(progress, "edge") as watch:
        if executor is None:
            for order in range(orders):

                def told(done: int, before: int = order * total) -> None:
                    watch.report(before + done, orders * total)

                found[order] = _taken_away(runs, threshold, seed + order, told)
        else:
            remove = _Remover(origin_of(model), sendable(both, ablation), threshold)
            seeds = range(seed, seed + orders)
            sent = run_pieces(executor, remove, seeds, called=lambda each: f"order {each - seed}")
            with closing(sent):
                for order, (left, made) in sent:
                    found[order] = torch.from_numpy(left), made
                    watch.report(len(found) * total, orders * total)
    if not found:
        raise InputError("Interrupted before the first order was done: nothing was found.")
    return _result(runs, asked, dict(sorted(found.items())), threshold)


@dataclasses.dataclass(frozen=True)
class _Remover:
    """What a worker does with an order; small, and can be pickled.

    Attributes:
        origin: of the model.
        question: see ``sendable``.
        threshold: see ``acdc``.
    """

    origin: Origin
    question: bytes
    threshold: float

    def __call__(self, seed: int) -> tuple[NDArray[np.bool_], int]:
        """See ``_taken_away``."""
        runs = runs_there(self.origin, self.question)
        left, made = _taken_away(runs, self.threshold, seed, lambda done: None)
        return left.numpy(), made


def _taken_away(
    runs: CircuitRuns, threshold: float, seed: int, told: Callable[[int], None]
) -> tuple[Tensor, int]:
    """What is left of all edges in one order ``[writer, reader]``, and how many runs were made."""
    left, made, distance = runs.table.clone(), 0, 0.0
    for done, (row, column) in enumerate(_order(runs, Random(seed)), 1):
        left[row, column] = False
        if not _is_read(left, runs, column):
            continue
        made += 1
        moved = _distance(runs, left)
        if moved - distance < threshold:
            distance = moved
        else:
            left[row, column] = True
        told(done)
    return left, made


def _result(
    runs: CircuitRuns, asked: Asked, found: dict[int, tuple[Tensor, int]], threshold: float
) -> AcdcResult:
    """What is left in each order, with its number and how many runs were made."""
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
        for left, _ in found.values()
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
            "order": list(found),
            "edges": [circuit.edges for circuit in circuits],
            "metric": samples[2:].double().mean(dim=1).tolist(),
            "faithfulness": ratio.value[2:].tolist(),
            "low": ratio.low[2:].tolist(),
            "high": ratio.high[2:].tolist(),
            "runs": [made for _, made in found.values()],
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
