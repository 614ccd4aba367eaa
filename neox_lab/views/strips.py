"""A text whose pieces carry something: a tag, a heat, a value for each token.

One view for entities found in a text, for where an answer starts and ends, and for attributions.
Marked pieces are boxed and tinted, with what they carry printed below, so that nothing depends on
colour alone.

    StripView.values(pieces, attributions, value_name="attribution")
    StripView.tags(pieces, ["B-PER", "I-PER", "O"], scores)
    StripView.spans(pieces, start, end)
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import FINITE, TEXT, check, or_none, several
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
    tint,
)
from neox_lab.views.markup import Table
from neox_lab.views.predictions import percent
from neox_lab.views.tokens import (
    figure_text,
    html_text,
    isolated,
    label,
    readable,
    shorten,
    whole_characters,
)

if TYPE_CHECKING:
    import pandas as pd

# Okabe and Ito's colours; where kinds share one they are told apart by their names.
KINDS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
# Kinds that mean the same everywhere; bars of start and end stand out on an answer's yellow.
OWN = {"less than 0": LESS, "more than 0": MORE, "loss": AMOUNT, "answer": "#F0E442"}
MARKS = ("#2a8bc9", "#d9661f", "#009e73")
RUNNING = 1_500  # pieces of the running text
PIECES, CHARACTERS, LONGEST = (
    4_000,
    500_000,
    200_000,
)  # live; LONGEST is of one piece
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
        details: names and values told when someone points at the piece.
        marks: names and shares from 0 to 1, drawn as thin bars below the piece.
    """

    text: str
    note: str = ""
    kind: str | None = None
    strength: float = 1.0
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, float] = dataclasses.field(default_factory=dict)


class StripView(View):
    """A text in pieces, some of them marked.

    Args:
        pieces: from the start of the text to its end.
        title: the headline.
        note: a line below it.
        found: rows of a table of what was found, as dictionaries with the same keys.
        caption: what the rows of that table are.
        kinds: all kinds there can be, such as a model's labels; each has the colour of its place
            in this list, in every picture.

    Raises:
        InputError: there is no piece.
    """

    asset = "strip"
    note_limit = 14  # characters of a note in a picture

    def __init__(
        self,
        pieces: Sequence[Piece],
        title: str | None = None,
        note: str = "",
        found: Sequence[dict[str, object]] = (),
        caption: str = "Found",
        kinds: Sequence[str] = (),
    ) -> None:
        self.pieces = several("pieces", pieces, "a list of Piece", InputError)
        self.found = several("found", found, "a list of dictionaries", InputError)
        if not self.pieces or not all(isinstance(piece, Piece) for piece in self.pieces):
            raise InputError("there is no text to show; expected a list of Piece")
        if not all(isinstance(row, dict) for row in self.found):
            raise InputError("found must be a list of dictionaries, one for each row of a table")
        self.note = check("note", note, TEXT, InputError)
        self.caption = check("caption", caption, TEXT, InputError)
        known = several("kinds", kinds, "a list of texts", InputError)
        self.colours = _colours((p.kind for p in self.pieces if p.kind is not None), known)
        super().__init__(title, "Text")

    @classmethod
    def values(
        cls,
        pieces: Sequence[str],
        values: object,
        title: str | None = None,
        value_name: str = "value",
        largest: float | None = None,
    ) -> StripView:
        """A number for each token, such as an attribution: blue below zero, orange above.

        Args:
            pieces: the tokens.
            values: a number for each ``[token]``; NaN where there is none. What is not more than
                a hundredth of the largest is not marked.
            title: the headline.
            value_name: what a number is, with its unit.
            largest: the number whose tint is the deepest, where several strips are compared; the
                largest of these, whatever its sign, if None.
        """
        numbers = array(values, "token", "values")
        pieces = texts(pieces, len(numbers), "pieces", "token")
        given = check("largest", largest, or_none(FINITE), InputError)
        most = largest_of(numbers) if given is None else given
        made = []
        for piece, value in zip(pieces, numbers.tolist(), strict=True):
            if not abs(value) > most / 100:  # NaN, or too little to be seen
                made.append(Piece(piece))
                continue
            said = number(value, decimals(most))
            kind = "less than 0" if value < 0 else "more than 0"
            made.append(Piece(piece, said, kind, abs(value) / most, {value_name: said}))
        rows: list[dict[str, object]] = [
            {"position": at, "token": piece, value_name: float(value)}
            for at, (piece, value) in enumerate(zip(pieces, numbers, strict=True))
        ]
        note = f"Below each token its {value_name}; blue is less than 0, orange more."
        return cls(made, title or value_name, note, rows, "Each token")

    @classmethod
    def tags(
        cls,
        pieces: Sequence[str],
        tags: Sequence[str],
        scores: object = None,
        title: str | None = None,
    ) -> StripView:
        """A tag for each word or token, as a tagger gives them: ``B-PER``, ``I-PER``, ``O``.

        Args:
            pieces: words or tokens, each with the space it begins with.
            tags: one for each; ``O`` is not marked.
            scores: how sure each is ``[piece]``, from 0 to 1; 1 if not given.
            title: the headline.
        """
        tags = texts(tags, len(pieces), "tags", "piece")
        sure = array([1.0] * len(tags) if scores is None else scores, "piece", "scores").tolist()
        made: list[Piece] = []
        rows: list[dict[str, object]] = []
        for at, (piece, tag, score) in enumerate(zip(pieces, tags, sure, strict=True)):
            kind = None if tag == "O" else tag.split("-", 1)[-1]
            details = {"tag": tag, "score": f"{score:.2f}"}
            made.append(Piece(piece, tag if kind else "", kind, score, details if kind else {}))
            rows.append({"position": at, "piece": piece, "tag": tag, "score": float(score)})
        note = "Below each piece its tag: B- begins, I- continues; the deeper, the surer."
        return cls(made, title or "Tags", note, rows, "Each piece")

    @classmethod
    def spans(
        cls,
        pieces: Sequence[str],
        start: object,
        end: object,
        best: tuple[int, int] | None = None,
        title: str | None = None,
    ) -> StripView:
        """Where an answer may start and end: two bars below each token, the best span boxed.

        Args:
            pieces: the tokens of the text.
            start: the probability that the answer starts there ``[token]``.
            end: that it ends there ``[token]``.
            best: first and last token of the best answer; None if there is no answer.
            title: the headline.

        Raises:
            InputError: numbers that are none, or not as many as tokens.
        """
        starts, ends = array(start, "token", "start"), array(end, "token", "end")
        pieces = texts(pieces, len(starts), "pieces", "token")
        if len(ends) != len(starts):
            raise InputError(f"start has {len(starts)} entries and end {len(ends)}")
        first, last = best if best is not None else (len(pieces), -1)
        made: list[Piece] = []
        rows: list[dict[str, object]] = []
        for at, (piece, a, b) in enumerate(zip(pieces, starts, ends, strict=True)):
            marks = {"start": float(a), "end": float(b)}
            kind = "answer" if first <= at <= last else None
            made.append(Piece(piece, kind=kind, strength=0.4, marks=marks))
            rows.append({"position": at, "token": piece, **marks})
        note = "Bars below each token: probability that the answer starts (blue) or ends (orange)."
        return cls(made, title or "Answer", note, rows, "Each token")

    @property
    def frame(self) -> pd.DataFrame:
        """What was found, or, where nothing is listed, one row for each piece."""
        if self.found:
            return make_frame(self.found)
        names = ["text", "note", "kind", "strength"]
        rows = [[getattr(piece, name) for name in names] for piece in self.pieces]
        return make_frame(rows, columns=names)

    @property
    def alt_text(self) -> str:
        """The text, and the marked pieces with their notes."""
        text = shorten(label("".join(piece.text for piece in self.pieces)), 200)
        marked = [
            f"{isolated(label(piece.text, TEXT_LIMIT))} ({piece.note or piece.kind})"
            for piece in self.pieces
            if piece.kind is not None
        ]
        stop = "" if text.endswith((".", "!", "?", "…")) else "."
        return f"{text}{stop} Marked: {', '.join(marked[:12]) or 'nothing'}."

    def tables(self) -> list[Table]:
        """What was found."""
        if not self.found:
            return []
        columns = list(self.found[0])
        numeric = {name for name in columns if isinstance(self.found[0][name], int | float)}
        rows = [[_said(row[name]) for name in columns] for row in self.found]
        return [Table(self.caption, [(n, "r" if n in numeric else "l") for n in columns], rows)]

    def _running_text(self) -> str:
        """The text as text, its marked pieces tinted, underlined and named."""
        parts = []
        for piece, text in zip(self.pieces, self._texts(RUNNING), strict=False):
            shown = html_text(readable(text)).replace("⏎", "⏎<br>")
            if piece.kind is None:
                parts.append(shown)
                continue
            colour = tint(self.colours[piece.kind], piece.strength)
            note = f"<sub>{html_text(label(piece.note, TEXT_LIMIT))}</sub>" if piece.note else ""
            parts.append(
                f'<span style="background-color:{colour};color:#1a1a1a"><u>{shown}</u>{note}</span>'
            )
        rest = len(self.pieces) - RUNNING
        more = f" <small>… and {rest} more pieces</small>" if rest > 0 else ""
        return f"<p>{''.join(parts)}{more}</p>\n"

    def _texts(self, count: int) -> list[str]:
        """The first pieces' texts: of a character in unmarked pieces the first one has it whole."""
        marked = [piece.kind is not None or bool(piece.marks) for piece in self.pieces[:count]]
        return whole_characters([piece.text for piece in self.pieces[:count]], marked)

    def data(self) -> dict[str, Any]:
        """The pieces with what they carry; the first ones of a very long text."""
        room, pieces = CHARACTERS, []
        for piece, text in zip(self.pieces, self._texts(PIECES), strict=False):
            pieces.append(live_piece(dataclasses.replace(piece, text=text)))
            room -= len(str(pieces[-1]))
            if room < 0:
                break
        notes = [self.note] if self.note else []
        if len(pieces) < len(self.pieces):
            notes.append(
                f"To stay small this shows only the first {len(pieces)} of {len(self.pieces)} "
                f"pieces."
            )
        return {
            "title": self.title,
            "notes": notes,
            "kinds": {label(kind, TEXT_LIMIT): colour for kind, colour in self.colours.items()},
            "pieces": pieces,
        }

    def _draw(self) -> Sheet:
        cut = f" The first {DRAWN} of {len(self.pieces)} pieces." * (len(self.pieces) > DRAWN)
        sheet = Sheet(WIDTH, HEADING + self.height)
        sheet.heading(0, figure_text(self.title), figure_text(self.note) + cut)
        self.draw_on(sheet, HEADING)
        return sheet

    @property
    def height(self) -> float:
        """The inches that the text takes in a picture ``WIDTH`` inches wide."""
        return self._flow()[1] * LINE

    def draw_on(self, sheet: Sheet, top: float) -> None:
        """Draw the text on a sheet that has other things too.

        Args:
            sheet: what is drawn on.
            top: where its first line is, in pixels.
        """
        for piece, text, x, y, width in self._flow()[0]:
            self._piece(sheet, piece, text, x, top + y, width)

    def _piece(
        self, sheet: Sheet, piece: Piece, text: str, x: float, y: float, width: float
    ) -> None:
        """One word or marked piece with its top left corner at a point."""
        if piece.kind is not None:
            colour = self.colours[piece.kind]
            fill = {"facecolor": tint(colour, piece.strength), "edgecolor": colour}
            sheet.rectangle(x + 0.01, y, width - 0.02, 0.25, linewidth=0.7, **fill)
        sheet.text(x + width / 2, y + 0.12, text, SIZE, ha="center", va="center_baseline")
        for row, share in enumerate(piece.marks.values()):
            bar = (width - 0.04) * min(1.0, share)
            colour = MARKS[row % len(MARKS)]
            sheet.rectangle(
                x + 0.02, y + 0.28 + 0.06 * row, bar, 0.05, facecolor=colour, linewidth=0
            )
        if piece.note:
            note = figure_text(label(piece.note), self.note_limit)
            sheet.text(x + width / 2, y + 0.36, note, 6.5, color=SOFT, ha="center")

    def _flow(self) -> tuple[list[tuple[Piece, str, float, float, float]], int]:
        """Where each word goes ``(piece, text, x, y, width)``, and how many lines that takes."""
        spots = []
        x, line = 0.0, 0
        for piece in self.pieces[:DRAWN]:
            whole = piece.kind is not None or piece.marks
            for word in [piece.text] if whole else _words(piece.text):
                text = figure_text(label(word) if whole else label(word).strip("·"), 60)
                notes = (
                    text_width(figure_text(label(piece.note), self.note_limit), 6.5)
                    if piece.note
                    else 0
                )
                width = max(text_width(text, SIZE), notes) + 0.08
                if x and x + width > WIDTH:
                    x, line = 0.0, line + 1
                spots.append((piece, text, x, line * LINE, width))
                x += width + (0.02 if piece.kind is not None else 0.0)
                if word.endswith("\n"):
                    x, line = 0.0, line + 1
        return spots, line + 1


def live_piece(piece: Piece) -> dict[str, Any]:
    """One piece for ``assets/strip.js``."""
    text = readable(piece.text).replace("⏎", "⏎\n")
    made: dict[str, Any] = {"text": shorten(text, LONGEST), "kind": None}
    if piece.kind is not None:
        made |= {"kind": label(piece.kind, TEXT_LIMIT), "note": label(piece.note, TEXT_LIMIT)}
        made["strength"] = round(min(1.0, max(0.0, piece.strength)), 3)
        if not piece.note:
            made["note"] = ""
    if piece.details:
        made["details"] = [
            [label(name, TEXT_LIMIT), label(str(value), TEXT_LIMIT)]
            for name, value in piece.details.items()
        ]
    if piece.marks:
        made["marks"] = [
            [name, round(share, 4), percent(share)] for name, share in piece.marks.items()
        ]
    return made


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


def _colours(kinds: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """A colour for each kind: by its place among those known, else by its name.

    Where two names nobody knows of would get the same colour, the later one in the alphabet takes
    the next that is free.
    """
    there = list(dict.fromkeys(kinds))
    found = {kind: KINDS[at % len(KINDS)] for at, kind in enumerate(dict.fromkeys(known))}
    found |= {kind: OWN[kind] for kind in there if kind in OWN}
    for kind in sorted(set(there) - set(found)):
        first = zlib.crc32(kind.encode("utf-8", "surrogatepass")) % len(KINDS)
        order = [*KINDS[first:], *KINDS[:first]]
        found[kind] = next((c for c in order if c not in found.values()), order[0])
    return {kind: found[kind] for kind in there}


def largest_of(values: NDArray[np.float32]) -> float:
    """The largest finite value whatever its sign, for a scale; 1 if there is none but 0."""
    finite = np.abs(values[np.isfinite(values)])
    return (float(finite.max()) if finite.size else 0.0) or 1.0


def _said(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return isolated(label(value, TEXT_LIMIT)) if isinstance(value, str) else str(value)
