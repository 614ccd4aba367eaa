"""Does a circuit do the job alone, is anything left outside it, and would others do as well?"""

from __future__ import annotations

import dataclasses
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import SEED, check, whole
from neox_lab.circuits.edges import edge_labels, edge_table
from neox_lab.circuits.elsewhere import measured_elsewhere
from neox_lab.circuits.faithfulness import faithfulness
from neox_lab.circuits.prompts import Asked, in_sample, prompts_of, seen_before
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.circuits.selection import random_circuit
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.frames import make_frame
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.circuits.circuit import Circuit
    from neox_lab.family.contract import HookedModel
    from neox_lab.views import BarsView

WHOLE, CIRCUIT, REST, NOTHING = "whole model", "circuit", "all but the circuit", "nothing"


@dataclasses.dataclass(frozen=True)
class Evaluation(FrameResult):
    """A circuit on prompts.

    Attributes:
        frame: one row each for the whole model, the circuit, all but the circuit, nothing, and
            every random circuit: ``run``, ``edges``, ``metric`` (mean over prompts), and
            ``faithfulness`` with ``low`` and ``high``, a 95 % interval over prompts. A circuit is
            complete when what is left without it does nothing: the faithfulness of "all but the
            circuit" is 0.
        samples: the metric of every prompt, a row for each of ``frame``, ``[run, sample]``.
        name: what was evaluated.
        ablation: what stood outside the circuit.
        metric: what was measured.
        seen: how many of the prompts the circuit was found with, None where nobody knows. What is
            measured on those is in-sample and says little of others.
    """

    frame: pd.DataFrame
    samples: Tensor
    name: str
    ablation: str
    metric: str
    seen: int | None = dataclasses.field(default=None, compare=False)

    @property
    def faithfulness(self) -> float:
        """Of the circuit."""
        return self._of(CIRCUIT)

    @property
    def left_outside(self) -> float:
        """Faithfulness of all but the circuit; 0 where the circuit is complete."""
        return self._of(REST)

    @property
    def random(self) -> pd.DataFrame:
        """The rows of random circuits."""
        rows = self.frame["run"].str.startswith("random")
        return self.frame[rows].reset_index(drop=True)

    @property
    def better_than_random(self) -> float:
        """Share of random circuits that are less faithful: further from 1.

        NaN without any, and where the faithfulness of one or of the circuit is NaN.
        """
        others = self.random["faithfulness"].to_numpy(dtype=float)
        if not len(others) or np.isnan([self.faithfulness, *others]).any():
            return float("nan")
        return float((abs(others - 1) > abs(self.faithfulness - 1)).mean())

    def _of(self, run: str) -> float:
        return float(self.frame.loc[self.frame["run"] == run, "faithfulness"].iloc[0])

    def view(self) -> BarsView:
        """Faithfulness of each, with random circuits as one bar of their mean."""
        from neox_lab.views import BarsView

        shown = self.frame[self.frame["run"].isin([CIRCUIT, REST])]
        names, values = shown["run"].tolist(), shown["faithfulness"].tolist()
        others = self.random["faithfulness"].to_numpy(dtype=float)  # pandas would leave NaN out
        if len(others):
            names.append(f"random (mean of {len(others)})")
            values.append(float(others.mean()))
            names.append("random (nearest to 1)")
            values.append(float(others[abs(others - 1).argmin()]))
        own = shown.iloc[0]
        # A metric that is a function gives one number for all prompts, and so no interval.
        known = self.samples.shape[1] > 1
        interval = f" [{own['low']:.2f}, {own['high']:.2f}]" if known else ", without an interval,"
        note = (
            f"Faithfulness of the circuit {own['faithfulness']:.2f}{interval} with "
            f"{own['edges']:,} edges; outside: {self.ablation}. 1 is the whole model, 0 is nothing."
        )
        title, told = f"{self.name}: faithfulness", in_sample(self.seen, self.samples.shape[1])
        if told:
            title += f" ({told})"
            note += " The circuit was found with prompts of these; give evaluate() held-out ones."
        return BarsView(names, values, title, note)


def evaluate(
    circuit: Circuit,
    asked: Asked | None,
    clean: PromptsLike | None,
    corrupted: PromptsLike | None,
    metric: Metric | None,
    model: HookedModel | None,
    *,
    ablation: str,
    random: int,
    seed: int,
    executor: AnyExecutor | None = None,
) -> Evaluation:
    """See ``Circuit.evaluate``."""
    check("executor", executor, EXECUTOR, InputError)
    random = check("random", random, whole(least=0, most=100_000), InputError)
    seed = check("seed", seed, SEED, InputError)
    both = prompts_of(asked, clean, corrupted, metric, model)
    runs = CircuitRuns(both, ablation)
    check_fit(circuit, runs)
    kept = circuit.kept
    table = edge_table(runs.writers, runs.readers, runs.parallel)
    chance = Random(seed)
    others = [
        random_circuit(table, int(kept.sum()), runs.writers, runs.readers, chance)
        for _ in range(random)
    ]
    names = [WHOLE, CIRCUIT, REST, NOTHING, *(f"random {at + 1}" for at in range(random))]
    tables = torch.stack([table, kept, table & ~kept, table & False, *others])
    samples = (
        runs.measure(tables)
        if executor is None
        else measured_elsewhere(executor, both, ablation, tables, runs.at_once)
    )
    ratio = faithfulness(samples, samples[0], samples[3], seed)
    frame = make_frame(
        {
            "run": names,
            "edges": tables.flatten(1).sum(dim=1).tolist(),
            "metric": samples.double().mean(dim=1).tolist(),
            "faithfulness": ratio.value.tolist(),
            "low": ratio.low.tolist(),
            "high": ratio.high.tolist(),
        }
    )
    return Evaluation(
        frame,
        samples,
        circuit.name or "Circuit",
        ablation,
        metric_name(both.corrupted.metric),
        seen_before(asked, both),
    )


def check_fit(circuit: Circuit, runs: CircuitRuns) -> None:
    """Refuse a circuit that is empty or of a model of another shape or wiring.

    Args:
        circuit: which.
        runs: of the model.

    Raises:
        InputError: it is.
    """
    require_shape(circuit, edge_labels(runs.writers, runs.readers), runs.parallel)
    require_edges(circuit.kept)


def require_shape(circuit: Circuit, labels: dict[str, list[str]], parallel: bool) -> None:
    """Refuse a circuit of a model of another shape or wiring.

    Args:
        circuit: which.
        labels: names of the writers and the readers of the model that it should be of.
        parallel: the wiring of that model.

    Raises:
        InputError: it is one.
    """
    if circuit.labels != labels:
        own, other = (
            [len(each[a]) for a in ("writer", "reader")] for each in (circuit.labels, labels)
        )
        raise InputError(
            f"The circuit belongs to a model with {own[0]} writers and {own[1]} readers; this one "
            f"has {other[0]} and {other[1]}."
        )
    if circuit.parallel != parallel:
        kinds = {True: "parallel", False: "sequential"}
        raise InputError(
            f"The circuit belongs to a model with {kinds[circuit.parallel]} blocks; this one's are "
            f"{kinds[parallel]}, where heads have {'no ' if parallel else ''}edges to the MLP of "
            "their own layer."
        )


def require_edges(kept: Tensor) -> None:
    """Refuse a circuit without edges.

    Args:
        kept: True for its edges ``[writer, reader]``.

    Raises:
        InputError: it has none.
    """
    if not bool(kept.any()):
        raise InputError("The circuit has no edge. Choose more edges, or a lower threshold.")
