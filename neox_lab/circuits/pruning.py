"""Edge pruning: masks of all edges are learned at once, by gradient.

Each edge has a mask between 0 (cut) and 1 (open), drawn anew in every step from a hard-concrete
distribution, which is a stretched and clipped sigmoid, so that a mask can be exactly 0 or 1 and
still has a gradient (Louizos et al., 2018, arXiv:1712.01312):

    mask = clip(1.2 · sigmoid((log u - log(1 - u) + location) / (2/3)) - 0.1, 0, 1),   u from (0, 1)
    P(mask > 0) = sigmoid(location + (2/3) · log 11)

What is minimised is the distance to the whole model plus a price times the excess of expected open
edges over a target, which comes down from all edges to the wanted number. The price rises as long
as there is an excess. (Cao et al., 2021, arXiv:2104.03514, "Low-complexity probing via finding
subnetworks"; Bhaskar et al., 2024, arXiv:2406.16778, "Finding Transformer Circuits with Edge
Pruning".) Unlike there, nodes have no masks of their own, one price stands for two multipliers, and
masks begin almost fully open. An edge that matters only while another is half open may stay, and
another seed may find other edges (``seeds=3`` says how many): ``evaluate`` on prompts of its own is
the judge.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, check, number, one_of
from neox_lab.circuits.circuit import Circuit
from neox_lab.circuits.evaluation import Evaluation
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.pruning_search import Learned, Search, Wanted, searched_elsewhere
from neox_lab.circuits.runs import Ablation, CircuitRuns
from neox_lab.circuits.selection import wanted
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor
from neox_lab.experiments.metrics import Metric, metric_name
from neox_lab.experiments.patching.progress_report import ProgressReport, watched
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.frames import make_frame
from neox_lab.notices import tell
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.views import CurvesView

Objective = Literal["metric", "kl"]
UNFINISHED = 1.5  # expected open edges, as a multiple of those wanted, above which that is said


@dataclasses.dataclass(frozen=True)
class PrunedEdges(FrameResult):
    """What edge pruning found, and how it went.

    Attributes:
        circuit: the edges whose masks are open at the end; as values their masks.
        circuits: the same of every seed; ``circuit`` is the first.
        frame: one row a step of each seed: ``seed``, ``step``, ``distance`` to the whole model
            under the masks that were drawn, ``expected_edges`` that are open, their ``target``, and
            the ``price`` of all edges together, as a multiple of the distance of the empty circuit.
        masks: of every edge at the end of the first seed, without noise, from 0 to 1
            ``[writer, reader]``.
        objective: what the distance is.
        ablation: what readers saw along cut edges.
        complete: False once it was interrupted; circuits are those of the last step, and seeds
            that did not begin have none.
    """

    circuits: tuple[Circuit, ...]
    frame: pd.DataFrame
    masks: Tensor
    objective: str
    ablation: Ablation
    complete: bool

    @property
    def circuit(self) -> Circuit:
        """That of the first seed."""
        return self.circuits[0]

    @property
    def overlaps(self) -> pd.DataFrame:
        """What each two seeds share, see ``Circuit.overlap``.

        Columns: ``first``, ``second`` (seeds), ``shared`` edges, ``jaccard`` index, and
        ``expected``, that of two circuits of these sizes drawn edge by edge at random.
        """
        seeds = self.frame["seed"].drop_duplicates().tolist()
        rows = [
            (seeds[a], seeds[b], *self.circuits[a].overlap(self.circuits[b]).values())
            for a, b in itertools.combinations(range(len(self.circuits)), 2)
        ]
        return make_frame(rows, columns=["first", "second", "shared", "jaccard", "expected"])

    def evaluate(
        self,
        clean: PromptsLike | None = None,
        corrupted: PromptsLike | None = None,
        metric: Metric | None = None,
        *,
        model: HookedModel | None = None,
        ablation: Ablation | None = None,
        random: int = 20,
        seed: int = 0,
    ) -> Evaluation:
        """Run the prompts with everything outside the circuit of the first seed ablated.

        Args:
            clean: see ``Circuit.evaluate``; give prompts that it was not found with.
            corrupted: see ``Circuit.evaluate``.
            metric: see ``Circuit.evaluate``.
            model: see ``Circuit.evaluate``.
            ablation: see ``Circuit.evaluate``; None for that of the search.
            random: see ``Circuit.evaluate``.
            seed: see ``Circuit.evaluate``.

        Raises:
            InputError: see ``Circuit.evaluate``.
            HookError: a function is spliced in between heads and MLPs.
        """
        outside = self.ablation if ablation is None else ablation
        return self.circuit.evaluate(
            clean, corrupted, metric, model=model, ablation=outside, random=random, seed=seed
        )

    def view(self) -> CurvesView:
        """Distance and open edges over the steps of the first seed."""
        from neox_lab.views import CurvesView, Line

        frame, edges, name = self.frame, "edges", self.circuit.name
        frame = frame[frame["seed"] == frame["seed"].iloc[0]]
        if len(self.circuits) > 1:
            found, chance = (self.overlaps[column].mean() for column in ("jaccard", "expected"))
            name = f"Edge pruning, {len(self.circuits)} seeds: mean Jaccard index {found:.2f}"
            name += f" (by chance {chance:.2f})"
        steps = frame["step"]
        return CurvesView(
            name,
            {
                "distance": Line(steps, frame["distance"]),
                "expected edges": Line(steps, frame["expected_edges"], y_label=edges),
                "target": Line(steps, frame["target"], y_label=edges, faint=True),
            },
            "step",
            f"distance: {self.objective}",
        )


@torch.inference_mode(False)
def prune_edges(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    edges: int | None = None,
    share: float | None = None,
    *,
    objective: Objective = "kl",
    ablation: Ablation = "resample",
    steps: int = 500,
    learning_rate: float = 0.1,
    seed: int = 0,
    seeds: int = 1,
    executor: AnyExecutor | None = None,
    progress: bool | ProgressReport = True,
) -> PrunedEdges:
    """Learn which edges can be cut, all at once; see the module.

    A step costs one run forward and one back, however many edges there are.

    Args:
        model: any class with a head.
        clean: see ``scores``.
        corrupted: see ``scores``.
        metric: see ``scores``; with ``objective="metric"`` it needs a gradient.
        edges: how many may be left; fewer are where more are not needed, or lie on no way from the
            embedding to the logits.
        share: or which share of all edges, from 0 to 1.
        objective: what shall stay as it is: ``"kl"``, the whole prediction where the metric reads
            it (at every token for a function of your own), by its divergence; ``"metric"``, the
            metric of each prompt, by its absolute change.
        ablation: what readers see along cut edges; see ``Circuit.evaluate``.
        steps: steps of Adam.
        learning_rate: of the masks.
        seed: of their noise.
        seeds: search so many times, with this seed and the next ones: ``overlaps`` says how far
            they find the same.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers take a seed
            each; they load the model for themselves (``docs/many-machines.md``).
        progress: a bar with the time left, or who is told; see ``nl.patching.sweep``.

    Returns:
        The circuit with the record of the search; ``evaluate`` puts it to the test.

    Raises:
        InputError: an argument makes no sense, the metric is NaN or has no gradient, nothing is
            left, or workers could not load the model.
        HookError: a function is spliced in between heads and MLPs.
        LostWorkerError: the worker of a seed was lost again and again.
    """
    check("objective", objective, one_of("metric", "kl"), InputError)
    steps = check("steps", steps, COUNT, InputError)
    rate = check("learning_rate", learning_rate, number(above=0, below=math.inf), InputError)
    seed = check("seed", seed, SEED, InputError)
    tries = check("seeds", seeds, COUNT, InputError)
    check("seed", seed + tries - 1, SEED, InputError)
    check("executor", executor, EXECUTOR, InputError)
    asked = Asked(model, clean, corrupted, metric)
    both = asked.pair()
    runs = CircuitRuns(both, ablation)
    runs.require_numbers()
    count = wanted("edges", edges, share, int(runs.table.sum()))
    wants = Wanted(objective, count, rate, steps)
    learned: dict[int, Learned] = {}
    with watched(progress, "step") as watch:
        if executor is None:
            for own in range(tries):
                search = Search(runs, wants, seed + own)
                learned[seed + own] = search.learned

                def told(done: int, before: int = own * steps) -> None:
                    watch.report(before + done, tries * steps)

                search.run(told)
        else:
            seeds_there = range(seed, seed + tries)
            for each in searched_elsewhere(executor, both, ablation, wants, seeds_there):
                learned[each.seed] = each
                watch.report(len(learned) * steps, tries * steps)
    searches = [each for _, each in sorted(learned.items()) if each.record["step"]]
    if not searches:
        raise InputError("Interrupted before the first step: nothing was learned.")
    circuits = tuple(search.circuit(runs, count, asked) for search in searches)
    expected = max(search.record["expected_edges"][-1] for search in searches)
    if watch.complete and expected > UNFINISHED * count:
        tell(
            f"Edge pruning stopped while {expected:,.0f} edges were expected open and {count:,} "
            "wanted: the circuit is the most open of them, and nobody tried it alone. Give more "
            f"steps than {steps:,}."
        )
    unit = f"|change of {metric_name(metric)}|" if objective == "metric" else "KL divergence, nats"
    record: dict[str, Sequence[float]] = {
        "seed": [search.seed for search in searches for _ in search.record["step"]]
    }
    record |= {
        name: [value for search in searches for value in search.record[name]]
        for name in searches[0].record
    }
    masks = searches[0].masks(runs)
    return PrunedEdges(circuits, make_frame(record), masks, unit, ablation, watch.complete)
