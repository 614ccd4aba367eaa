"""Faithfulness over the size of the circuit, with the areas that MIB reports.

    CPR = ∫ f dk        CMD = ∫ |1 - f| dk         k: share of all edges, from 0.001 to 1

MIB (Mueller et al., 2025, arXiv:2504.13151) takes k as it was *requested*, before pruning, on a
linear axis, where half the area is decided between 50 and 100 % of the edges and what happens below
1 % hardly counts. ``cpr`` and ``cmd`` are these. ``cpr_log`` and ``cmd_log`` take the share that
is really there, on a logarithmic axis, as a mean over it: there f = 1 everywhere gives 1 and 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch

from neox_lab.checks import SEED, check, number, several, whole
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.edges import edge_labels, edge_table
from neox_lab.circuits.evaluation import NOTHING, WHOLE, require_shape
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.circuits.prompts import prompts_of
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.selection import random_circuit
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.frames import make_frame
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.views import CurvesView


@dataclasses.dataclass(frozen=True)
class FaithfulnessCurve(FrameResult):
    """Circuits of many sizes.

    Attributes:
        frame: one row a size: ``requested`` (share of all edges), ``requested_edges``, ``edges``
            and ``share`` (after pruning), ``metric``, ``faithfulness`` with ``low`` and ``high``
            over prompts, and of random circuits of about as many edges ``random`` (mean),
            ``random_low`` and ``random_high`` (lowest and highest) and ``random_edges`` (mean).
        name: how circuits were found.
        ablation: what stood outside them.
        ends: the metric of the whole model and with everything ablated.
    """

    frame: pd.DataFrame
    name: str
    ablation: str
    ends: dict[str, float]

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

        frame = self.frame[self.frame["edges"] > 0]
        places = list(range(len(frame)))
        lines = {"circuit": Line(places, frame["faithfulness"], frame["low"], frame["high"])}
        if frame["random"].notna().any():
            lines["random circuits"] = Line(
                places, frame["random"], frame["random_low"], frame["random_high"]
            )
        return CurvesView(
            f"{self.name}; outside: {self.ablation}",
            lines,
            "edges",
            "faithfulness",
            [f"{edges:,}" for edges in frame["edges"]],
            {"whole model": 1.0, "nothing": 0.0},
        )


def checked_shares(shares: object) -> list[float]:
    """Shares of all edges, the smallest first.

    Args:
        shares: what a user gave.

    Raises:
        InputError: they are none.
    """
    listed = several("shares", shares, "shares of all edges", InputError)
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
) -> FaithfulnessCurve:
    """See ``EdgeScores.faithfulness``; ``circuits`` are those of the ``requested`` shares."""
    random = check("random", random, whole(least=0, most=100_000), InputError)
    seed = check("seed", seed, SEED, InputError)
    runs = CircuitRuns(prompts_of(circuits[0]._asked, clean, corrupted, metric, model), ablation)
    table = edge_table(runs.writers, runs.readers, runs.parallel)
    labels = edge_labels(runs.writers, runs.readers)
    for circuit in circuits:
        require_shape(circuit, labels, runs.parallel)
    chance = Random(seed)
    others = [
        random_circuit(table, circuit.edges, runs.writers, runs.readers, chance)
        for circuit in circuits
        for _ in range(random)
    ]
    tables = [table, table & False, *(circuit.kept for circuit in circuits), *others]
    samples = runs.measure(torch.stack(tables))
    ratio = faithfulness(samples, samples[0], samples[1], seed)
    found, last = slice(2, 2 + len(requested)), 2 + len(requested)
    null = ratio.value[last:].view(len(requested), random) if random else None
    total = int(table.sum())
    drawn = torch.tensor([float(kept.sum()) for kept in others]).view(len(circuits), random)
    missing = [math.nan] * len(requested)
    edges = [circuit.edges for circuit in circuits]
    frame = make_frame(
        {
            "requested": requested,
            "requested_edges": [max(1, int(share * total)) for share in requested],
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
    return FaithfulnessCurve(frame, name, ablation, ends)


def _area(x: object, y: object) -> float:
    """Trapezoids."""
    return float(np.trapezoid(np.asarray(y, dtype=float), np.asarray(x, dtype=float)))
