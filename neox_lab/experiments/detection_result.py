"""What head detection found: every head's numbers, as table and as map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.errors import InputError, nearest
from neox_lab.results import GridResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import HeatmapView

MEANINGS = {
    "score": "score",
    "copying": "copying score (Σλ / Σ|λ|)",
    "entropy": "entropy of attention (nats)",
    "distance": "mean distance of attention (tokens)",
    "first_token": "share of attention on the first token",
}
SCORES = {
    "share": "share of attention on the pattern",
    "mul": "Σ A·D / queries",
    "abs": "1 − Σ|A − D| / queries",
}


@dataclass(frozen=True, kw_only=True)
class HeadsResult(GridResult):
    """Scores and statistics of all heads; all arrays are float32 ``[layer, head]`` on the CPU.

    The statistics are averages over all queries but the first of each text, which can only look
    at itself.

    Attributes:
        pattern: name of what was looked for.
        measure: how ``values`` compare attention with the pattern, see ``nl.detect.heads``.
        values: the scores.
        copying: copying score of the OV circuit, -1 to 1; NaN where there is nothing to measure.
        entropy: of attention, in nats.
        distance: mean number of tokens that a head looks back.
        first_token: share of attention on the first token of the text.
        queries: how many queries had something to look at.
    """

    pattern: str
    measure: str
    copying: Tensor
    entropy: Tensor
    distance: Tensor
    first_token: Tensor
    queries: int

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            InputError: it does not.
        """
        super().__post_init__()
        for name, tensor in self._columns().items():
            if tensor.shape != self.values.shape:
                raise InputError(
                    f"{name} has the shape {list(tensor.shape)}, the scores "
                    f"{list(self.values.shape)}."
                )

    def _columns(self) -> dict[str, Tensor]:
        return {name: self._numbers(name) for name in MEANINGS}

    def _rank(self, frame: pd.DataFrame) -> pd.Series[float]:
        return frame["score"]

    def top(self, count: int = 5) -> pd.DataFrame:
        """The ``count`` heads with the highest score, the best first; columns as in ``frame``."""
        return super().top(count)

    def view(self, column: str = "score") -> HeatmapView:
        """A map, layer by head, of one column of ``frame``.

        Raises:
            InputError: there is no such column.
        """
        from neox_lab.views import HeatmapView

        values = self._numbers(column)
        name = SCORES[self.measure] if column == "score" else MEANINGS[column]
        kind = self.pattern.replace("_", " ")
        return HeatmapView(
            values,
            row_labels=self.labels["layer"],
            column_labels=self.labels["head"],
            row_axis="layer",
            column_axis="head",
            value_name=name,
            centre=0.0 if column == "copying" else None,
            title=f"Heads that attend by the pattern: {kind}" if column == "score" else name,
        )

    def _numbers(self, column: str) -> Tensor:
        if column not in MEANINGS:
            raise InputError(
                f"column={column!r}; expected one of {', '.join(MEANINGS)}."
                f"{nearest(column, MEANINGS)}"
            )
        return self.values if column == "score" else getattr(self, column)
