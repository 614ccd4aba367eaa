"""Several short texts below one another, each tinted by one number for every token.

For the examples of a feature: the same scale for all, what each is said in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import TEXT, check, or_none, several, whole
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.progress import counted
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import HEADING, LESS, MORE, SOFT, Sheet, decimals, number
from neox_lab.views.markup import Table
from neox_lab.views.strips import Piece, StripView, largest_of, live_piece
from neox_lab.views.tokens import figure_text, html_text, isolated, label, shorten

if TYPE_CHECKING:
    import pandas as pd

DRAWN = 8  # examples in a picture
LIVE = 60
FAINTEST = 0.02  # share of the largest below which a token is not tinted
HEAD_LINE = 0.24  # inches


@dataclass(frozen=True)
class TextExample:
    """A short text with a number for each token.

    Attributes:
        heading: what it is, in a few words.
        pieces: its tokens.
        values: of each ``[token]``; NaN where there is none.
        at: the token that is meant, boxed; None for none.
    """

    heading: str
    pieces: Sequence[str]
    values: object
    at: int | None = None


class ExamplesView(View):
    """Texts below one another, tinted by one scale.

    Args:
        examples: the texts.
        value_name: what a number is.
        title: the headline.
        note: a line below it.

    Raises:
        InputError: there is no example.
    """

    asset = "examples"

    def __init__(
        self,
        examples: Sequence[TextExample],
        value_name: str = "value",
        title: str | None = None,
        note: str = "",
    ) -> None:
        self.examples = several("examples", examples, "a list of TextExample", InputError)
        if not self.examples or not all(isinstance(one, TextExample) for one in self.examples):
            raise InputError("there is no text to show; expected a list of TextExample")
        self.value_name = check("value_name", value_name, TEXT, InputError)
        self.note = check("note", note, TEXT, InputError)
        self.values: list[NDArray[np.float32]] = []
        one: TextExample
        for one in self.examples:
            check("heading", one.heading, TEXT, InputError)
            self.values.append(array(one.values, "token", "values"))
            count = len(self.values[-1])
            texts(one.pieces, count, "pieces", "token")
            check("at", one.at, or_none(whole(least=0, most=count - 1)), InputError)
        self.largest = largest_of(np.concatenate(self.values))
        super().__init__(title, "Examples")

    def pieces(self, which: int) -> list[Piece]:
        """The pieces of one example; the token that is meant has its value below it."""
        one, made = self.examples[which], []
        for at, (text, value) in enumerate(
            zip(one.pieces, self.values[which].tolist(), strict=True)
        ):
            strength = abs(value) / self.largest
            if not strength >= FAINTEST and at != one.at:  # NaN, or too little to be seen
                made.append(Piece(text))
                continue
            said = number(value, decimals(self.largest))
            kind = "less than 0" if value < 0 else "more than 0"
            note = said if at == one.at else ""
            known = {self.value_name: said}
            made.append(Piece(text, note, kind, strength if strength >= 0 else 0.0, known))
        return made

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each token: example, heading, position, token, value."""
        rows = [
            (which, one.heading, at, piece, float(value))
            for which, (one, values) in enumerate(zip(self.examples, self.values, strict=True))
            for at, (piece, value) in enumerate(zip(one.pieces, values, strict=True))
        ]
        return make_frame(rows, columns=["example", "heading", "position", "token", "value"])

    @property
    def alt_text(self) -> str:
        """The first texts."""
        said = [
            f"{one.heading}: {isolated(shorten(label(''.join(one.pieces)), 120))}"
            for one in self.examples[:5]
        ]
        return f"{counted(len(self.examples), 'text')}. {' | '.join(said)}"

    def tables(self) -> list[Table]:
        """Each example with the token that is meant."""
        rows = []
        for one, values in zip(self.examples, self.values, strict=True):
            token, value = "", ""
            if one.at is not None:
                token = isolated(label(one.pieces[one.at], 28))
                value = number(float(values[one.at]), decimals(self.largest))
            rows.append([one.heading, token, value])
        columns = [("example", "l"), ("token", "l"), (self.value_name, "r")]
        return [Table("Examples", columns, rows)]

    def data(self) -> dict[str, Any]:
        """The texts, the first of very many."""
        notes = [self.note] if self.note else []
        if len(self.examples) > LIVE:
            notes.append(f"Only the first {LIVE} of {len(self.examples)} texts.")
        rows, there = [], set()
        for which, one in enumerate(self.examples[:LIVE]):
            pieces = self.pieces(which)
            there |= {piece.kind for piece in pieces}
            rows.append({"heading": label(one.heading), "pieces": list(map(live_piece, pieces))})
        colours = {"less than 0": LESS, "more than 0": MORE}
        kinds = {kind: colour for kind, colour in colours.items() if kind in there}
        return {"title": self.title, "notes": notes, "kinds": kinds, "examples": rows}

    def _strips(self) -> list[StripView]:
        return [StripView(self.pieces(which)) for which in range(len(self.examples[:DRAWN]))]

    def _running_text(self) -> str:
        parts = []
        for one, strip in zip(self.examples, self._strips(), strict=False):
            parts.append(f"<p><small>{html_text(one.heading)}</small></p>{strip._running_text()}")
        return "".join(parts)

    def _draw(self) -> Sheet:
        strips = self._strips()
        sheet = Sheet(7.2, HEADING + sum(HEAD_LINE + strip.height for strip in strips))
        more = len(self.examples) - len(strips)
        cut = f" The first {len(strips)} of {len(self.examples)}." * (more > 0)
        sheet.heading(0, figure_text(self.title), figure_text(self.note) + cut)
        top = HEADING
        for one, strip in zip(self.examples, strips, strict=False):
            sheet.text(0, top + 0.08, figure_text(one.heading, 110), 7.5, color=SOFT)
            strip.draw_on(sheet, top + HEAD_LINE)
            top += HEAD_LINE + strip.height
        return sheet
