"""One number against another: an estimate beside what was measured.

Each point is a part of something; the dashed line is where both numbers are equal. The points
farthest from it are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.checks import TEXT, check, whole
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import (
    AMOUNT,
    HEADING,
    INK,
    SOFT,
    Sheet,
    decimals,
    fitted,
    name_ticks,
    number,
    text_width,
)
from neox_lab.views.live import rounded
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, labels

if TYPE_CHECKING:
    import pandas as pd

SIDE = 3.6  # inches of the square
LEFT = 0.75
POINTS = 2000  # points that can be pointed at
NAMED = 5  # points named in the picture
NAME_LIMIT = 24


class ScatterView(View):
    """Points with a name each, over two numbers of the same unit.

    Args:
        x: ``[point]``.
        y: ``[point]``.
        names: what each point is.
        x_label: what ``x`` is.
        y_label: what ``y`` is.
        marked: how many of the points farthest from equality the table lists.
        title: the headline.
        note: a line below it.

    Raises:
        InputError: there is no point, or one that is not finite.
    """

    asset = "scatter"

    def __init__(
        self,
        x: object,
        y: object,
        names: Sequence[str],
        x_label: str = "x",
        y_label: str = "y",
        marked: int = 10,
        title: str | None = None,
        note: str = "",
    ) -> None:
        self.x, self.y = array(x, "point", "x"), array(y, "point", "y")
        self.names = texts(names, len(self.x), "names", "point")
        self._short = labels(self.names, NAME_LIMIT)
        if len(self.x) != len(self.y):
            raise InputError(f"x has {len(self.x)} numbers and y {len(self.y)}")
        if not len(self.x) or not (np.isfinite(self.x) & np.isfinite(self.y)).all():
            raise InputError("a scatter needs at least one point, and finite numbers")
        self.x_label = check("x_label", x_label, TEXT, InputError)
        self.y_label = check("y_label", y_label, TEXT, InputError)
        self.marked = check("marked", marked, whole(least=0), InputError)
        self.note = check("note", note, TEXT, InputError)
        super().__init__(title, f"{y_label} against {x_label}")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each point: name, x, y under their labels."""
        return make_frame({"name": self.names, self.x_label: self.x, self.y_label: self.y})

    @property
    def alt_text(self) -> str:
        """How many points there are, and the one farthest from equality."""
        at = self._farthest(1)[0]
        places = self._decimals()
        return (
            f"{len(self.x)} points, {self.y_label} over {self.x_label}. Farthest from equality is "
            f"{isolated(self._short[at])}: {self.x_label} "
            f"{number(float(self.x[at]), places)}, {self.y_label} "
            f"{number(float(self.y[at]), places)}."
        )

    def tables(self) -> list[Table]:
        """The points farthest from equality."""
        places = self._decimals()
        rows = [
            [
                isolated(self._short[at]),
                *(number(float(v), places) for v in (self.x[at], self.y[at])),
                number(float(self.y[at] - self.x[at]), places),
            ]
            for at in self._farthest(self.marked)
        ]
        names = [("name", "l"), (self.x_label, "r"), (self.y_label, "r"), ("difference", "r")]
        return [Table("Largest differences", names, rows)]

    def data(self) -> dict[str, Any]:
        """The points, the farthest from equality first."""
        order = self._farthest(POINTS)
        notes = [self.note] if self.note else []
        if len(order) < len(self.x):
            notes.append(f"The {len(order)} of {len(self.x)} points that differ most.")
        return {
            "title": self.title,
            "notes": notes,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "names": [self._short[at] for at in order],
            "x": rounded(self.x[order], 5),
            "y": rounded(self.y[order], 5),
        }

    def _farthest(self, count: int) -> list[int]:
        order = np.argsort(-np.abs(self.y - self.x), kind="stable")
        return [int(at) for at in order[:count]]

    def _decimals(self) -> int:
        return decimals(float(max(np.abs(self.x).max(), np.abs(self.y).max())))

    def _draw(self) -> Sheet:
        sheet = Sheet(LEFT + SIDE + 0.9, HEADING + SIDE + 0.55)
        sheet.heading(0, figure_text(self.title), figure_text(self.note))
        plot = sheet.plot(LEFT, HEADING, SIDE, SIDE)
        both = np.concatenate((self.x, self.y, [0.0]))
        low, high = float(both.min()), float(both.max())
        edge = 0.06 * (high - low or 1.0)
        plot.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge))
        plot.axhline(0, color="#dddddd", linewidth=0.7)
        plot.axvline(0, color="#dddddd", linewidth=0.7)
        plot.plot(
            plot.get_xlim(), plot.get_xlim(), color=SOFT, linewidth=0.9, linestyle=(0, (4, 3))
        )
        named = self._farthest(min(NAMED, self.marked))
        plot.scatter(self.x, self.y, color=AMOUNT, s=12, linewidths=0, alpha=0.65)
        plot.scatter(self.x[named], self.y[named], color=INK, s=20, linewidths=0)
        for at, right in self._named(named, (low + high) / 2, (high - low + 2 * edge) / SIDE):
            plot.annotate(
                figure_text(self._short[at], NAME_LIMIT),
                (self.x[at], self.y[at]),
                (-5 if right else 5, 3),
                textcoords="offset points",
                ha="right" if right else "left",
                fontsize=7,
            )
        plot.set_xlabel(fitted(self.x_label, 8, SIDE), fontsize=8)
        plot.set_ylabel(fitted(self.y_label, 8, SIDE), fontsize=8)
        plot.tick_params(labelsize=7)
        name_ticks(plot.xaxis)
        name_ticks(plot.yaxis)
        plot.spines[["top", "right"]].set_visible(False)
        return sheet

    def _named(self, points: list[int], middle: float, inch: float) -> list[tuple[int, bool]]:
        """Points that get their name, and whether it stands left of them; names never overlap."""
        taken: list[tuple[float, float, float]] = []
        found = []
        for at in points:
            right = bool(self.x[at] > middle)
            wide = 0.07 + text_width(figure_text(self._short[at], NAME_LIMIT), 7)
            start = float(self.x[at]) / inch - (wide if right else 0)
            y = float(self.y[at]) / inch
            clear = all(
                abs(y - other) > 0.13 or start > end or start + wide < begin
                for begin, end, other in taken
            )
            if clear:
                taken.append((start, start + wide, y))
                found.append((at, right))
        return found
