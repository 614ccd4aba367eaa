"""What a model expects next: the candidates at each position, ranked by probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neox_lab.checks import several, shown
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.selections import whole_number
from neox_lab.views.base import View, texts
from neox_lab.views.drawing import AMOUNT, HEADING, SOFT, Sheet, text_width
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, figure_texts, isolated, label, labels, shorten, told

if TYPE_CHECKING:
    import pandas as pd

BARS = 10  # candidates drawn
CANDIDATES = 5  # candidates told for each position in the table
CONTEXT = 60  # characters of the text before, in the subtitle
LABEL_LIMIT = 20
LIVE, TOKEN_LIMIT = 1_000, 60  # tokens of a live view, and characters of one


class PredictionsView(View):
    """The next token's candidates after each position of a text.

    Args:
        pieces: the tokens of the text.
        candidates: for each position, (piece, probability from 0 to 1) pairs for the token after
            it; an empty list where they were not asked for.
        position: the position whose candidates are drawn; the last if not given.
        title: the headline.

    Raises:
        InputError: these do not fit together.
    """

    asset = "trace"

    def __init__(
        self,
        pieces: Sequence[str],
        candidates: Sequence[Sequence[tuple[str, float]]],
        position: int = -1,
        title: str | None = None,
    ) -> None:
        candidates = several("candidates", candidates, "(piece, probability) pairs", InputError)
        self.pieces = texts(pieces, len(candidates), "pieces", "entry of candidates")
        position = whole_number("position", position, InputError)
        if not -len(self.pieces) <= position < len(self.pieces):
            raise InputError(f"no position {position} in a text of {len(self.pieces)} tokens")
        self.candidates = [ranked(entries) for entries in candidates]
        self.position = position % len(self.pieces)
        if not self.candidates[self.position]:
            raise InputError(f"there are no candidates to draw at position {self.position}")
        super().__init__(title, "What comes next")

    def at(self, position: int) -> PredictionsView:
        """The same candidates, with those after another position drawn."""
        return PredictionsView(self.pieces, self.candidates, position, self.title)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each candidate: position, piece, rank (from 1), candidate, probability, came.

        ``came`` is whether the candidate's text is the one that follows in ``pieces``; it is None
        after the last position, where nothing follows.
        """
        rows = [
            (at, self.pieces[at], rank, candidate, probability, self._came(at, candidate))
            for at, entries in enumerate(self.candidates)
            for rank, (candidate, probability) in enumerate(entries, 1)
        ]
        names = ["position", "piece", "rank", "candidate", "probability", "came"]
        return make_frame(rows, columns=names)

    def _came(self, position: int, candidate: str) -> bool | None:
        """Whether ``candidate`` is what follows ``position`` in the text; None if nothing does."""
        if position + 1 == len(self.pieces):
            return None
        return candidate == self.pieces[position + 1]

    @property
    def alt_text(self) -> str:
        """Where we are in the text, and the candidates drawn."""
        named = [
            f"{isolated(label(piece, LABEL_LIMIT))} {percent(probability)}"
            for piece, probability in self.candidates[self.position][:BARS]
        ]
        where = isolated(label(self.pieces[self.position], LABEL_LIMIT))
        return f"Bar chart of the next token after {where}@{self.position}: {', '.join(named)}."

    def tables(self) -> list[Table]:
        """The candidates drawn; then for each position its first ones and the rank of what came."""
        drawn = [
            [str(rank), isolated(label(piece, LABEL_LIMIT)), percent(probability)]
            for rank, (piece, probability) in enumerate(self.candidates[self.position][:BARS], 1)
        ]
        token = isolated(label(self.pieces[self.position], LABEL_LIMIT))
        names = list(zip(["rank", "next token", "probability"], "rlr", strict=True))
        tables = [Table(f"After {token}@{self.position}", names, drawn)]
        rows = [self._row(at) for at, entries in enumerate(self.candidates) if entries]
        if len(rows) > 1:
            heads = ["position", "token", "rank of what came", "candidates for the next token"]
            tables.append(Table("After each token", list(zip(heads, "rlrl", strict=True)), rows))
        return tables

    def _row(self, position: int) -> list[str]:
        """One position in the table of all."""
        entries = self.candidates[position]
        best = [
            f"{isolated(label(piece, LABEL_LIMIT))} {percent(probability)}"
            for piece, probability in entries[:CANDIDATES]
        ]
        ranks = [rank for rank, (piece, _) in enumerate(entries, 1) if self._came(position, piece)]
        came = "–" if position + 1 == len(self.pieces) else f"> {len(entries)}"
        token = isolated(label(self.pieces[position], LABEL_LIMIT))
        return [str(position), token, str(ranks[0]) if ranks else came, "; ".join(best)]

    def data(self) -> dict[str, Any]:
        """Every token with the candidates after it; the last ones of a very long text."""
        first = max(0, len(self.pieces) - LIVE)
        pieces = [
            {
                "text": label(piece, TOKEN_LIMIT),
                "given": True,
                "share": None,
                "alternatives": candidate_rows(
                    entries, None if at + 1 == len(self.pieces) else self.pieces[at + 1]
                ),
            }
            for at, (piece, entries) in enumerate(
                zip(told(self.pieces), self.candidates, strict=True)
            )
        ]
        notes = ["Point at a token to see what was expected after it."]
        if first:
            notes.append(f"To stay small this shows only the last {LIVE} of {len(pieces)} tokens.")
        return {
            "title": self.title,
            "notes": notes,
            "position": self.position - first if self.position >= first else None,
            "first": first,
            "prompt": len(pieces),
            "next": True,
            "pieces": pieces[first:],
        }

    def _draw(self) -> Sheet:
        entries = self.candidates[self.position][:BARS]
        names = figure_texts([piece for piece, _ in entries], LABEL_LIMIT)
        left = 0.25 + max(text_width(name, 9) for name in names)
        width, step = 4.2, 0.29
        size = left + width + 0.9, HEADING + len(entries) * step
        sheet = Sheet(*size)
        sheet.heading(0, figure_text(self.title), figure_text(self._context()))
        for row, (name, (piece, probability)) in enumerate(zip(names, entries, strict=True)):
            y = HEADING + row * step
            bar = width * probability  # one scale everywhere: the width is certainty
            sheet.rectangle(left, y, bar, step - 0.07, facecolor=AMOUNT, edgecolor="none")
            middle = y + (step - 0.07) / 2
            sheet.text(left - 0.08, middle, name, 9, ha="right", va="center_baseline")
            said = percent(probability) + ("  came" if self._came(self.position, piece) else "")
            sheet.text(left + bar + 0.07, middle, said, 8.5, color=SOFT, va="center_baseline")
        return sheet

    def _context(self) -> str:
        """The end of the text up to the position, as it is drawn below the title."""
        before = self.pieces[: self.position + 1]
        shown = [shorten(label(piece), LABEL_LIMIT) for piece in before[-CONTEXT:]]
        while len(shown) > 1 and sum(map(len, shown)) > CONTEXT:
            shown.pop(0)
        cut = "" if len(shown) == len(before) else "… "
        return f"after  {cut}{' '.join(shown)}"


def ranked(given: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Candidates in order of probability, ties in the order given."""
    words = "candidates are (piece, probability) pairs, and a piece is a string"
    try:
        ranked = [(piece, float(share)) for piece, share in given]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InputError(f"{words}; got {shown(given)}") from None
    if not all(isinstance(piece, str) for piece, _ in ranked):
        raise InputError(words)
    ranked.sort(key=lambda pair: -pair[1])
    if not all(0 <= share <= 1.001 for _, share in ranked):
        raise InputError("probabilities lie between 0 and 1; these are not (logits, perhaps?)")
    return ranked


def candidate_rows(
    entries: Sequence[tuple[str, float]], came: str | None
) -> list[tuple[str, float, str, bool]]:
    """Candidates for ``assets/trace.js``: label, probability, percentage, and whether it came."""
    names = labels([piece for piece, _ in entries[:BARS]], TOKEN_LIMIT)
    return [
        (name, round(share, 4), percent(share), piece == came)
        for name, (piece, share) in zip(names, entries, strict=False)
    ]


def percent(share: float) -> str:
    """A probability as a percentage with the digits that matter."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"
