"""A lens as a table of tokens: what the model would say next, layer by layer.

A column is a position of the text and a row a layer, the first on top, so that a prediction can be
followed downwards as it takes shape. A field holds the likeliest next token; its colour is how
likely that token is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.checks import several
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.progress import counted
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import HEADING, SOFT, Sheet, ink_on, number, text_width
from neox_lab.views.heatmap import downwards, levels
from neox_lab.views.marks import Marks
from neox_lab.views.markup import Table
from neox_lab.views.predictions import percent
from neox_lab.views.tokens import figure_text, isolated, label, labels, told

if TYPE_CHECKING:
    import pandas as pd

BITS = 1 / math.log(2)  # in a nat; whoever looks reads bits, everywhere
CELL_LIMIT = 12  # characters of a token in a field
TABLE_LIMIT = 16  # characters of a token in a table
CANDIDATE_LIMIT = 40  # characters of a candidate among others
CANDIDATES = 9_000  # candidates of a live view
WIDE, HIGH = 0.78, 0.3  # inches of a field
CORNER = 0.09  # inches of the mark of a field
MOST_COLUMNS = 24  # positions drawn; the last ones of a longer text


class LensView(View):
    """Predictions read off at each layer and position of one text.

    Args:
        candidates: the likeliest next tokens, best first, ``[layer][pos][rank]``.
        probabilities: their probabilities ``[layer, pos, rank]``.
        entropy: of each whole prediction, in nats, ``[layer, pos]``.
        row_labels: a name for each layer, the first layer first.
        pieces: the tokens of the text, one for each position.
        title: the headline.

    Raises:
        InputError: these do not fit together.
    """

    asset = "grid"

    def __init__(
        self,
        candidates: Sequence[Sequence[Sequence[str]]],
        probabilities: object,
        entropy: object,
        row_labels: Sequence[str],
        pieces: Sequence[str],
        title: str | None = None,
    ) -> None:
        self.probabilities = array(probabilities, "layer pos rank", "probabilities")
        self.entropy = array(entropy, "layer pos", "entropy")
        layers, positions, ranks = self.probabilities.shape
        if 0 in self.probabilities.shape or self.entropy.shape != (layers, positions):
            raise InputError(
                f"probabilities [layer, pos, rank] {self.probabilities.shape} and entropy "
                f"[layer, pos] {self.entropy.shape} must not be empty and must cover the same "
                "layers and positions"
            )
        self.row_labels = texts(row_labels, layers, "row_labels", "layer")
        self.pieces = texts(pieces, positions, "pieces", "position")
        self.candidates = [
            [
                texts(cell, ranks, "candidates", "rank")
                for cell in several("candidates", row, "a list for each position", InputError)
            ]
            for row in several("candidates", candidates, "a list for each layer", InputError)
        ]
        super().__init__(title, "Predictions layer by layer")

    @property
    def frame(self) -> pd.DataFrame:
        """One row each: layer, pos, token, rank, candidate, probability, entropy_bits."""
        entropy = self.entropy * BITS
        rows = [
            (name, at, self.pieces[at], rank + 1, candidate, probability, entropy[row, at])
            for row, name in enumerate(self.row_labels)
            for at in range(len(self.pieces))
            for rank, (candidate, probability) in enumerate(
                zip(self.candidates[row][at], self.probabilities[row, at], strict=True)
            )
        ]
        names = ["layer", "pos", "token", "rank", "candidate", "probability", "entropy_bits"]
        return make_frame(rows, columns=names)

    @property
    def alt_text(self) -> str:
        """The size of the table and the prediction after the whole text."""
        best = isolated(label(self.candidates[-1][-1][0], TABLE_LIMIT))
        return (
            f"A row for each of {counted(len(self.row_labels), 'layer')}, the first on top, "
            f"and a column for each of {counted(len(self.pieces), 'token')}; "
            "each field holds the likeliest next token. "
            f"After the last token, row {self.row_labels[-1]} says {best} with probability "
            f"{number(float(self.probabilities[-1, -1, 0]), 2)}."
        )

    def tables(self) -> list[Table]:
        """How the prediction after the last token takes shape."""
        rows = [
            [
                self.row_labels[row],
                self.likeliest(row, -1),
                number(float(self.entropy[row, -1]) * BITS, 2),
            ]
            for row in range(len(self.row_labels))
        ]
        names = [("layer", "l"), ("likeliest next tokens", "l"), ("entropy (bits)", "r")]
        last = isolated(label(self.pieces[-1], TABLE_LIMIT))
        return [Table(f"After the last token, {last}", names, rows)]

    def likeliest(self, row: int, pos: int) -> str:
        """The candidates of one field with their probabilities, for a table.

        Args:
            row: of the table, counted from 0.
            pos: likewise, of its columns.
        """
        return ", ".join(
            f"{isolated(label(piece, TABLE_LIMIT))} {number(float(probability), 2)}"
            for piece, probability in zip(
                self.candidates[row][pos], self.probabilities[row, pos], strict=True
            )
        )

    def data(self) -> dict[str, Any]:
        """Every field with its candidates; the last tokens of a very long text."""
        layers, positions, ranks = self.probabilities.shape
        first = max(0, positions - max(1, CANDIDATES // (layers * ranks)))
        best = self.probabilities[:, first:]
        chosen = [row[first:] for row in self.candidates]
        notes = ["In each field the likeliest next token; point at it for what else was likely."]
        if first:
            kept = positions - first
            notes.append(f"To stay small this shows only the last {kept} of {positions} tokens.")
        return {
            "title": self.title,
            "notes": notes,
            "rows": [label(name, TABLE_LIMIT) for name in self.row_labels],
            "columns": [label(piece, TABLE_LIMIT) for piece in told(self.pieces)[first:]],
            "first": first,
            "row_axis": "layer",
            "column_axis": "token",
            "value_name": "likeliest next",
            "scale": "viridis",
            "low": "0",
            "high": "1",
            "legend": "probability of the likeliest next token",
            "text": [[label(cell[0], CELL_LIMIT) for cell in row] for row in chosen],
            "level": levels(best[:, :, 0]),
            "bars": [
                [
                    [
                        [name, round(float(share), 4), percent(share)]
                        for name, share in zip(labels(cell, CANDIDATE_LIMIT), shares, strict=True)
                    ]
                    for cell, shares in zip(row, best[layer], strict=True)
                ]
                for layer, row in enumerate(chosen)
            ],
            "lines": [
                [[f"entropy of all: {number(float(nats) * BITS, 2)} bits"] for nats in row]
                for row in self.entropy[:, first:]
            ],
        }

    def _draw(self) -> Sheet:
        width, height = self.extent()
        sheet = Sheet(max(width + 0.2, 4.5), HEADING + 0.05 + height + 0.75)
        first = max(0, len(self.pieces) - MOST_COLUMNS)
        sheet.heading(0, figure_text(self.title), figure_text(self._legend(first)))
        self.draw_on(sheet, 0, HEADING + 0.05)
        draw_scale(sheet, self._left, HEADING + 0.05 + height + 0.35)
        return sheet

    @property
    def _left(self) -> float:
        """The inches left of the fields."""
        return 0.35 + Marks.fit(self.row_labels, HIGH).widest

    def extent(self) -> tuple[float, float]:
        """The inches that fields and their names take, to the right and downwards."""
        pieces = self.pieces[-MOST_COLUMNS:]
        below = Marks.fit(pieces, WIDE).height(45)
        return self._left + len(pieces) * WIDE, len(self.row_labels) * HIGH + below + 0.22

    def draw_on(self, sheet: Sheet, x: float, top: float, marked: object = None) -> None:
        """The fields and their names on a sheet that has other things too.

        Args:
            sheet: where.
            x: inches from the left of the sheet.
            top: inches from its top.
            marked: True for each field whose corner is marked, ``[layer, pos]``.
        """
        import matplotlib
        from matplotlib.colors import Normalize

        first = max(0, len(self.pieces) - MOST_COLUMNS)
        pieces, layers = self.pieces[first:], len(self.row_labels)
        columns, left = len(pieces), x + self._left
        norm = Normalize(0, 1)
        colours = np.asarray(
            matplotlib.colormaps["viridis"](norm(self.probabilities[:, first:, 0]))
        )
        sheet.map(left, top, columns * WIDE, layers * HIGH, colours)
        sheet.frames([(left, top)], columns * WIDE, layers * HIGH)
        corners = np.zeros(self.entropy.shape) if marked is None else np.asarray(marked)
        for (row, column), _ in np.ndenumerate(colours[:, :, 0]):
            piece = self.candidates[row][first + column][0]
            shown = figure_text(label(piece), CELL_LIMIT)
            size = min(7.5, 7.5 * WIDE * 0.92 / text_width(shown, 7.5))
            right, y = left + (column + 1) * WIDE, top + row * HIGH
            style = {"ha": "center", "va": "center_baseline"}
            ink = ink_on(colours[row, column])
            sheet.text(right - WIDE / 2, y + HIGH / 2, shown, size, color=ink, **style)
            if corners[row, first + column]:
                sheet.axes.fill([right - CORNER, right, right], [y, y, y + CORNER], color=ink, lw=0)
        Marks.fit(self.row_labels, HIGH).beside(sheet, left, top)
        below = Marks.fit(pieces, WIDE)
        below.below(sheet, left, top + layers * HIGH, 45)
        bottom = top + layers * HIGH + below.height(45) + 0.2
        sheet.text(left + columns * WIDE / 2, bottom, "token read", 8, color=SOFT, ha="center")
        style = {"color": SOFT, "va": "center", "ha": "center"}
        middle = top + layers * HIGH / 2
        sheet.text(x + 0.12, middle, downwards("layer"), 8, rotation=90.0, **style)

    def _legend(self, first: int) -> str:
        """What a field is, and what is left out."""
        text = "In each field: the likeliest next token at this layer."
        return f"{text} The last {MOST_COLUMNS} tokens of {len(self.pieces)}." if first else text


def draw_scale(sheet: Sheet, x: float, y: float) -> None:
    """What the colours of a lens mean, at a point."""
    import matplotlib
    from matplotlib.colors import Normalize

    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    name, palette = "probability of the likeliest token", matplotlib.colormaps["viridis"]
    sheet.scale(x, y, 2.6, ticks, list(map(str, ticks)), palette, Normalize(0, 1), name)
