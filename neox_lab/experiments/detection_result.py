"""What head detection found: every head's numbers, as table and as map."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.errors import InputError, nearest
from neox_lab.results import Result

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


@dataclass(frozen=True)
class HeadsResult(Result):
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
    values: Tensor
    copying: Tensor
    entropy: Tensor
    distance: Tensor
    first_token: Tensor
    queries: int

    @property
    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, score, copying, entropy, distance, first_token."""
        import pandas as pd

        layers, heads = self.values.shape
        places = [(layer, head) for layer in range(layers) for head in range(heads)]
        columns = {name: self._numbers(name).flatten().numpy() for name in MEANINGS}
        return pd.DataFrame(places, columns=["layer", "head"]).assign(**columns)

    def top(self, k: int = 5) -> pd.DataFrame:
        """The ``k`` heads with the highest score, the best first; columns as in ``frame``."""
        frame = self.frame.sort_values("score", ascending=False, kind="stable")
        return frame.head(k).reset_index(drop=True)

    def view(self, column: str = "score") -> HeatmapView:
        """A map, layer by head, of one column of ``frame``.

        Raises:
            InputError: there is no such column.
        """
        from neox_lab.views import HeatmapView

        values = self._numbers(column)
        layers, heads = values.shape
        name = SCORES[self.measure] if column == "score" else MEANINGS[column]
        kind = self.pattern.replace("_", " ")
        return HeatmapView(
            values,
            row_labels=[str(layer) for layer in range(layers)],
            column_labels=[str(head) for head in range(heads)],
            row_axis="layer",
            column_axis="head",
            value_name=name,
            centre=0.0 if column == "copying" else None,
            title=f"Heads that attend by the pattern: {kind}" if column == "score" else name,
        )

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """``frame`` as CSV; also written to ``path`` (``*.csv``)."""
        from neox_lab.views.base import utf8, write_file

        text = self.frame.to_csv(index=False, lineterminator="\n")
        if path is not None:
            write_file(path, ".csv", utf8(text))
        return text

    def _numbers(self, column: str) -> Tensor:
        if column not in MEANINGS:
            raise InputError(
                f"column={column!r}; expected one of {', '.join(MEANINGS)}."
                f"{nearest(column, MEANINGS)}"
            )
        return self.values if column == "score" else getattr(self, column)
