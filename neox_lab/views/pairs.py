"""One or two texts token by token, the second below the first, some tokens marked.

    PairView({"clean": pieces, "corrupted": others}, {("clean", 6): ("warning", "trailing space")})

Tokens that belong together stand below each other: the same positions where both texts have as many
tokens, else what a comparison of both matches. What differs is tinted on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any

from neox_lab.errors import InputError
from neox_lab.views.drawing import text_width
from neox_lab.views.markup import Table
from neox_lab.views.strips import LINE, SIZE, WIDTH, Piece, StripView, live_piece
from neox_lab.views.tokens import figure_text, html_text, isolated, label, readable

Marks = Mapping[tuple[str, int], tuple[str, str]]
"""By the name of a text and a position in it: a severity, and what is printed below the token."""
COLOURS = {"error": "#D55E00", "warning": "#E69F00", "note": "#56B4E9", "differs": "#B8A9C9"}
DRAWN, LIVE, COMPARED = 150, 1_000, 2_000  # columns drawn and live, tokens that are matched
GAP = Piece("")


class PairView(StripView):
    """One or two texts below each other.

    Args:
        texts: one or two lists of tokens by their names.
        marks: what is marked; severities are ``error``, ``warning`` and ``note``.
        title: the headline.
        note: a line below it.
        found: rows of a table of what was found, as dictionaries with the same keys.
        caption: what the rows of that table are.

    Raises:
        InputError: no text, more than two, or a severity that is none.
    """

    note_limit = 40

    def __init__(
        self,
        texts: Mapping[str, Sequence[str]],
        marks: Marks | None = None,
        title: str | None = None,
        note: str = "",
        found: Sequence[dict[str, object]] = (),
        caption: str = "Found",
    ) -> None:
        marks = marks or {}
        if not isinstance(texts, Mapping) or not 1 <= len(texts) <= 2:
            raise InputError("texts must be one or two lists of tokens by their names")
        if not {severity for severity, _ in marks.values()} <= COLOURS.keys():
            raise InputError(f"a mark has a severity that is none of {', '.join(COLOURS)}")
        self.names = list(texts)
        rows = [list(texts[name]) for name in self.names]
        spots = matched(*rows) if len(rows) == 2 else [(at,) for at in range(len(rows[0]))]
        self.columns = [
            tuple(_piece(rows, self.names, side, spot, marks) for side in range(len(self.names)))
            for spot in spots
        ]
        pieces = [piece for row in zip(*self.columns, strict=True) for piece in row]
        super().__init__(pieces, title or "Prompts", note, found, caption)
        self.colours = {kind: COLOURS[kind] for kind in COLOURS if kind in self.colours}

    @property
    def alt_text(self) -> str:
        """Both texts, and what is marked in each."""
        said = []
        for side, name in enumerate(self.names):
            row = [column[side] for column in self.columns]
            marked = [
                f"{isolated(label(piece.text, 40))} ({piece.note or piece.kind})"
                for piece in row
                if piece.kind is not None
            ]
            text = label("".join(piece.text for piece in row), 200)
            told = ", ".join(marked[:12]) or "nothing"
            said.append(f"{label(name, 40)}: {text}. Marked: {told}.")
        return " ".join(said)

    def tables(self) -> list[Table]:
        """What was found, in whole sentences."""
        if not self.found:
            return []
        names = list(self.found[0])
        rows = [[label(str(row[name])) for name in names] for row in self.found]
        return [Table(self.caption, [(name, "l") for name in names], rows)]

    def data(self) -> dict[str, Any]:
        """The columns, each a piece with the one below it."""
        columns = [tuple(Piece(f"{name}:") for name in self.names), *self.columns[:LIVE]]
        pieces = []
        for column in columns:
            made = [live_piece(replace(p, text=label(p.text) if p.text else "")) for p in column]
            pieces.append(made[0] | ({"under": made[1]} if len(made) > 1 else {}))
        notes = [self.note] if self.note else []
        if len(self.columns) > LIVE:
            notes.append(f"The first {LIVE} of {len(self.columns)} tokens.")
        kinds = {label(kind): colour for kind, colour in self.colours.items()}
        return {"title": self.title, "notes": notes, "kinds": kinds, "pieces": pieces}

    def _running_text(self) -> str:
        """The texts as text, one paragraph each; marks are in the picture and in the table."""
        said = [
            f"<p><strong>{html_text(label(name, 40))}</strong> "
            + html_text("".join(readable(column[side].text) for column in self.columns[:LIVE]))
            + "</p>"
            for side, name in enumerate(self.names)
        ]
        return "\n".join(said) + "\n"

    def _flow(self) -> tuple[list[tuple[Piece, str, float, float, float]], int]:
        """Where each token goes; a block of columns is as many lines as there are texts."""
        names = tuple(Piece(f"{name}:") for name in self.names)
        spots: list[tuple[Piece, str, float, float, float]] = []
        x, line = 0.0, 0
        for column in self.columns[:DRAWN]:
            width = self._width(column)
            if x and x + width > WIDTH:
                x, line = 0.0, line + len(names)
            for cells in [names, column] if x == 0 else [column]:
                width = self._width(cells)
                for row, piece in enumerate(cells):
                    spots.append((piece, _text(piece), x, (line + row) * LINE, width))
                x += width + 0.02
        return spots, line + len(names)

    def _width(self, column: tuple[Piece, ...]) -> float:
        """The inches that a column takes."""
        texts = [text_width(_text(piece), SIZE) for piece in column]
        notes = [
            text_width(figure_text(label(p.note), self.note_limit), 6.5) for p in column if p.note
        ]
        return max(texts + notes) + 0.08


def _text(piece: Piece) -> str:
    """A token in a picture; nothing for a gap."""
    return figure_text(label(piece.text), 40) if piece.text else ""


def _piece(
    rows: list[list[str]],
    names: list[str],
    side: int,
    spot: tuple[int | None, ...],
    marks: Marks,
) -> Piece:
    """What stands in one place: a token, marked or not, or a gap."""
    at = spot[side]
    if at is None:
        return GAP
    text = rows[side][at]
    if (names[side], at) in marks:
        severity, note = marks[names[side], at]
        return Piece(text, note, severity, details={"token": str(at), severity: note})
    other = spot[1 - side] if len(spot) == 2 else at
    if len(spot) == 2 and (other is None or rows[1 - side][other] != text):
        return Piece(text, kind="differs", strength=0.4, details={"token": str(at)})
    return Piece(text)


def matched(first: list[str], second: list[str]) -> list[tuple[int | None, ...]]:
    """Which tokens of two texts belong together, in order.

    Args:
        first: tokens.
        second: tokens.

    Returns:
        Pairs of positions, None where there is no token on a side: the same positions where both
        texts have as many tokens, else what a comparison of both matches.
    """
    if len(first) == len(second) or max(len(first), len(second)) > COMPARED:
        return list(zip_longest(range(len(first)), range(len(second))))
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    return [pair for _, a, b, c, d in blocks for pair in zip_longest(range(a, b), range(c, d))]
