"""A confusion matrix: what was taken for what, in counts and in shares of each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import HEADING, SOFT, Sheet, amounts, ink_on, text_width
from neox_lab.views.heatmap import levels
from neox_lab.views.markup import Table
from neox_lab.views.predictions import percent
from neox_lab.views.tokens import figure_text, figure_texts, isolated, labels

if TYPE_CHECKING:
    import pandas as pd

NAME_LIMIT = 16
CLASSES, TABLE_CLASSES = 100, 40  # of a live view, and of a table of all counts
MISTAKES = 20  # told where there are more classes
CELL_WIDE, CELL_HIGH = 0.82, 0.46  # inches


class ConfusionView(View):
    """A row for each true class, a column for each predicted one; colour is the row's share.

    Args:
        counts: how often, ``[true, predicted]``.
        names: of the classes.
        title: the headline.

    Raises:
        InputError: counts is not square or there is not a name for each class.
    """

    asset = "grid"

    def __init__(self, counts: object, names: Sequence[str], title: str | None = None) -> None:
        self.counts = array(counts, "true predicted", "counts").astype(int)
        if self.counts.shape[0] != self.counts.shape[1] or not self.counts.size:
            raise InputError(f"counts must be square [true, predicted]; got {self.counts.shape}")
        self.names = texts(names, len(self.counts), "names", "class")
        self._short = labels(self.names, NAME_LIMIT)
        super().__init__(title, "Confusion matrix")

    @property
    def shares(self) -> np.ndarray:
        """Counts over the sum of their row ``[true, predicted]``; 0 in rows without examples."""
        return self.counts / np.maximum(1, self.counts.sum(axis=1, keepdims=True))

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each field: true, predicted, count, share of the row."""
        rows = [
            (true, predicted, self.counts[i, j], self.shares[i, j])
            for i, true in enumerate(self.names)
            for j, predicted in enumerate(self.names)
        ]
        return make_frame(rows, columns=["true", "predicted", "count", "share"])

    @property
    def alt_text(self) -> str:
        """How many were right, and the commonest mistake."""
        right, total = int(np.trace(self.counts)), int(self.counts.sum())
        wrong = self.counts - np.diag(np.diag(self.counts))
        i, j = np.unravel_index(wrong.argmax(), wrong.shape)
        said = ""
        if wrong.max():
            true, taken = (isolated(self._short[at]) for at in (i, j))
            said = f" Most often {true} was taken for {taken}: {wrong[i, j]} times."
        return f"{right} of {total} right.{said}"

    def tables(self) -> list[Table]:
        """The counts; of very many classes the commonest mistakes."""
        if len(self.names) > TABLE_CLASSES:
            return [self._mistakes()]
        names = [isolated(name) for name in self._short]
        rows = [
            [name, *(str(count) for count in row)]
            for name, row in zip(names, self.counts, strict=True)
        ]
        columns = [("true ↓ predicted →", "l"), *((name, "r") for name in names)]
        return [Table("Counts", columns, rows)]

    def _mistakes(self) -> Table:
        """What was most often taken for something else."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        rows = []
        for at in np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]:
            true, predicted = divmod(int(at), len(self.names))
            if wrong[true, predicted]:
                names = [isolated(self._short[of]) for of in (true, predicted)]
                rows.append([*names, str(wrong[true, predicted])])
        columns = list(zip(["true", "predicted", "count"], "llr", strict=True))
        return Table("Commonest mistakes", columns, rows)

    def data(self) -> dict[str, Any]:
        """Counts with shares below; the first classes if there are very many."""
        count = min(len(self.names), CLASSES)
        shares = self.shares[:count, :count]
        notes = ["Colour and percentage: the share of the true class."]
        if count < len(self.names):
            notes.append(
                f"To stay small this shows only the first {count} of {len(self.names)} classes."
            )
        names = labels(self.names[:count], NAME_LIMIT)
        return {
            "title": self.title,
            "notes": notes,
            "rows": names,
            "columns": names,
            "row_axis": "true",
            "column_axis": "predicted",
            "value_name": "count",
            "scale": "teals",
            "low": "0 %",
            "high": "100 %",
            "legend": "of the true class",
            "text": [[str(entry) for entry in row] for row in self.counts[:count, :count]],
            "under": [[percent(float(share)) for share in row] for row in shares],
            "level": levels(shares.astype(np.float32)),
        }

    def _draw(self) -> Sheet:
        names = figure_texts(self.names, NAME_LIMIT)
        widest = max(text_width(name, 9) for name in names)
        left, wide, count = 0.2 + widest, max(CELL_WIDE, widest + 0.15), len(names)
        top = HEADING + 0.34
        sheet = Sheet(left + count * wide, top + count * CELL_HIGH)
        sheet.heading(
            0, figure_text(self.title), "Rows: the true class. Columns: the predicted one."
        )
        colours = amounts()(self.shares)
        sheet.map(left, top, count * wide, count * CELL_HIGH, colours)
        for i, name in enumerate(names):
            middle = {"va": "center_baseline"}
            sheet.text(left - 0.1, top + (i + 0.5) * CELL_HIGH, name, 9, ha="right", **middle)
            sheet.text(left + (i + 0.5) * wide, top - 0.1, name, 9, ha="center", color=SOFT)
            for j in range(count):
                x, y = left + (j + 0.5) * wide, top + (i + 0.5) * CELL_HIGH
                style = {"ha": "center", "color": ink_on(colours[i, j]), "va": "center_baseline"}
                sheet.text(x, y - 0.07, str(self.counts[i, j]), 10, **style)
                sheet.text(x, y + 0.11, percent(float(self.shares[i, j])), 7, **style)
        return sheet
