"""What head detection found: every head's numbers, as table and as map."""

from __future__ import annotations

import math
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
    "entropy_bits": "entropy of attention (bits)",
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
    at itself. Queries of several texts are pooled, so that a text counts by how many it has;
    ``samples`` keeps the texts apart.

    Attributes:
        pattern: name of what was looked for.
        measure: how ``values`` compare attention with the pattern, see ``nl.detect.heads``.
        values: the scores ``[layer, head]``.
        copying: copying score of the OV circuit ``[layer, head]``, -1 to 1; NaN where there is
            nothing to measure; None if it was not asked for.
        entropy: of attention ``[layer, head]``, in nats; in ``frame`` and in pictures
            ``entropy_bits``, in bits.
        distance: mean number of tokens that a head looks back ``[layer, head]``.
        first_token: share of attention on the first token of the text ``[layer, head]``.
        queries: how many queries had something to look at.
        samples: the score of each text by itself ``[text, layer, head]``; NaN for a text in which
            no query has anything to look at; None in a result saved before there were any.
    """

    pattern: str
    measure: str
    copying: Tensor | None = None
    entropy: Tensor
    distance: Tensor
    first_token: Tensor
    queries: int
    samples: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            InputError: it does not.
        """
        super().__post_init__()
        for name, tensor in self._columns().items():
            name = name.removesuffix("_bits")
            if tensor.shape != self.values.shape:
                raise InputError(
                    f"{name} has the shape {list(tensor.shape)}, the scores "
                    f"{list(self.values.shape)}."
                )
        if self.samples is not None and self.samples.shape[1:] != self.values.shape:
            raise InputError(
                f"samples has the shape {list(self.samples.shape)}; expected [text, layer, head] "
                f"with the scores' {list(self.values.shape)}."
            )

    def _columns(self) -> dict[str, Tensor]:
        names = [name for name in MEANINGS if name != "copying" or self.copying is not None]
        return {name: self._numbers(name) for name in names}

    def _rank(self, frame: pd.DataFrame) -> pd.Series[float]:
        return frame["score"]

    def top(self, count: int = 5) -> pd.DataFrame:
        """The ``count`` heads with the highest score, the best first; columns as in ``frame``."""
        return super().top(count)

    def view(self, column: str = "score") -> HeatmapView:
        """A map, layer by head, of one column of ``frame``.

        Raises:
            InputError: there is no such column, or it was not computed.
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
        if column == "entropy_bits":
            return self.entropy / math.log(2)
        numbers: Tensor | None = self.values if column == "score" else getattr(self, column)
        if numbers is None:
            raise InputError(
                f"{column!r} was not computed; ask for it: nl.detect.heads(.., {column}=True)."
            )
        return numbers
