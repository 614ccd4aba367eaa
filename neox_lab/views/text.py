"""Generated text, token by token, with how sure the model was of each.

What was given and what was added differ in more than colour: the continuation is boxed and carries
its probability below each token; in running text it is bold and underlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from neox_lab.errors import InputError
from neox_lab.views.base import View, texts
from neox_lab.views.drawing import BLUE, HEADING, SOFT, Sheet, text_width
from neox_lab.views.markup import Table
from neox_lab.views.predictions import percent
from neox_lab.views.tokens import figure_text, html_text, isolated, label, shorten

if TYPE_CHECKING:
    import pandas as pd

WIDTH, LINE = 9.0, 0.5  # inches
SIZE, SMALL = 10.0, 6.5  # points, of tokens and of their probabilities
DRAWN = 300  # tokens in one picture
LABEL_LIMIT, ALT_LIMIT = 24, 300  # characters of a token, and of a part in the alternative text
LEGEND = (
    "Plain: the prompt. Bold and underlined: the continuation, deeper blue for a more likely token."
)


class TextView(View):
    """A prompt and its continuation, with the probability of each token added.

    Args:
        prompt: the tokens given.
        continuation: the tokens added.
        probabilities: of each token added, from 0 to 1, when it was chosen.
        title: the headline.

    Raises InputError if these do not fit together.
    """

    def __init__(
        self,
        prompt: Sequence[str],
        continuation: Sequence[str],
        probabilities: Sequence[float],
        title: str | None = None,
    ) -> None:
        self.prompt = texts(prompt, len(prompt), "prompt", "token")
        self.continuation = texts(
            continuation, len(probabilities), "continuation", "entry of probabilities"
        )
        self.probabilities = [float(share) for share in probabilities]
        if not self.prompt + self.continuation:
            raise InputError("there is no text: prompt and continuation are both empty")
        if not all(0 <= share <= 1.001 for share in self.probabilities):
            raise InputError("probabilities lie between 0 and 1; these are not (logits, perhaps?)")
        super().__init__(title or "Generated text")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each token: position, part (prompt or continuation), piece, probability.

        The prompt's tokens were given, not chosen: their probability is NaN.
        """
        import pandas as pd

        pieces = self.prompt + self.continuation
        given = len(self.prompt)
        return pd.DataFrame(
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
            f"{name}: {shorten(''.join(map(_readable, pieces)), ALT_LIMIT)}"
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
        return [Table("Continuation", list(zip(names, "rlr", strict=True)), rows)] if rows else []

    def _running_text(self) -> str:
        """The text as text: the continuation bold, underlined, tinted by probability."""
        given = "".join(html_text(_readable(piece)) for piece in self.prompt)
        added = "".join(
            f'<span title="{percent(share)}" style="background-color:{_tint(share)};'
            f'color:#1a1a1a">{html_text(_readable(piece))}</span>'
            for piece, share in zip(self.continuation, self.probabilities, strict=True)
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
            edge = {"facecolor": fill, "edgecolor": BLUE, "linewidth": 0.7}
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


def _readable(piece: str) -> str:
    """A piece inside running text: its own spaces, everything invisible visible."""
    core = piece.strip(" ")
    if not core:
        return piece
    start, end = piece.split(core, 1)
    return f"{start}{label(core)}{end}"


def _tint(share: float) -> str:
    """A light blue for a probability, deeper for a larger one; black text reads on all of them."""
    pale, deep = (0xF2, 0xF7, 0xFC), (0x7F, 0xB8, 0xDE)
    mixed = (round(a + (b - a) * min(share, 1.0)) for a, b in zip(pale, deep, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
