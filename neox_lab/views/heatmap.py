"""A table of numbers as a map: what changed where, layer by position or layer by head.

Differences are drawn on a scale that is white at ``centre`` and equally deep in blue and orange on
both sides, so that the eye compares sizes and not only signs. The numbers are printed inside their
fields as far as they fit. What was not measured is drawn grey, and so is NaN, which is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import FINITE, TEXT, check, or_none
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import (
    HEADING,
    SOFT,
    Sheet,
    decimals,
    diverging,
    ink_on,
    number,
    text_width,
)
from neox_lab.views.marks import Marks
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label, labels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.colors import Colormap, Normalize

TOP = 10  # cells told in the table
CELLS = 12_000  # cells of a live view
GRID_LIMIT = 600  # cells up to which the whole grid is a table as well
LABEL_LIMIT, LEGEND_LIMIT = 16, 48  # characters of a label in a table, of a name in the legend
NOTE_LIMIT = 120
GREY = (0.85, 0.85, 0.85, 1.0)


class HeatmapView(View):
    """Numbers over two named axes, such as a patching result.

    Args:
        values: ``[row, column]``; infinity has the colour of the end of the scale.
        row_labels: a name for each row, such as a layer.
        column_labels: a name for each column, such as a token; they may repeat.
        row_axis: what a row is, such as ``"layer"``.
        column_axis: what a column is, such as ``"position"``.
        value_name: what a number is, with its unit.
        centre: the value that means "no difference" and is drawn white; None for amounts.
        title: the headline.
        measured: True for each cell that was measured, ``[row, column]``; None if all were. NaN in
            such a cell is said to be NaN.
        scale: the values at the ends of the colours, where several maps share them; None takes them
            from the values.
        note: a sentence to stand below the headline, before what the colours mean.

    Raises:
        InputError: these do not fit together.
    """

    asset = "grid"

    def __init__(
        self,
        values: object,
        row_labels: Sequence[str],
        column_labels: Sequence[str],
        row_axis: str = "row",
        column_axis: str = "column",
        value_name: str = "value",
        centre: float | None = 0.0,
        title: str | None = None,
        measured: object = None,
        scale: tuple[float, float] | None = None,
        note: str = "",
    ) -> None:
        self.values = array(values, "row column", "values")
        whole = np.ones(self.values.shape) if measured is None else measured
        self.measured = array(whole, "row column", "measured") != 0
        if self.measured.shape != self.values.shape:
            raise InputError(
                f"measured has the shape {self.measured.shape}, values {self.values.shape}"
            )
        self.values = np.where(self.measured, self.values, np.float32(np.nan))
        if 0 in self.values.shape:
            raise InputError(f"values must not be empty; got shape {self.values.shape}")
        names = {"row_axis": row_axis, "column_axis": column_axis, "value_name": value_name}
        self.note = check("note", note, TEXT, InputError)
        for name, given in names.items():
            check(name, given, TEXT, InputError)
        if len({row_axis, column_axis, value_name}) < 3:
            raise InputError("row_axis, column_axis and value_name must be three different names")
        self.row_labels = texts(row_labels, self.values.shape[0], "row_labels", "row")
        self.column_labels = texts(column_labels, self.values.shape[1], "column_labels", "column")
        self.row_axis, self.column_axis, self.value_name = row_axis, column_axis, value_name
        self.centre = check("centre", centre, or_none(FINITE), InputError)
        finite = self.values[np.isfinite(self.values)]
        self.scale = scale
        self._decimals = decimals(
            max((abs(float(v)) for v in scale or finite.ravel()), default=0.0)
        )
        super().__init__(title, f"{value_name} by {row_axis} and {column_axis}")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each cell: both axes as index and as label, and the value.

        Columns: ``{row_axis}_index``, row_axis, ``{column_axis}_index``, column_axis, value_name.
        """
        row, column = (places.ravel() for places in np.indices(self.values.shape))
        return make_frame(
            {
                f"{self.row_axis}_index": row,
                self.row_axis: np.array(self.row_labels, dtype=object)[row],
                f"{self.column_axis}_index": column,
                self.column_axis: np.array(self.column_labels, dtype=object)[column],
                self.value_name: self.values.ravel(),
            }
        )

    @property
    def alt_text(self) -> str:
        """The size of the map, and its largest cell."""
        rows, columns = self.values.shape
        text = (
            f"Heat map of {self.value_name}: {rows} × {columns} cells, a row for each "
            f"{self.row_axis}, a column for each {self.column_axis}."
        )
        if missing := int((~self.measured).sum()):
            text += f" {missing} cells were not measured."
        if nothing := int(self._is_nan().sum()):
            text += f" {nothing} cells are NaN."
        if missing + nothing == self.values.size:
            return text
        row, column = self._top(1)[0]
        apart = "largest" if self.centre is None else f"farthest from {self.centre:g}"
        return (
            f"{text} The {apart} is {self._number(row, column)}, at {self.row_axis} "
            f"{_name(self.row_labels, row)}, {self.column_axis} "
            f"{_name(self.column_labels, column)}."
        )

    def tables(self) -> list[Table]:
        """The cells that stand out, and all of them if they are few."""
        top = self._top(TOP)
        found = _told_apart([self.row_labels[row] for row, _ in top])
        beside = _told_apart([self.column_labels[column] for _, column in top])
        rows = [
            [name, str(column), other, self._number(row, column)]
            for (row, column), name, other in zip(top, found, beside, strict=True)
        ]
        apart = "Largest values" if self.centre is None else f"Farthest from {self.centre:g}"
        names = [self.row_axis, f"{self.column_axis} index", self.column_axis, self.value_name]
        tables = [Table(apart, list(zip(names, "lrlr", strict=True)), rows)]
        return tables + ([self._grid()] if self.values.size <= GRID_LIMIT else [])

    def _grid(self) -> Table:
        """All numbers, laid out as in the picture."""
        names = [(name, "r") for name in _told_apart(self.column_labels)]
        rows = [
            [name, *(self._number(row, at) for at in range(len(names)))]
            for row, name in enumerate(_told_apart(self.row_labels))
        ]
        columns = [(f"{self.row_axis} ╲ {self.column_axis}", "l"), *names]
        return Table("All values", columns, rows, folded=True)

    def _top(self, count: int) -> list[tuple[int, int]]:
        """The measured cells farthest from the centre (or largest), the farthest first."""
        distance = self.values if self.centre is None else np.abs(self.values - self.centre)
        order = np.argsort(-distance, axis=None, kind="stable")  # NaN comes last
        measured = self.values.size - int(np.isnan(self.values).sum())
        return [divmod(int(at), self.values.shape[1]) for at in order[: min(count, measured)]]

    def _number(self, row: int, column: int) -> str:
        """One value as it is printed everywhere."""
        if np.isnan(self.values[row, column]) and self.measured[row, column]:
            return "NaN"
        return number(float(self.values[row, column]), self._decimals)

    def _is_nan(self) -> NDArray[np.bool_]:
        """Which cells were measured and are NaN."""
        return np.isnan(self.values) & self.measured

    def _colours(self) -> tuple[Colormap, Normalize]:
        """Even on both sides of the centre, or from the smallest to the largest amount."""
        import matplotlib
        from matplotlib.colors import Normalize

        finite = self.values[np.isfinite(self.values)]
        if self.scale is not None:
            name = matplotlib.colormaps["viridis"] if self.centre is None else diverging()
            return name, Normalize(*self.scale)
        if self.centre is None:
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
            return matplotlib.colormaps["viridis"], Normalize(low, high if high > low else low + 1)
        reach = float(np.abs(finite - self.centre).max()) if finite.size else 0.0
        reach = reach or 1.0
        return diverging(), Normalize(self.centre - reach, self.centre + reach)

    def data(self) -> dict[str, Any]:
        """Every cell with its printed value; the first rows and columns of a very large map."""
        rows, columns = shown_part(self.values.shape)
        _, norm = self._colours()
        cells = self.values[:rows, :columns]
        notes = [self._legend()]
        if cells.size < self.values.size:
            notes.append(
                f"To stay small this shows only the first {rows} of {self.values.shape[0]} rows "
                f"and {columns} of {self.values.shape[1]} columns; .frame has all."
            )
        low, high = (number(float(end or 0), self._decimals) for end in (norm.vmin, norm.vmax))
        return {
            "title": self.title,
            "notes": notes,
            "rows": [label(name, LEGEND_LIMIT) for name in self.row_labels[:rows]],
            "columns": [label(name, LEGEND_LIMIT) for name in self.column_labels[:columns]],
            "row_axis": label(self.row_axis, LEGEND_LIMIT),
            "column_axis": label(self.column_axis, LEGEND_LIMIT),
            "value_name": label(self.value_name, LEGEND_LIMIT),
            "scale": "viridis" if self.centre is None else "diverging",
            "low": low,
            "high": high,
            "text": [[self._number(row, at) for at in range(columns)] for row in range(rows)],
            "level": levels(np.asarray(norm(cells), dtype=np.float32)),
        }

    def _draw(self) -> Sheet:
        rows, columns = self.values.shape
        wide, high = min(0.74, 10.5 / columns), min(0.4, 7.0 / rows)
        beside, below = Marks.fit(self.row_labels, high), Marks.fit(self.column_labels, wide)
        left, top = max(0.35 + beside.widest, below.overhang(45)), HEADING + 0.05
        bottom = top + rows * high + below.height(45) + 0.22
        size = max(left + columns * wide, 4.5), bottom + 0.75
        sheet = Sheet(*size)
        sheet.heading(0, figure_text(self.title), figure_text(self._legend()))
        palette, norm = self._colours()
        colours = np.asarray(palette(norm(self.values)))
        colours[np.isnan(self.values)] = GREY
        sheet.map(left, top, columns * wide, rows * high, colours)
        sheet.frames([(left, top)], columns * wide, rows * high)
        self._print(sheet, left, top, wide, high, colours)
        beside.beside(sheet, left, top)
        below.below(sheet, left, top + rows * high, 45)
        style = {"color": SOFT, "va": "center", "ha": "center"}
        across, down = (
            figure_text(label(name, LEGEND_LIMIT))
            for name in (self.column_axis, downwards(self.row_axis))
        )
        sheet.text(left + columns * wide / 2, bottom, across, 8.0, **style)
        side = left - beside.widest - 0.22
        sheet.text(side, top + rows * high / 2, down, 8.0, rotation=90.0, **style)
        ticks = np.linspace(float(norm.vmin or 0), float(norm.vmax or 0), 5)
        shown = [number(float(tick), self._decimals) for tick in ticks]
        name = figure_text(label(self.value_name, LEGEND_LIMIT))
        sheet.scale(left, bottom + 0.4, 2.6, list(ticks), shown, palette, norm, name)
        return sheet

    def _legend(self) -> str:
        """What the colours mean."""
        parts = [label(self.note, NOTE_LIMIT)] if self.note else []
        parts += [f"Colour: {label(self.value_name, LEGEND_LIMIT)}."]
        if self.centre is not None:
            parts.append(f"Blank is {self.centre:g}, blue is less, orange is more.")
        if not self.measured.all():
            parts.append("Grey was not measured.")
        if self._is_nan().any():
            parts.append("Grey with NaN is not a number.")
        return " ".join(parts)

    def _print(
        self,
        sheet: Sheet,
        left: float,
        top: float,
        wide: float,
        high: float,
        colours: NDArray[np.float64],
    ) -> None:
        """The numbers in their fields, if the longest of them fits."""
        shown = [
            [self._number(row, at) for at in range(len(line))]
            for row, line in enumerate(self.values)
        ]
        longest = max((text for line in shown for text in line), key=len)
        size = min(8.0, high * 40, 8 * wide * 0.88 / text_width(longest, 8))
        if size < 5.5:
            return
        for (row, column), _ in np.ndenumerate(self.values):
            x, y = left + (column + 0.5) * wide, top + (row + 0.5) * high
            style = {"ha": "center", "va": "center_baseline"}
            ink = ink_on(colours[row, column])
            sheet.text(x, y, shown[row][column], size, color=ink, **style)


def shown_part(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many rows and columns of a table a live view holds: all, unless they are very many."""
    columns = min(shape[1], CELLS // min(shape[0], 100))
    return min(shape[0], CELLS // columns), columns


def levels(shares: NDArray[np.float32]) -> list[list[int | None]]:
    """Shares of a colour scale as steps from 0 to 255; None for NaN."""
    steps = np.rint(255 * np.clip(shares, 0, 1))
    return [[None if np.isnan(step) else int(step) for step in row] for row in steps]


def downwards(axis: str) -> str:
    """The name of the axis of rows in a picture: of layers it says which way they run."""
    return f"{axis}, first on top" if axis.startswith("layer") else axis


def _told_apart(names: list[str]) -> list[str]:
    """Names for tables, cut so that different ones are not alike."""
    return list(map(isolated, labels(names, LABEL_LIMIT)))


def _name(names: list[str], at: int) -> str:
    """A name for running text, with its place if another one looks the same."""
    name = isolated(label(names[at], LABEL_LIMIT))
    return name if names.count(names[at]) == 1 else f"{name}@{at}"
