"""Generated text, token by token, with how sure the model was of each.

What was given and what was added differ in more than colour: the continuation is boxed and carries
its probability below each token; in running text it is bold and underlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from neox_lab.checks import check, list_of, number, plain, several
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, texts
from neox_lab.views.drawing import AMOUNT, HEADING, SOFT, Sheet, amounts, text_width
from neox_lab.views.markup import Table
from neox_lab.views.predictions import LIVE, TOKEN_LIMIT, candidate_rows, percent, ranked
from neox_lab.views.tokens import figure_text, html_text, isolated, label, readable, shorten, told

if TYPE_CHECKING:
    import pandas as pd

WIDTH, LINE = 9.0, 0.5  # inches
SIZE, SMALL = 10.0, 6.5  # points, of tokens and of their probabilities
DRAWN = 300  # tokens in one picture
DEEPEST = 0.55  # of the scale of amounts, behind a token of probability 1
CANDIDATES = 3  # alternatives told in the table
LABEL_LIMIT, ALT_LIMIT = 24, 300  # characters of a token, and of a part in the alternative text
LEGEND = "Plain: the prompt. Bold and underlined: the continuation, deeper for a more likely token."


_SHARES = list_of(number(), "numbers")


class TextView(View):
    """A prompt and its continuation, with the probability of each token added.

    Args:
        prompt: the tokens given.
        continuation: the tokens added.
        probabilities: of each token added, from 0 to 1, when it was chosen.
        title: the headline.
        alternatives: for each token added, what else might have come: (piece, probability) pairs;
            an empty list where nobody asked.

    Raises:
        InputError: these do not fit together.
    """

    asset = "trace"

    def __init__(
        self,
        prompt: Sequence[str],
        continuation: Sequence[str],
        probabilities: Sequence[float],
        title: str | None = None,
        alternatives: Sequence[Sequence[tuple[str, float]]] | None = None,
    ) -> None:
        written = several("prompt", prompt, "a list of strings, one for each token", InputError)
        shares = several("probabilities", probabilities, "a list of numbers", InputError)
        self.prompt = texts(written, len(written), "prompt", "token")
        self.continuation = texts(
            continuation, len(shares), "continuation", "entry of probabilities"
        )
        self.probabilities = check("probabilities", [plain(s) for s in shares], _SHARES, InputError)
        if not self.prompt + self.continuation:
            raise InputError("there is no text: prompt and continuation are both empty")
        if not all(0 <= share <= 1.001 for share in self.probabilities):
            raise InputError("probabilities lie between 0 and 1; these are not (logits, perhaps?)")
        words = "a list of (piece, probability) pairs for each token added"
        given: list[Any] = [[]] * len(self.continuation)
        if alternatives is not None:
            given = several("alternatives", alternatives, words, InputError)
        if len(given) != len(self.continuation):
            raise InputError(
                f"alternatives has {len(given)} entries; needed: {len(self.continuation)}, one for "
                f"each token added"
            )
        self.alternatives = [ranked(entries) for entries in given]
        super().__init__(title, "Generated text")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each token: position, part (prompt or continuation), piece, probability.

        The prompt's tokens were given, not chosen: their probability is NaN.
        """
        pieces = self.prompt + self.continuation
        given = len(self.prompt)
        return make_frame(
            {
                "position": range(len(pieces)),
                "part": ["prompt"] * given + ["continuation"] * len(self.continuation),
                "piece": pieces,
                "probability": [float("nan")] * given + self.probabilities,
            }
        )

    @property
    def alt_text(self) -> str:
        """The text itself, its two parts named, and the token the model was least sure of."""
        parts = [
            f"{name}: {shorten(''.join(map(readable, pieces)), ALT_LIMIT)}"
            for name, pieces in (("Prompt", self.prompt), ("Continuation", self.continuation))
            if pieces
        ]
        if self.probabilities:
            least = min(range(len(self.probabilities)), key=self.probabilities.__getitem__)
            token = isolated(label(self.continuation[least], LABEL_LIMIT))
            where = f"{token}@{len(self.prompt) + least}, {percent(self.probabilities[least])}"
            parts.append(f"Least likely token added: {where}")
        return ". ".join(parts) + "."

    def tables(self) -> list[Table]:
        """Each token added, with its probability."""
        rows = [
            [str(at), isolated(label(piece, LABEL_LIMIT)), percent(share)]
            for at, (piece, share) in enumerate(
                zip(self.continuation, self.probabilities, strict=True), len(self.prompt)
            )
        ]
        names = ["position", "token added", "probability"]
        if any(self.alternatives):
            names.append("likeliest there")
            for row, entries in zip(rows, self.alternatives, strict=True):
                best = entries[:CANDIDATES]
                row.append(
                    "; ".join(f"{isolated(label(p, LABEL_LIMIT))} {percent(q)}" for p, q in best)
                )
        columns = list(zip(names, "rlrl", strict=False))
        return [Table("Continuation", columns, rows)] if rows else []

    def data(self) -> dict[str, Any]:
        """The tokens with their probabilities and alternatives; the last of a very long text."""
        first = max(0, len(self.prompt) + len(self.continuation) - LIVE)
        shown = told([*self.prompt, *self.continuation])
        pieces: list[dict[str, Any]] = [
            {"text": label(piece, TOKEN_LIMIT), "given": True, "share": None, "alternatives": []}
            for piece in shown[: len(self.prompt)]
        ]
        for piece, text, share, others in zip(
            self.continuation,
            shown[len(self.prompt) :],
            self.probabilities,
            self.alternatives,
            strict=True,
        ):
            rows = candidate_rows(others, piece)
            made = {"text": label(text, TOKEN_LIMIT), "given": False, "note": percent(share)}
            pieces.append({**made, "share": round(share, 4), "alternatives": rows})
        notes = ["Dotted: the prompt. Below each token added its probability."]
        if first:
            notes.append(f"To stay small this shows only the last {LIVE} of {len(pieces)} tokens.")
        last = len(pieces) - 1 - first if self.continuation else None
        return {
            "title": self.title,
            "notes": notes,
            "position": last,
            "first": first,
            "prompt": len(self.prompt),
            "next": False,
            "pieces": pieces[first:],
        }

    def _running_text(self) -> str:
        """The text as text: the continuation bold, underlined, tinted by probability."""
        pieces = len(self.prompt) + len(self.continuation)
        first = max(0, pieces - LIVE)  # of a very long text the last tokens
        cut = f"<small>… the last {LIVE} of {pieces} tokens:</small> " if first else ""
        given = cut + "".join(html_text(readable(piece)) for piece in self.prompt[first:])
        later = max(0, first - len(self.prompt))
        added = "".join(
            f'<span title="{percent(share)}" style="background-color:{_tint(share)};'
            f'color:#1a1a1a">{html_text(readable(piece))}</span>'
            for piece, share in zip(
                self.continuation[later:], self.probabilities[later:], strict=True
            )
        )
        text = (given + f"<strong><u>{added}</u></strong>").replace("⏎", "⏎<br>")
        return f"<p>{text}</p>\n<p><small>{LEGEND}</small></p>\n"

    def _draw(self) -> Sheet:
        pieces = self.prompt + self.continuation
        first = max(0, len(pieces) - DRAWN)
        spots = _flow(pieces[first:], first, self.probabilities, len(self.prompt))
        legend = "Plain: the prompt. Boxed, with its probability below: the continuation."
        cut = f" The last {DRAWN} of {len(pieces)} tokens." if first else ""
        sheet = Sheet(WIDTH, HEADING + spots[-1].y + LINE)
        sheet.heading(0, figure_text(self.title), legend + cut)
        for spot in spots:
            x, y = spot.x, HEADING + spot.y
            middle = {"ha": "center", "va": "center_baseline"}
            if spot.share is None:
                sheet.text(x + spot.width / 2, y + 0.12, spot.text, SIZE, color=SOFT, **middle)
                continue
            fill = _tint(spot.share)
            edge = {"facecolor": fill, "edgecolor": AMOUNT, "linewidth": 0.7}
            sheet.rectangle(x + 0.02, y, spot.width - 0.04, 0.24, **edge)
            sheet.text(x + spot.width / 2, y + 0.12, spot.text, SIZE, **middle)
            below = percent(spot.share)
            sheet.text(x + spot.width / 2, y + 0.33, below, SMALL, color=SOFT, **middle)
        return sheet


class Spot(NamedTuple):
    """Where one token is drawn: left edge, top and width in inches; no share in the prompt."""

    x: float
    y: float
    width: float
    text: str
    share: float | None


def _flow(pieces: list[str], first: int, shares: list[float], given: int) -> list[Spot]:
    """Tokens set in lines, a new one where the page ends and after each newline.

    ``first`` is the position of ``pieces[0]``; from position ``given`` on, tokens have ``shares``.
    """
    spots: list[Spot] = []
    x = y = 0.0
    for at, piece in enumerate(pieces, first):
        share = shares[at - given] if at >= given else None
        text = figure_text(label(piece), LABEL_LIMIT)
        width = text_width(text, SIZE) + 0.04
        if share is not None:
            width = max(width + 0.1, text_width(percent(share), SMALL) + 0.08)
        if x + width > WIDTH and x > 0:
            x, y = 0.0, y + LINE
        spots.append(Spot(x, y, width, text, share))
        x += width
        if piece.endswith("\n"):
            x, y = 0.0, y + LINE
    return spots


def _tint(share: float) -> str:
    """A tint for a probability, deeper for a larger one; black text reads on all of them."""
    red, green, blue, _ = amounts()(DEEPEST * min(share, 1.0), bytes=True)
    return f"#{red:02x}{green:02x}{blue:02x}"
