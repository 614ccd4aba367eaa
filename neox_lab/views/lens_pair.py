"""Two lenses beside each other: two prompts, or two models on one, on one scale of colours.

A field whose likeliest token is another one on the other side has a marked corner. How far the two
predictions are apart is said as far as the likeliest tokens of each tell it: between two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import check, shown, whole
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import HEADING, Sheet, number
from neox_lab.views.lens import TABLE_LIMIT, LensView, draw_scale
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label

if TYPE_CHECKING:
    import pandas as pd

NAME_LIMIT = 48
WIDEST = 13.0  # inches of two grids beside each other; wider ones stand below each other
NAME = 0.3  # inches of the name above a grid
MARK = "another token on the other side"


class LensPairView(View):
    """Two lenses with the same layers.

    Args:
        first: one lens.
        second: the other.
        pairs: positions that belong together, ``(of the first, of the second)``, in order.
        least: how far the predictions there are apart at least, as total variation from 0 to 1,
            ``[layer, pair]``.
        most: how far at most.
        names: of both.
        title: the headline.

    Raises:
        InputError: these do not fit together.
    """

    asset = "lens_pair"

    def __init__(
        self,
        first: LensView,
        second: LensView,
        pairs: Sequence[tuple[int, int]],
        least: object,
        most: object,
        names: Sequence[str] = ("first", "second"),
        title: str | None = None,
    ) -> None:
        for name, side in (("first", first), ("second", second)):
            if not isinstance(side, LensView):
                raise InputError(f"{name}={shown(side)}; expected a LensView")
        if first.row_labels != second.row_labels:
            raise InputError("first and second have other layers")
        self.sides = (first, second)
        self.pairs = _pairs(pairs, len(first.pieces), len(second.pieces))
        self.names = texts(names, 2, "names", "side")
        self.least, self.most = (
            array(least, "layer pair", "least"),
            array(most, "layer pair", "most"),
        )
        wanted = (len(first.row_labels), len(self.pairs))
        if self.least.shape != wanted or self.most.shape != wanted:
            raise InputError(
                f"least {self.least.shape} and most {self.most.shape} must have a number for each "
                f"layer and pair, {wanted}"
            )
        super().__init__(title, "Two lenses")

    @property
    def differs(self) -> NDArray[np.bool_]:
        """Where the likeliest tokens are different ones, ``[layer, pair]``."""
        best = [
            [
                [self._best(side, row, pair[side]) for pair in self.pairs]
                for row in range(len(self.least))
            ]
            for side in (0, 1)
        ]
        found = [[a != b for a, b in zip(*row, strict=True)] for row in zip(*best, strict=True)]
        return np.array(found, dtype=bool).reshape(self.least.shape)

    def _best(self, side: int, row: int, pos: int) -> str | None:
        """The likeliest token of a field; None where its probability is NaN."""
        view = self.sides[side]
        unknown = np.isnan(view.probabilities[row, pos, 0])
        return None if unknown else view.candidates[row][pos][0]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each layer and pair of positions, with both predictions."""
        differs = self.differs
        rows = []
        for row, name in enumerate(self.sides[0].row_labels):
            for at, spots in enumerate(self.pairs):
                record: dict[str, object] = {"layer": name}
                for side, (what, pos) in enumerate(zip(("first", "second"), spots, strict=True)):
                    view = self.sides[side]
                    record[f"pos_{what}"], record[f"token_{what}"] = pos, view.pieces[pos]
                    record[f"prediction_{what}"] = self._best(side, row, pos)
                    record[f"probability_{what}"] = float(view.probabilities[row, pos, 0])
                record["differs"] = bool(differs[row, at])
                record["difference_least"] = float(self.least[row, at])
                record["difference_most"] = float(self.most[row, at])
                rows.append(record)
        return make_frame(rows)

    @property
    def alt_text(self) -> str:
        """Both grids, and how many fields are marked."""
        said = f"{int(self.differs.sum())} of {self.differs.size}"
        told = [f"{self._name(at)}: {side.alt_text}" for at, side in enumerate(self.sides)]
        return " ".join([*told, f"The likeliest token differs in {said} fields."])

    def tables(self) -> list[Table]:
        """What both say at the last pair of positions, layer by layer."""
        if not self.pairs:
            return []
        spots, rows = self.pairs[-1], []
        for row, name in enumerate(self.sides[0].row_labels):
            said = [side.likeliest(row, pos) for side, pos in zip(self.sides, spots, strict=True)]
            rows.append([name, *said, self._apart(row, len(self.pairs) - 1)])
        names = [(self._name(0), "l"), (self._name(1), "l")]
        last = [
            isolated(label(side.pieces[pos], TABLE_LIMIT))
            for side, pos in zip(self.sides, spots, strict=True)
        ]
        columns = [("layer", "l"), *names, ("total variation", "r")]
        return [Table(f"Likeliest after {last[0]} and {last[1]}", columns, rows)]

    def data(self) -> dict[str, Any]:
        """Both grids with their marks, and which columns belong together."""
        made = [side.data() for side in self.sides]
        for side, grid in enumerate(made):
            self._mark(side, grid)
        starts = [grid["first"] for grid in made]
        pairs = [[a - starts[0], b - starts[1]] for a, b in self.pairs]
        notes = [NOTE, *dict.fromkeys(note for grid in made for note in grid["notes"][1:])]
        left_out = ("title", "notes")
        return {
            "title": self.title,
            "notes": notes,
            "sides": [
                {"name": self._name(side)}
                | {"grid": {key: value for key, value in grid.items() if key not in left_out}}
                for side, grid in enumerate(made)
            ],
            "pairs": [pair for pair in pairs if min(pair) >= 0],
        }

    def _mark(self, side: int, grid: dict[str, Any]) -> None:
        """Mark the fields of one grid, and say in each how far the other is."""
        first, layers, columns = grid["first"], len(grid["rows"]), len(grid["columns"])
        grid["marked"] = [[False] * columns for _ in range(layers)]
        grid["mark"] = MARK
        differs = self.differs
        for at, spots in enumerate(self.pairs):
            column = spots[side] - first
            if column < 0:
                continue
            for row in range(layers):
                grid["marked"][row][column] = bool(differs[row, at])
                said = f"total variation to the other side: {self._apart(row, at)}"
                grid["lines"][row][column] = [*grid["lines"][row][column], said]

    def _apart(self, row: int, at: int) -> str:
        """How far two predictions are apart, as it is printed."""
        least, most = (number(float(ends[row, at]), 2) for ends in (self.least, self.most))
        return least if least == most else f"{least} to {most}"

    def _name(self, side: int) -> str:
        return isolated(label(self.names[side], NAME_LIMIT))

    def _draw(self) -> Sheet:
        """The grids beside each other where they fit, else below each other."""
        extents = [side.extent() for side in self.sides]
        width, high = extents[0][0] + 0.4 + extents[1][0], max(e[1] for e in extents) + NAME
        top = HEADING + 0.05
        spots = [(0.0, top), (extents[0][0] + 0.4, top)]
        if width > WIDEST:
            width, high = max(e[0] for e in extents), sum(e[1] for e in extents) + 2 * NAME + 0.2
            spots = [(0.0, top), (0.0, top + extents[0][1] + NAME + 0.2)]
        sheet = Sheet(max(width + 0.2, 4.5), top + high + 0.75)
        sheet.heading(0, figure_text(self.title), figure_text(NOTE))
        differs = self.differs
        for side, (view, (x, y)) in enumerate(zip(self.sides, spots, strict=True)):
            marked = np.zeros(view.entropy.shape, dtype=bool)
            for at, pair in enumerate(self.pairs):
                marked[:, pair[side]] = differs[:, at]
            sheet.text(x, y + 0.12, figure_text(self._name(side)), 9, weight="bold")
            view.draw_on(sheet, x, y + NAME, marked)
        draw_scale(sheet, 0.5, top + high + 0.35)
        return sheet


NOTE = "The likeliest next token at each layer; a marked corner: another one on the other side."


def _pairs(pairs: object, first: int, second: int) -> list[tuple[int, int]]:
    """Pairs of positions.

    Raises:
        InputError: they are none, or there are no such positions.
    """
    if not isinstance(pairs, Sequence) or isinstance(pairs, str):
        raise InputError(f"pairs={shown(pairs)}; expected pairs of positions")
    found = []
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"pairs holds {shown(pair)}; expected two positions")
        a, b = (
            check("pairs", at, whole(least=0, most=count - 1), InputError)
            for at, count in zip(pair, (first, second), strict=True)
        )
        found.append((a, b))
    return found
