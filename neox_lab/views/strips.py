"""A text whose pieces carry something: a tag, a heat, a value for each token.

One view for entities found in a text, for where an answer starts and ends, and for attributions.
Marked pieces are boxed and tinted, with what they carry printed below, so that nothing depends on
colour alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from neox_lab.errors import InputError
from neox_lab.views.base import View
from neox_lab.views.drawing import HEADING, SOFT, Sheet, text_width
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, html_text, isolated, label, shorten

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours; kinds beyond the seventh share them and are told apart by their names.
KINDS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
WIDTH, LINE, SIZE = 7.2, 0.52, 9.5  # inches, inches, points
DRAWN = 400  # pieces drawn
TEXT_LIMIT = 40


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: as it stands in the text.
        note: what is printed below it; "" for nothing.
        kind: decides the colour, such as an entity's label; None for an unmarked piece.
        strength: 0 to 1, how strong the tint is.
    """

    text: str
    note: str = ""
    kind: str | None = None
    strength: float = 1.0


class StripView(View):
    """A text in pieces, some of them marked.

    Args:
        pieces: from the start of the text to its end.
        title: the headline.
        note: a line below it.
        found: rows of a table of what was found, as dictionaries with the same keys.

    Raises InputError if there is no piece.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        title: str | None = None,
        note: str = "",
        found: Sequence[dict[str, object]] = (),
    ) -> None:
        if not pieces:
            raise InputError("there is no text to show")
        self.pieces, self.note, self.found = list(pieces), note, list(found)
        kinds = [piece.kind for piece in pieces if piece.kind is not None]
        self.colours = {
            kind: KINDS[at % len(KINDS)] for at, kind in enumerate(dict.fromkeys(kinds))
        }
        super().__init__(title or "Text")

    @property
    def frame(self) -> pd.DataFrame:
        """What was found, or, where nothing is listed, one row for each piece."""
        import pandas as pd

        if self.found:
            return pd.DataFrame(self.found)
        return pd.DataFrame([dataclasses.asdict(piece) for piece in self.pieces])

    @property
    def alt_text(self) -> str:
        """The text, and the marked pieces with their notes."""
        text = shorten(label("".join(piece.text for piece in self.pieces)), 200)
        marked = [
            f"{isolated(label(piece.text, TEXT_LIMIT))} ({piece.note or piece.kind})"
            for piece in self.pieces
            if piece.kind is not None
        ]
        return f"{text}. Marked: {', '.join(marked[:12]) or 'nothing'}."

    def tables(self) -> list[Table]:
        """What was found."""
        if not self.found:
            return []
        columns = list(self.found[0])
        numeric = {name for name in columns if isinstance(self.found[0][name], int | float)}
        rows = [[_said(row[name]) for name in columns] for row in self.found]
        return [Table("Found", [(n, "r" if n in numeric else "l") for n in columns], rows)]

    def _running_text(self) -> str:
        """The text as text, its marked pieces tinted, underlined and named."""
        parts = []
        for piece in self.pieces:
            shown = html_text(piece.text).replace("\n", "⏎<br>")
            if piece.kind is None:
                parts.append(shown)
                continue
            colour = _tint(self.colours[piece.kind], piece.strength)
            note = f"<sub>{html_text(label(piece.note, TEXT_LIMIT))}</sub>" if piece.note else ""
            parts.append(
                f'<span style="background-color:{colour};color:#1a1a1a"><u>{shown}</u>{note}</span>'
            )
        return f"<p>{''.join(parts)}</p>\n"

    def _draw(self) -> Sheet:
        spots, lines = self._flow()
        cut = f" The first {DRAWN} of {len(self.pieces)} pieces." * (len(self.pieces) > DRAWN)
        sheet = Sheet(WIDTH, HEADING + lines * LINE)
        sheet.heading(0, figure_text(self.title), figure_text(self.note) + cut)
        for piece, text, x, y, width in spots:
            middle = {"ha": "center", "va": "center_baseline"}
            y += HEADING
            if piece.kind is None:
                sheet.text(x + width / 2, y + 0.12, text, SIZE, **middle)
                continue
            colour = self.colours[piece.kind]
            fill = {"facecolor": _tint(colour, piece.strength), "edgecolor": colour}
            sheet.rectangle(x + 0.01, y, width - 0.02, 0.25, linewidth=0.7, **fill)
            sheet.text(x + width / 2, y + 0.12, text, SIZE, **middle)
            if piece.note:
                note = figure_text(label(piece.note), 14)
                sheet.text(x + width / 2, y + 0.36, note, 6.5, color=SOFT, ha="center")
        return sheet

    def _flow(self) -> tuple[list[tuple[Piece, str, float, float, float]], int]:
        """Where each word goes ``(piece, text, x, y, width)``, and how many lines that takes."""
        spots = []
        x, line = 0.0, 0
        for piece in self.pieces[:DRAWN]:
            for word in [piece.text] if piece.kind is not None else _words(piece.text):
                text = figure_text(
                    label(word).strip("·") if piece.kind is None else label(word), 60
                )
                notes = text_width(figure_text(label(piece.note), 14), 6.5) if piece.note else 0
                width = max(text_width(text, SIZE), notes) + 0.08
                if x and x + width > WIDTH:
                    x, line = 0.0, line + 1
                spots.append((piece, text, x, line * LINE, width))
                x += width + (0.02 if piece.kind is not None else 0.0)
                if word.endswith("\n"):
                    x, line = 0.0, line + 1
        return spots, line + 1


def _words(text: str) -> list[str]:
    """Words with the space before them, so that lines can break between them."""
    words: list[str] = []
    for character in text:
        new = character == " " and words and words[-1].strip(" ")
        if words and not new and not words[-1].endswith("\n"):
            words[-1] += character
        else:
            words.append(character)
    return words


def _tint(colour: str, strength: float) -> str:
    """``colour`` mixed with white: a quarter of it at strength 0, two thirds at 1."""
    share = 0.15 + 0.5 * min(1.0, max(0.0, strength))
    parts = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (part - 255) * share):02x}" for part in parts)


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return isolated(label(value, TEXT_LIMIT)) if isinstance(value, str) else str(value)
