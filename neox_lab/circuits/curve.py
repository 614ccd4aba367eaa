"""Faithfulness over the size of the circuit, with the areas that MIB reports.

    CPR = ∫ f dk        CMD = ∫ |1 - f| dk         k: share of all edges, from 0.001 to 1

or, for circuits of whole nodes, k: share of all nodes.

MIB (Mueller et al., 2025, arXiv:2504.13151) takes k as it was *requested*, before pruning, on a
linear axis, where half the area is decided between 50 and 100 % of the edges and what happens below
1 % hardly counts. ``cpr`` and ``cmd`` are these. ``cpr_log`` and ``cmd_log`` take the share that
is really there, on a logarithmic axis, as a mean over it: there f = 1 everywhere gives 1 and 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import SEED, check, number, several, whole
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.edges import edge_labels, edge_table
from neox_lab.circuits.evaluation import NOTHING, WHOLE, require_shape
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.circuits.prompts import in_sample, prompts_of, seen_before
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.selection import counted, random_circuit
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.frames import make_frame
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.views import CurvesView


SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all edges, or of all nodes, at which MIB evaluates circuits."""


class Nodes(NamedTuple):
    """What is known of circuits of whole nodes.

    Attributes:
        total: how many heads and MLPs the model has.
        at_random: the edges among a share of them, drawn at random, ``[writer, reader]``.
    """

    total: int
    at_random: Callable[[float, Random], Tensor]


@dataclasses.dataclass(frozen=True)
class FaithfulnessCurve(FrameResult):
    """Circuits of many sizes.

    Attributes:
        frame: one row a size: ``requested`` (share of all edges, or of all nodes),
            ``requested_edges`` or ``requested_nodes``, ``edges`` and ``share`` of all edges (after
            pruning), ``metric``, ``faithfulness`` with ``low`` and ``high`` over prompts, and of
            random circuits of about as many edges, or of as many nodes, ``random`` (mean),
            ``random_low`` and ``random_high`` (lowest and highest) and ``random_edges`` (mean).
        name: how circuits were found.
        ablation: what stood outside them.
        ends: the metric of the whole model and with everything ablated.
        seen: see ``Evaluation``.
        prompts: how many there are.
    """

    frame: pd.DataFrame
    name: str
    ablation: str
    ends: dict[str, float]
    seen: int | None = dataclasses.field(default=None, compare=False)
    prompts: int = 0

    @property
    def cpr(self) -> float:
        """∫ f over the requested share, as in MIB; higher is better; NaN for one size."""
        return self._area(self.frame["faithfulness"])

    @property
    def cmd(self) -> float:
        """∫ |1 - f| over the requested share, as in MIB; 0 is best; NaN for one size."""
        return self._area((1 - self.frame["faithfulness"]).abs())

    def _area(self, values: pd.Series[float]) -> float:
        """Over the requested share; one size has no area, which is not the best CMD."""
        x = self.frame["requested"]
        return _area(x, values) if x.nunique() > 1 else float("nan")

    @property
    def cpr_log(self) -> float:
        """Mean of f over the logarithm of the share that is there."""
        return self._log_mean(self.frame["faithfulness"])

    @property
    def cmd_log(self) -> float:
        """Mean of |1 - f| over the logarithm of the share that is there."""
        return self._log_mean((1 - self.frame["faithfulness"]).abs())

    def _log_mean(self, values: pd.Series[float]) -> float:
        there = self.frame["share"] > 0
        x = np.log(self.frame["share"][there].to_numpy())
        if len(x) < 2 or x[-1] == x[0]:
            return float("nan")
        return _area(x, values[there]) / float(x[-1] - x[0])

    def view(self) -> CurvesView:
        """Faithfulness over the number of edges, sizes at equal distances; empty circuits left out.

        Raises:
            InputError: every circuit is empty.
        """
        from neox_lab.views import CurvesView, Line

        frame, told = self.frame[self.frame["edges"] > 0], in_sample(self.seen, self.prompts)
        places = list(range(len(frame)))
        lines = {"circuit": Line(places, frame["faithfulness"], frame["low"], frame["high"])}
        if frame["random"].notna().any():
            lines["random circuits"] = Line(
                places, frame["random"], frame["random_low"], frame["random_high"]
            )
        return CurvesView(
            f"{self.name}; outside: {self.ablation}" + (f"; {told}" if told else ""),
            lines,
            "edges",
            "faithfulness",
            [f"{edges:,}" for edges in frame["edges"]],
            {"whole model": 1.0, "nothing": 0.0},
        )


def checked_shares(shares: object) -> list[float]:
    """Shares of all edges or nodes, the smallest first.

    Args:
        shares: what a user gave.

    Raises:
        InputError: they are none.
    """
    listed = several("shares", shares, "shares of a whole", InputError)
    wanted = sorted(check("shares", s, number(above=0, most=1), InputError) for s in listed)
    if not wanted:
        raise InputError("shares is empty; give at least one, such as 0.01.")
    return wanted


def curve(
    circuits: Sequence[Circuit],
    requested: Sequence[float],
    name: str,
    clean: PromptsLike | None,
    corrupted: PromptsLike | None,
    metric: Metric | None,
    model: HookedModel | None,
    *,
    ablation: str,
    random: int,
    seed: int,
    nodes: Nodes | None = None,
) -> FaithfulnessCurve:
    """See ``EdgeScores.faithfulness``.

    Args:
        circuits: those of the ``requested`` shares.
        requested: of all edges or nodes.
        name: how circuits were found.
        clean: see ``Circuit.evaluate``.
        corrupted: see ``Circuit.evaluate``.
        metric: see ``Circuit.evaluate``.
        model: see ``Circuit.evaluate``.
        ablation: see ``Circuit.evaluate``.
        random: random circuits for each size.
        seed: of these, and of the intervals.
        nodes: of circuits of whole nodes; then random ones are too.
    """
    random = check("random", random, whole(least=0, most=100_000), InputError)
    seed = check("seed", seed, SEED, InputError)
    asked = circuits[0]._asked
    both = prompts_of(asked, clean, corrupted, metric, model)
    runs = CircuitRuns(both, ablation)
    table = edge_table(runs.writers, runs.readers, runs.parallel)
    labels = edge_labels(runs.writers, runs.readers)
    for circuit in circuits:
        require_shape(circuit, labels, runs.parallel)
    chance = Random(seed)
    others = [
        random_circuit(table, circuit.edges, runs.writers, runs.readers, chance)
        if nodes is None
        else nodes.at_random(share, chance)
        for share, circuit in zip(requested, circuits, strict=True)
        for _ in range(random)
    ]
    tables = [table, table & False, *(circuit.kept for circuit in circuits), *others]
    samples = runs.measure(torch.stack(tables))
    ratio = faithfulness(samples, samples[0], samples[1], seed)
    found, last = slice(2, 2 + len(requested)), 2 + len(requested)
    null = ratio.value[last:].view(len(requested), random) if random else None
    total = int(table.sum())
    drawn = torch.tensor([float(kept.sum()) for kept in others], dtype=torch.float32).view(
        len(circuits), random
    )
    missing = [math.nan] * len(requested)
    edges = [circuit.edges for circuit in circuits]
    frame = make_frame(
        {
            "requested": requested,
            **(
                {"requested_edges": [counted(share, total) for share in requested]}
                if nodes is None
                else {"requested_nodes": [counted(share, nodes.total) for share in requested]}
            ),
            "edges": edges,
            "share": [count / total for count in edges],
            "metric": samples[found].double().mean(dim=1).tolist(),
            "faithfulness": ratio.value[found].tolist(),
            "low": ratio.low[found].tolist(),
            "high": ratio.high[found].tolist(),
            "random": missing if null is None else null.mean(dim=1).tolist(),
            "random_low": missing if null is None else null.amin(dim=1).tolist(),
            "random_high": missing if null is None else null.amax(dim=1).tolist(),
            "random_edges": missing if null is None else drawn.mean(dim=1).tolist(),
        }
    )
    ends = {WHOLE: float(samples[0].double().mean()), NOTHING: float(samples[1].double().mean())}
    seen = seen_before(asked, both)
    return FaithfulnessCurve(frame, name, ablation, ends, seen, len(both.corrupted.ids))


def _area(x: object, y: object) -> float:
    """Trapezoids."""
    return float(np.trapezoid(np.asarray(y, dtype=float), np.asarray(x, dtype=float)))
