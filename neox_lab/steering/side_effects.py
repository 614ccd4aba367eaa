"""What else steering changes: the tasks of the small world, unsteered, steered, and controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from neox_lab.frames import make_frame
from neox_lab.gym.evaluation import evaluate
from neox_lab.results import FrameResult
from neox_lab.steering.places import Places

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import LanguageModel
    from neox_lab.steering.directions import Direction
    from neox_lab.views import BarsView


@dataclasses.dataclass(frozen=True)
class SideEffects(FrameResult):
    """Accuracy by task, with steering and without.

    Attributes:
        frame: one row a task: ``task``, ``count``; ``unsteered``, ``steered`` and ``random`` (a
            random direction of equal length), the accuracies, each with Wilson's interval
            (``steered_low``, ...); ``logit_difference`` likewise, before and after.
        scale: how far it was steered.
    """

    frame: pd.DataFrame
    scale: float

    def view(self) -> BarsView:
        """How much each task's accuracy changes."""
        from neox_lab.views import BarsView

        asked = self.frame[self.frame["count"] > 0]
        other = (asked["random"] - asked["unsteered"]).tolist()
        names = [
            f"{task} (random {moved:+.0%})"
            for task, moved in zip(asked["task"], other, strict=True)
        ]
        change = (asked["steered"] - asked["unsteered"]).to_numpy()
        note = f"Change of accuracy at scale {self.scale:g}; in brackets with a random direction."
        return BarsView(names, change, "Side effects", note)


def side_effects(
    direction: Direction,
    scale: float = 1.0,
    tasks: Sequence[str] | None = None,
    mode: str = "add",
    positions: Places = "all",
    count: int = 100,
    seed: int = 0,
) -> SideEffects:
    """See ``Direction.side_effects``."""
    model = cast("LanguageModel", direction.model)
    found = {"unsteered": evaluate(model, tasks, count=count, seed=seed).frame}
    for name, each in (("steered", direction), ("random", direction.control("random"))):
        with each.steer(scale, positions, mode):
            found[name] = evaluate(model, tasks, count=count, seed=seed).frame
    plain = found["unsteered"]
    columns: dict[str, object] = {"task": plain["task"], "count": plain["count"]}
    for name, rows in found.items():
        for end in ("", "_low", "_high"):
            columns[name + end] = rows[f"accuracy{end}"]
        columns[f"{name}_logit_difference"] = rows["logit_difference"]
    return SideEffects(make_frame(columns), float(scale))
