"""Named numbers as bars: classes and their probabilities, metrics side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neox_lab.errors import InputError
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import BLUE, HEADING, ORANGE, SOFT, Sheet, number, text_width
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label

if TYPE_CHECKING:
    import pandas as pd

MOST = 30  # bars drawn
NAME_LIMIT = 28
WIDE, STEP = 3.6, 0.27  # inches of the longest bar, and from bar to bar


class BarsView(View):
    """A bar for each name, with its value printed; negative ones go left, in another colour.

    Args:
        names: what each bar stands for.
        values: how long it is, `[name]`.
        title: the headline.
        note: a line below it.

    Raises InputError if there is none, or one without a finite value.
    """

    def __init__(
        self, names: Sequence[str], values: object, title: str | None = None, note: str = ""
    ) -> None:
        self.values = array(values, "name", "values")
        self.names = texts(names, len(self.values), "names", "value")
        if not len(self.values) or not np.isfinite(self.values).all():
            raise InputError("bars need at least one value, and finite ones")
        self.note = note
        super().__init__(title or "Values")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each bar: name, value."""
        import pandas as pd

        return pd.DataFrame({"name": self.names, "value": self.values})

    @property
    def alt_text(self) -> str:
        """The bars, the longest first."""
        order = np.argsort(-np.abs(self.values))[:8]
        named = [
            f"{isolated(label(self.names[at], NAME_LIMIT))} {number(self.values[at], 3)}"
            for at in order
        ]
        return f"Bars: {', '.join(named)}."

    def tables(self) -> list[Table]:
        """Name and value of each bar."""
        rows = [
            [isolated(label(name, NAME_LIMIT)), number(float(value), 3)]
            for name, value in zip(self.names, self.values, strict=True)
        ]
        return [Table("Values", [("name", "l"), ("value", "r")], rows)]

    def _draw(self) -> Sheet:
        names = [figure_text(label(name), NAME_LIMIT) for name in self.names[:MOST]]
        values = self.values[:MOST]
        left = 0.15 + max(text_width(name, 9) for name in names)
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        unit = WIDE / ((high - low) or 1.0)
        zero = left + (0.55 if low < 0 else 0) - low * unit
        sheet = Sheet(zero + high * unit + 0.7, HEADING + len(names) * STEP)
        cut = f" The first {MOST} of {len(self.names)}." if len(self.names) > MOST else ""
        sheet.heading(0, figure_text(self.title), figure_text(self.note) + cut)
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            y, size = HEADING + row * STEP, float(value) * unit
            colour = BLUE if value >= 0 else ORANGE
            sheet.rectangle(
                min(zero, zero + size), y, abs(size), STEP - 0.07, facecolor=colour, linewidth=0
            )
            middle = y + (STEP - 0.07) / 2
            sheet.text(left - 0.08, middle, name, 9, ha="right", va="center_baseline")
            at, side = (zero + size + 0.06, "left") if value >= 0 else (zero + size - 0.06, "right")
            said = number(float(value), 3)
            sheet.text(at, middle, said, 8.5, color=SOFT, ha=side, va="center_baseline")
        return sheet
