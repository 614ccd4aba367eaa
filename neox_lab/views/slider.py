"""Maps of one kind, such as the same question at several steps of training, with a slider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.checks import TEXT, check, shown
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View
from neox_lab.views.drawing import HEADING, Sheet, number
from neox_lab.views.heatmap import CELLS, GREY, HeatmapView
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label

if TYPE_CHECKING:
    import pandas as pd

DRAWN, BESIDE = 8, 4  # maps of the picture, and of one of its rows
SIDE, APART = 2.0, 0.35  # inches of a map, and between two


class SliderView(View):
    """Several maps with the same rows and columns, on one scale of colours.

    Args:
        maps: by the name of their place on the slider, in order.
        axis: what the slider runs over, such as ``"step"``.
        title: the headline.

    Raises:
        InputError: there is no map, or their rows and columns differ.
    """

    asset = "slider"

    def __init__(
        self, maps: Mapping[str, HeatmapView], axis: str, title: str | None = None
    ) -> None:
        if not isinstance(maps, Mapping) or not maps:
            raise InputError(f"no maps to show in {shown(maps)}; expected HeatmapView by name")
        if not all(isinstance(each, HeatmapView) for each in maps.values()):
            raise InputError("maps must be HeatmapView by name")
        self.axis = check("axis", axis, TEXT, InputError)
        first = next(iter(maps.values()))
        for name, each in maps.items():
            if (each.row_labels, each.column_labels, each.centre) != (
                first.row_labels,
                first.column_labels,
                first.centre,
            ):
                raise InputError(f"the map {name!r} has other rows, columns or centre than others")
        scale = _scale(list(maps.values()))
        self.maps = {name: _scaled(each, scale) for name, each in maps.items()}
        super().__init__(title, f"{first.value_name} over {axis}")

    @property
    def _first(self) -> HeatmapView:
        return next(iter(self.maps.values()))

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each cell of each map: the place on the slider, and the map's columns."""
        parts = []
        for name, each in self.maps.items():
            part = each.frame
            part.insert(0, self.axis, [name] * len(part))
            parts.append(part)
        columns = list(parts[0].columns)
        return make_frame({c: np.concatenate([part[c] for part in parts]) for c in columns})

    @property
    def alt_text(self) -> str:
        """The first map and the last."""
        names = list(self.maps)
        ends = dict.fromkeys([names[0], names[-1]])
        told = [f"{self.axis} {isolated(label(n))}: {self.maps[n].alt_text}" for n in ends]
        return f"{len(names)} maps over {self.axis}. " + " ".join(told)

    def tables(self) -> list[Table]:
        """The cell of each map that stands out."""
        rows = []
        for name, each in self.maps.items():
            top = each.tables()[0].rows[:1]
            rows.append([isolated(label(name)), *(top[0] if top else ["–"] * 4)])
        columns = each.tables()[0].columns
        return [Table("What stands out in each", [(self.axis, "l"), *columns], rows)]

    def data(self) -> dict[str, Any]:
        """Every map; where these are too many cells, some of the maps."""
        cells = self._first.values.size
        names = _some(list(self.maps), max(2, 2 * CELLS // min(cells, CELLS)))
        made = [self.maps[name].data() for name in names]
        grid = {k: v for k, v in made[0].items() if k not in ("title", "notes", "text", "level")}
        notes = list(made[0]["notes"])
        if len(names) < len(self.maps):
            notes.append(f"To stay small this shows {len(names)} of {len(self.maps)} maps.")
        return {
            "title": self.title,
            "notes": notes,
            "axis": label(self.axis),
            "names": [label(name) for name in names],
            "grid": grid,
            "texts": [each["text"] for each in made],
            "levels": [each["level"] for each in made],
        }

    def _draw(self) -> Sheet:
        """Up to eight maps side by side."""
        names = _some(list(self.maps), DRAWN)
        first = self._first
        rows, columns = first.values.shape
        cell = min(SIDE / columns, SIDE / rows)
        wide, high = columns * cell, rows * cell
        across = min(len(names), BESIDE)
        lines = -(-len(names) // BESIDE)
        below = HEADING + lines * (high + APART)
        sheet = Sheet(max(across * (wide + APART), 4.0), below + 0.6)
        what = f"Each map: {label(first.row_axis)} down, {label(first.column_axis)} across."
        sheet.heading(0, figure_text(self.title), figure_text(f"{what} {first._legend()}"))
        palette, norm = first._colours()
        corners = []
        for at, name in enumerate(names):
            x = at % BESIDE * (wide + APART)
            y = HEADING + at // BESIDE * (high + APART) + 0.2
            colours = np.asarray(palette(norm(self.maps[name].values)))
            colours[np.isnan(self.maps[name].values)] = GREY
            sheet.map(x, y, wide, high, colours)
            sheet.text(x, y - 0.05, figure_text(f"{label(self.axis)} {label(name)}"), 8)
            corners.append((x, y))
        sheet.frames(corners, wide, high)
        ticks = np.linspace(float(norm.vmin or 0), float(norm.vmax or 0), 5)
        texts = [number(float(tick), first._decimals) for tick in ticks]
        name = figure_text(label(first.value_name))
        sheet.scale(0.1, below + 0.3, 2.6, list(ticks), texts, palette, norm, name)
        return sheet


def _some(names: list[str], most: int) -> list[str]:
    """At most so many of the names, the first and the last among them."""
    if len(names) <= most:
        return names
    places = np.unique(np.linspace(0, len(names) - 1, most).round().astype(int))
    return [names[at] for at in places]


def _scale(maps: list[HeatmapView]) -> tuple[float, float]:
    """The ends of one scale for all maps."""
    values = np.concatenate([each.values.ravel() for each in maps])
    finite = values[np.isfinite(values)]
    if maps[0].centre is not None:
        reach = float(np.abs(finite - maps[0].centre).max(initial=0.0)) or 1.0
        return maps[0].centre - reach, maps[0].centre + reach
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _scaled(view: HeatmapView, scale: tuple[float, float]) -> HeatmapView:
    return HeatmapView(
        view.values,
        view.row_labels,
        view.column_labels,
        view.row_axis,
        view.column_axis,
        view.value_name,
        view.centre,
        view.title,
        view.measured,
        scale,
    )
