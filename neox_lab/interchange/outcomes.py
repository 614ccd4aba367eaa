"""Interchange accuracy: how often bases answer as the causal model says, beside its nulls.

An accuracy alone says little: a model that ignores the exchange is right wherever the label stays
the same, and a subspace that was fitted to pairs may do well where there is no variable. So pairs
whose label does not change are left out, and the same is asked of

    random subspace      as many directions, drawn at random
    permuted labels      directions trained with the labels of other pairs
    random model         the same procedure on a model of the same shape with fresh weights

Each null is drawn several times, for one draw says little (see ``nulls``). ``chance`` is what the
best guess without reading anything would get: the share of the commonest label. A null that does
nothing at all gets 0.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check, name_not_finite
from neox_lab.data.statistics import student_interval, wilson_interval
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.interchange.cached_runs import BATCH, CachedRuns, Change
from neox_lab.interchange.sites import Site
from neox_lab.model.identity import Identity, identity
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.files import StrPath
    from neox_lab.views import BarsView

FOUND, WHOLE = "subspace", "whole site"
RANDOM, PERMUTED, UNTRAINED = "random subspace", "permuted labels", "random model"
NULLS = (RANDOM, PERMUTED, UNTRAINED)
NULL_COLUMNS = ("null", "draws", "mean", "low", "high", "largest", "reached", "p")
NO_ANSWER = -1
"""Among answers: of a pair whose logits are NaN."""
MISSED = 0.2
"""What a subspace may lack of the whole site before that is said."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one exchange did to the pairs whose label changes.

    Attributes:
        right: share that answers as the causal model says; NaN where an answer is.
        kept: share that still gives the base's label, likewise.
        count: how many pairs.
    """

    right: float
    kept: float
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval of ``right`` (Wilson, J. Am. Stat. Assoc. 22, 1927); NaNs of NaN."""
        return wilson_interval(self.right * self.count, self.count)

    def row(self, name: str) -> dict[str, object]:
        """A line of a table."""
        low, high = self.interval
        return {
            "run": name,
            "accuracy": self.right,
            "low": low,
            "high": high,
            "kept_base": self.kept,
            "other": max(1 - self.right - self.kept, 0.0),  # NaN stays NaN in this order
        }


def outcome(runs: CachedRuns, change: Change, batch_size: int) -> Outcome:
    """What an exchange does to the pairs whose label changes.

    Args:
        runs: of the pairs.
        change: what bases get.
        batch_size: pairs in a run.
    """
    pairs = runs.pairs
    numbers = pairs.changes.nonzero().flatten()
    answered = _answered(runs, numbers, change, batch_size)
    right = _share(answered, pairs.labels[numbers])
    return Outcome(right, _share(answered, pairs.base_labels[numbers]), len(numbers))


@torch.no_grad()
def _answered(runs: CachedRuns, numbers: Tensor, change: Change, batch_size: int) -> Tensor:
    """What the model answers to some bases, ``[pair]``; ``NO_ANSWER`` where a logit is NaN."""
    parts: list[Tensor] = []
    for rows in numbers.split(batch_size):  # type: ignore[no-untyped-call]
        logits = runs.logits(rows, change)
        unknown = logits.isnan().any(dim=-1)
        parts.append(logits.argmax(dim=-1).masked_fill(unknown, NO_ANSWER))
    return torch.cat(parts)


def _share(answered: Tensor, labels: Tensor) -> float:
    """Share of pairs with this answer; NaN where there is none to one of them."""
    if bool((answered == NO_ANSWER).any()):
        return math.nan
    return float((answered == labels).double().mean())


@dataclasses.dataclass(frozen=True)
class InterchangeResult(FrameResult):
    """How well exchanging a site follows a causal model, on pairs whose label changes.

    Attributes:
        frame: a row for what was asked about, ``"subspace"`` or ``"whole site"``, and one for each
            draw of each null: ``run``, ``accuracy`` with ``low`` and ``high`` (95 %), ``kept_base``
            (share that still gives the base's label: nothing happened) and ``other`` (neither
            label).
        site: where, with the subspace that was found.
        variable: of the causal model.
        pairs: on how many pairs it was tested.
        unchanged: how many were left out because their label does not change.
        chance: share of the commonest label among those tested.
        base_accuracy: share of all bases that the model answers rightly without an exchange.
        losses: of each step of training ``[step]``; empty where nothing was trained.
        identity: of the model; None where nobody said.
    """

    frame: pd.DataFrame
    site: Site
    variable: str
    pairs: int
    unchanged: int
    chance: float
    base_accuracy: float
    losses: Tensor
    identity: Identity | None = None

    @property
    def accuracy(self) -> float:
        """Interchange accuracy of what was asked about."""
        return float(self.frame["accuracy"].iloc[0])

    @property
    def nulls(self) -> dict[str, float]:
        """The accuracy of each null, by name: the mean of its draws."""
        found = self.null_frame
        return dict(zip(found["null"], found["mean"], strict=True))

    @property
    def null_frame(self) -> pd.DataFrame:
        """The finding against its nulls, a row each.

        ``null``; ``draws``, how many; ``mean`` accuracy with ``low`` and ``high`` (95 %: Student's
        over draws, or Wilson's over pairs where that is wider); the ``largest`` draw; how many
        draws ``reached`` the finding; and ``p``, the chance of that where there is nothing to find:
        (reached + 1) / (draws + 1). What is compared with NaN is NaN.
        """
        rows, by_name = [], dict[str, list[float]]()
        for run, accuracy in zip(self.frame["run"], self.frame["accuracy"], strict=True):
            if (name := str(run).rstrip("0123456789 ")) in NULLS:
                by_name.setdefault(name, []).append(float(accuracy))
        for name, values in by_name.items():
            mean = sum(values) / len(values)
            low, high = Outcome(mean, 0.0, self.pairs).interval
            known = not any(map(math.isnan, [self.accuracy, *values]))
            if len(values) > 1 and not math.isnan(mean):
                within = student_interval(values)
                low, high = max(0.0, min(low, within[0])), min(1.0, max(high, within[1]))
            reached = sum(value >= self.accuracy for value in values)
            rows.append({
                "null": name, "draws": len(values), "mean": mean, "low": low, "high": high,
                "largest": max(values) if not math.isnan(mean) else mean, "reached": reached,
                "p": (reached + 1) / (len(values) + 1) if known else math.nan,
            })  # fmt: skip
        return make_frame(rows, list(NULL_COLUMNS))

    @property
    def rank(self) -> int:
        """How many directions are exchanged; 0 for the whole site."""
        return 0 if self.site.subspace is None else self.site.subspace.shape[1]

    def view(self) -> BarsView:
        """Accuracies as bars, of each null the mean of its draws."""
        from neox_lab.views import BarsView

        own, nulls = self.frame.iloc[0], self.null_frame
        rank = f", {self.rank} direction{'s' if self.rank > 1 else ''}" if self.rank else ""
        note = (
            f"{own['accuracy']:.2f} [{own['low']:.2f}, {own['high']:.2f}] of {self.pairs} held-out "
            f"pairs{rank}; {self.unchanged} more were left out, whose label does not change. "
            f"Without an exchange the model answers {self.base_accuracy:.2f} of the bases rightly."
        )
        if len(nulls):
            largest, name = max(zip(nulls["largest"], nulls["null"], strict=True))
            note += (
                f" Nulls are means of draws: {int(nulls['reached'].sum())} of "
                f"{int(nulls['draws'].sum())} reach the finding, the largest is "
                f"{largest:.2f} ({name})."
            )
        whole = self.frame.loc[self.frame["run"] == WHOLE, "accuracy"]
        if self.rank and len(whole) and whole.iloc[0] - own["accuracy"] > MISSED:
            note += (
                f" The whole site gives {whole.iloc[0]:.2f}, so this subspace has not found all of "
                "it: train longer (epochs=), or give it more directions (rank=)."
            )
        bars = {str(own["run"]): float(own["accuracy"])}
        if len(whole):
            bars[WHOLE] = float(whole.iloc[0])
        title = "Interchange accuracy" + (f": {self.variable}" if self.variable else "")
        bars |= self.nulls | {"commonest label (chance)": self.chance}
        return BarsView(list(bars), list(bars.values()), title, note)

    def save(self, path: StrPath) -> Path:
        """Write it, with the subspace and which model it belongs to.

        Args:
            path: a safetensors file; one that is there is replaced when the new one is whole.

        Returns:
            Where it is.

        Raises:
            CheckpointError: the file cannot be written.
        """
        from neox_lab.interchange.saving import save

        return save(self, path)

    @classmethod
    def load(
        cls, path: StrPath, model: HookedModel | None = None, *, same: bool = True
    ) -> InterchangeResult:
        """What ``save`` wrote; its ``site`` goes to ``nl.interchange.accuracy`` and ``run``.

        Args:
            path: the file.
            model: the model it belongs to, to see that it does.
            same: it must be the model that the subspace was found in; False to try it in another,
                such as another training step.

        Raises:
            CheckpointError: there is no such file, it is damaged or something else, or it belongs
                to another model.
            InputError: the model has no such site, or one of another width.
        """
        from neox_lab.interchange.saving import load

        return cls(**load(path, model, check("same", same, SWITCH, InputError)))


def result_of(
    runs: CachedRuns,
    rows: dict[str, Outcome],
    site: Site,
    variable: str,
    chance: float,
    losses: Tensor,
) -> InterchangeResult:
    """The result of what was asked about (the first of ``rows``) and its nulls."""
    changes = runs.pairs.changes
    every = torch.arange(len(runs), device=changes.device)
    unchanged = _answered(runs, every, lambda own, other: own, BATCH)
    unknown = (unchanged == NO_ANSWER).nonzero().flatten().tolist()
    name_not_finite("What the model says to the base", (f"pair {row}" for row in unknown))
    if not unknown:
        name_not_finite(
            "The accuracy", [name for name, found in rows.items() if math.isnan(found.right)]
        )
    return InterchangeResult(
        make_frame([found.row(name) for name, found in rows.items()]),
        site,
        variable,
        int(changes.sum()),
        int((~changes).sum()),
        chance,
        _share(unchanged, runs.pairs.base_labels),
        losses,
        identity(runs.model),
    )
