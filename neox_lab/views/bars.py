"""Named numbers as bars: classes and their probabilities, metrics side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.checks import TEXT, check
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import (
    AMOUNT,
    HEADING,
    LESS,
    MORE,
    SOFT,
    Sheet,
    decimals,
    number,
    text_width,
)
from neox_lab.views.live import rounded
from neox_lab.views.markup import Table
from neox_lab.views.strips import WIDTH, StripView, largest_of
from neox_lab.views.tokens import figure_text, figure_texts, isolated, label, labels, told

if TYPE_CHECKING:
    import pandas as pd

MOST = 30  # bars drawn
NAME_LIMIT = 28
LIVE_BARS, LIVE_CELLS = 300, 20_000  # bars, and attributions, of a live view
WIDE, STEP = 3.6, 0.27  # inches of the longest bar, and from bar to bar


class BarsView(View):
    """A bar for each name, with its value printed.

    Where some are negative, those go left and are blue, the others orange, as in heat maps.

    Args:
        names: what each bar stands for.
        values: how long it is, ``[name]``; NaN and infinity are said and have no length.
        title: the headline.
        note: a line below it.

        pieces: tokens of a text, where each says how much it speaks for each name.
        attributions: by how much, ``[name, piece]``.

    Raises:
        InputError: there is none, or attributions that do not fit.
    """

    asset = "bars"

    def __init__(
        self,
        names: Sequence[str],
        values: object,
        title: str | None = None,
        note: str = "",
        pieces: Sequence[str] | None = None,
        attributions: object = None,
    ) -> None:
        self.values = array(values, "name", "values")
        self.names = texts(names, len(self.values), "names", "value")
        self._short = labels(self.names, NAME_LIMIT)
        if not len(self.values):
            raise InputError("bars need at least one value")
        counts = bool(np.all(self.values == np.round(self.values)) and self.values.max() > 1)
        self._places = 0 if counts else 3
        self._lengths = np.where(np.isfinite(self.values), self.values, 0)
        self.note = check("note", note, TEXT, InputError)
        self.pieces, self.attributions = None, None
        if pieces is not None:
            self.attributions = array(attributions, "name piece", "attributions")
            self.pieces = texts(pieces, self.attributions.shape[1], "pieces", "token")
            if len(self.attributions) != len(self.names):
                raise InputError(
                    f"attributions are [name, piece]; got {len(self.attributions)} rows for "
                    f"{len(self.names)} names"
                )
        super().__init__(title, "Values")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each bar: name, value."""
        return make_frame({"name": self.names, "value": self.values})

    @property
    def attribution_frame(self) -> pd.DataFrame:
        """One row for each name and token: name, position, token, attribution."""
        rows = [
            (name, at, piece, float(value))
            for name, line in zip(self.names, self._attributed(), strict=False)
            for at, (piece, value) in enumerate(zip(self.pieces or [], line, strict=True))
        ]
        return make_frame(rows, columns=["name", "position", "token", "attribution"])

    def _attributed(self) -> list[Any]:
        return [] if self.attributions is None else list(self.attributions)

    @property
    def alt_text(self) -> str:
        """The bars, the longest first."""
        order = np.argsort(-np.abs(self.values))[:8]
        named = [f"{isolated(self._short[at])} {self._said(self.values[at])}" for at in order]
        return f"Bars: {', '.join(named)}."

    def _speaks_for(self, name: int) -> str:
        """What the attributions of a name are called."""
        return f"What speaks for {isolated(self._short[name])}"

    def _attributed_text(self) -> StripView | None:
        """The text as it speaks for the longest bar; None without attributions."""
        if self.pieces is None or self.attributions is None:
            return None
        best = int(self._lengths.argmax())
        title, most = self._speaks_for(best), largest_of(self.attributions)
        return StripView.values(self.pieces, self.attributions[best], title, largest=most)

    def _running_text(self) -> str:
        strip = self._attributed_text()
        return "" if strip is None else strip._running_text()

    def tables(self) -> list[Table]:
        """Name and value of each bar."""
        rows = [
            [isolated(name), self._said(value)]
            for name, value in zip(self._short, self.values, strict=True)
        ]
        tables = [Table("Values", [("name", "l"), ("value", "r")], rows)]
        if self.pieces is not None and self.attributions is not None:
            best = int(self._lengths.argmax())
            caption = self._speaks_for(best)
            told = [
                [str(at), isolated(label(piece, NAME_LIMIT)), number(float(value), 3)]
                for at, (piece, value) in enumerate(
                    zip(self.pieces, self.attributions[best], strict=True)
                )
            ]
            columns = list(zip(["position", "token", "attribution"], "rlr", strict=True))
            tables.append(Table(caption, columns, told, source=".attribution_frame"))
        return tables

    def data(self) -> dict[str, Any]:
        """The bars, and the tokens with their attributions; the first ones of very many."""
        kept = slice(LIVE_BARS)
        notes = [self.note] if self.note else []
        if len(self.names) > LIVE_BARS:
            notes.append(
                f"To stay small this shows only the first {LIVE_BARS} of {len(self.names)}."
            )
        made: dict[str, Any] = {
            "title": self.title,
            "notes": notes,
            "names": labels(self.names[kept], 2 * NAME_LIMIT),
            "values": rounded(self._lengths[kept]),
            "texts": [self._said(value) for value in self.values[kept]],
        }
        if self.pieces is not None and self.attributions is not None:
            shown = max(1, min(len(self.pieces), LIVE_CELLS // len(made["names"])))
            if shown < len(self.pieces):
                notes.append(f"Only the first {shown} of {len(self.pieces)} tokens.")
            made["pieces"] = [label(piece, 2 * NAME_LIMIT) for piece in told(self.pieces[:shown])]
            made["attributions"] = rounded(self.attributions[kept, :shown], 3)
            most = made["most"] = largest_of(self.attributions)
            made["said"] = [
                [number(float(value), decimals(most)) for value in line]
                for line in self.attributions[kept, :shown]
            ]
        return made

    def _draw(self) -> Sheet:
        names = figure_texts(self.names[:MOST], NAME_LIMIT)
        values = self._lengths[:MOST]
        left = 0.15 + max(text_width(name, 9) for name in names)
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        unit = WIDE / ((high - low) or 1.0)
        zero = left + (0.55 if low < 0 else 0) - low * unit
        cut = f" The first {MOST} of {len(self.names)}." if len(self.names) > MOST else ""
        bottom, strip = HEADING + len(names) * STEP, self._attributed_text()
        page = zero + high * unit + 0.7, bottom
        if strip is not None:
            page = max(page[0], WIDTH), bottom + 0.4 + strip.height
        sheet = Sheet(*page)
        sheet.heading(0, figure_text(self.title), figure_text(self.note) + cut)
        for row, (name, value) in enumerate(zip(names, values, strict=True)):
            y, size = HEADING + row * STEP, float(value) * unit
            colour = AMOUNT if low == 0 else MORE if value >= 0 else LESS
            sheet.rectangle(
                min(zero, zero + size), y, abs(size), STEP - 0.07, facecolor=colour, linewidth=0
            )
            middle = y + (STEP - 0.07) / 2
            sheet.text(left - 0.08, middle, name, 9, ha="right", va="center_baseline")
            at, side = (zero + size + 0.06, "left") if value >= 0 else (zero + size - 0.06, "right")
            said = self._said(self.values[row])
            sheet.text(at, middle, said, 8.5, color=SOFT, ha=side, va="center_baseline")
        if strip is not None:
            sheet.text(0, bottom + 0.25, figure_text(strip.title), 9, weight="bold")
            strip.draw_on(sheet, bottom + 0.4)
        return sheet

    def _said(self, value: float) -> str:
        """A value as it is printed beside its bar; counts have no decimals."""
        return "NaN" if np.isnan(value) else number(float(value), self._places)
