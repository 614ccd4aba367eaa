"""What evaluation and prediction return: metrics, a row for each example, and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import BarsView, View


@dataclasses.dataclass(frozen=True)
class TaskResult(Result):
    """The result of ``evaluate`` or ``predict``; shown in a notebook it is its picture.

    Attributes:
        frame: one row for each example, or for each thing found in it.
        metrics: numbers over all examples; empty for predictions.
        picture: makes the view.
    """

    frame: pd.DataFrame
    metrics: dict[str, float]
    picture: Callable[[], View] = dataclasses.field(repr=False, compare=False)

    def view(self) -> View:
        """The picture."""
        return self.picture()

    def __repr__(self) -> str:
        """Metrics, and the view's text."""
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in self.metrics.items())
        return f"{numbers}\n\n{self.view()!r}" if numbers else repr(self.view())


def metrics_view(metrics: dict[str, float], title: str, note: str = "") -> BarsView:
    """Metrics as bars."""
    from neox_lab.views import BarsView

    return BarsView(list(metrics), list(metrics.values()), title, note)
