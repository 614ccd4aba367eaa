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
from neox_lab.circuits.edges import edge_labels
from neox_lab.circuits.evaluation import Evaluation
from neox_lab.circuits.masked_runs import distance_to_clean, logits_under
from neox_lab.circuits.prompts import Asked
from neox_lab.circuits.runs import Ablation, CircuitRuns
from neox_lab.circuits.selection import highest, wanted
from neox_lab.errors import InputError
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
TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1  # the interval to which the sigmoid is stretched
BEGIN = 4.0
"""Location of every mask at first: fully open in 92 of 100 draws. With less, one edge of a chain of
five is nearly always half cut, and then the others have no gradient."""
UNFINISHED = 1.5  # expected open edges, as a multiple of those wanted, above which that is said
WARM_UP = 0.5  # share of the steps in which the target comes down


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
        progress: a bar with the time left, or who is told; see ``nl.patching.sweep``.

    Returns:
        The circuit with the record of the search; ``evaluate`` puts it to the test.

    Raises:
        InputError: an argument makes no sense, the metric is NaN or has no gradient, or nothing is
            left.
        HookError: a function is spliced in between heads and MLPs.
    """
    check("objective", objective, one_of("metric", "kl"), InputError)
    steps = check("steps", steps, COUNT, InputError)
    rate = check("learning_rate", learning_rate, number(above=0, below=math.inf), InputError)
    seed = check("seed", seed, SEED, InputError)
    tries = check("seeds", seeds, COUNT, InputError)
    check("seed", seed + tries - 1, SEED, InputError)
    asked = Asked(model, clean, corrupted, metric)
    runs = CircuitRuns(asked.pair(), ablation)
    runs.require_numbers()
    count = wanted("edges", edges, share, int(runs.table.sum()))
    searches: list[_Search] = []
    with watched(progress, "step") as watch:
        for own in range(tries):
            searches.append(_Search(runs, objective, count, rate, seed + own))
            for step in range(steps):
                searches[-1].step(step / max(1, WARM_UP * steps))
                watch.report(own * steps + step + 1, tries * steps)
    searches = [search for search in searches if search.record["step"]]
    if not searches:
        raise InputError("Interrupted before the first step: nothing was learned.")
    circuits = tuple(search.circuit(asked) for search in searches)
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
    masks = searches[0].masks()
    return PrunedEdges(circuits, make_frame(record), masks, unit, ablation, watch.complete)


class _Search:
    """Masks, the price of an open edge, and what happened so far."""

    def __init__(
        self, runs: CircuitRuns, objective: Objective, count: int, rate: float, seed: int
    ) -> None:
        self.runs, self.count, self.seed = runs, count, seed
        self.distance = distance_to_clean(runs, objective)
        self.table = runs.table.to(runs.replacements.device)
        self.total = int(runs.table.sum())
        self.location = torch.full(runs.table.shape, BEGIN, device=self.table.device)
        self.location.requires_grad_()
        self.adam = torch.optim.Adam([self.location], lr=rate)
        self.noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.unit = float(self.distance(logits_under(runs, torch.zeros_like(self.location))))
        if not self.unit > 0:
            raise InputError(
                "The answer is the same with every edge cut, so there is nothing to keep. Look at "
                "the pairs and the metric: nl.check_prompts(model, clean, corrupted, metric)."
            )
        self.price = 0.0
        self.record: dict[str, list[float]] = {
            name: [] for name in ("step", "distance", "expected_edges", "target", "price")
        }

    def step(self, done: float) -> None:
        """One draw of masks, and one step of Adam.

        Args:
            done: how far the target has come down, from 0.
        """
        target = self.total + (self.count - self.total) * min(1.0, done)
        drawn = torch.rand(self.location.shape, generator=self.noise).to(self.location.device)
        distance = self.distance(logits_under(self.runs, masks_of(self.location, drawn)))
        expected = open_probability(self.location)[self.table].sum()
        excess = (expected - target) / self.total
        (slope,) = torch.autograd.grad(distance / self.unit + self.price * excess, self.location)
        self.location.grad = slope
        self.adam.step()
        self.price = max(0.0, self.price + float(excess.detach()))
        found = (len(self.record["step"]), distance, expected, target, self.price)
        for name, value in zip(self.record, found, strict=True):
            self.record[name].append(float(torch.as_tensor(value).detach()))

    def circuit(self, asked: Asked) -> Circuit:
        """The edges whose masks are open now.

        Raises:
            InputError: nothing is left.
        """
        masks, runs, count = self.masks(), self.runs, self.count
        kept = highest(self.location.detach().cpu(), (masks > 0.5) & runs.table, count)
        found = Circuit(
            values=masks,
            computed=kept,
            axes=("writer", "reader"),
            labels=edge_labels(runs.writers, runs.readers),
            parallel=runs.parallel,
            name=f"Circuit of at most {count:,} edges by edge pruning",
            value_name="how far the mask is open",
            _asked=asked,
        ).pruned()
        if not found.edges:
            raise InputError(
                f"Nothing is left of {count:,} edges: no way from the embedding to the logits is "
                "open. Allow more edges, or more steps."
            )
        return found

    def masks(self) -> Tensor:
        """Masks without noise, 0 where there is no edge ``[writer, reader]``."""
        with torch.no_grad():
            return (masks_of(self.location, None) * self.table).cpu()


def masks_of(location: Tensor, drawn: Tensor | None) -> Tensor:
    """Hard-concrete masks.

    Args:
        location: of each distribution; large for an open edge.
        drawn: numbers from 0 to 1 of the same shape; None leaves the noise and the temperature out.
    """
    if drawn is None:
        soft = location.sigmoid()
    else:
        soft = ((torch.logit(drawn, eps=1e-6) + location) / TEMPERATURE).sigmoid()
    return (soft * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(location: Tensor) -> Tensor:
    """How likely each mask is not 0."""
    return (location - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()
