"""Many linked views of one run: what the explorer shows, as one picture that needs no kernel.

The parts are plain data: a *reading* (tokens, attention, lens, shares of the logit) and answers to
questions that were asked of it. What is selected, the *state*, is a small dictionary; a page of its
own keeps it in the fragment of its address, so that a link leads to what somebody saw.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.errors import InputError
from neox_lab.views.attention_data import WEIGHTS, attention_data
from neox_lab.views.attention_view import AttentionView
from neox_lab.views.base import View
from neox_lab.views.drawing import Sheet
from neox_lab.views.lens import LensView
from neox_lab.views.live import LIMIT, json_text, rounded
from neox_lab.views.markup import Table
from neox_lab.views.tokens import label

if TYPE_CHECKING:
    import pandas as pd

LABEL_LIMIT = 24
OPENED = ("features", "tuned", "steering", "circuit", "training")
"""Panels that are computed when they are opened, as in ``assets/explorer_opened.js``."""
ANSWERS = ("attribution", "patching", "switched", "writing", *OPENED)
"""Answers that bring the calls that made them, as in ``assets/explorer.js``; effects do, too."""
GIVEN_UP = ("writing", "attribution", "effects", "patching", "switched", *OPENED, "compared")
"""Answers in the order in which they stay out of a page that would be too large, the last first."""


@dataclass(frozen=True)
class Shares:
    """What each part of a model writes into one logit at each position.

    Attributes:
        names: of the parts.
        where: layer and head of each part; no head for an MLP, None for embedding and biases.
        values: in logits, ``[pos, part]``.
    """

    names: list[str]
    where: list[tuple[int, int | None] | None]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class ReadingView:
    """One run on one prompt, as views.

    Attributes:
        prompt: the text.
        attention: of every head.
        lens: the logit lens on the residual stream, the model's own prediction last.
        about: the token whose logit is split at each position: the likeliest next one.
        shares: how it is split; None where the model has no such sum.
    """

    prompt: str
    attention: AttentionView
    lens: LensView
    about: list[str]
    shares: Shares | None

    def data(self, room: int = WEIGHTS) -> dict[str, Any]:
        """For the script, attention weights in ``room`` characters."""
        attention = attention_data(self.attention, room)
        kept = ("layers", "heads", "causal", "top", "measures", "weights", "first")
        return {
            "prompt": self.prompt,
            "pieces": [label(piece, LABEL_LIMIT) for piece in self.attention.pieces],
            "attention": {name: attention[name] for name in kept},
            "about": [label(piece, LABEL_LIMIT) for piece in self.about],
            "lens": lens_data(self.lens),
            "shares": self.shares
            and {
                "names": self.shares.names,
                "where": self.shares.where,
                "values": rounded(self.shares.values, 3),
            },
        }


def lens_data(lens: LensView) -> dict[str, Any]:
    """A lens for the script: its rows, and the candidates of each row and position."""
    cells = [
        [
            [
                [label(piece, LABEL_LIMIT), round(float(share), 4)]
                for piece, share in zip(cell, shares, strict=True)
            ]
            for cell, shares in zip(row, lens.probabilities[at], strict=True)
        ]
        for at, row in enumerate(lens.candidates)
    ]
    return {"rows": lens.row_labels, "candidates": cells}


def chosen(state: Mapping[str, object], name: str, count: int, otherwise: int = -1) -> int:
    """A number that a browser said, below ``count``; what cannot be is ``otherwise``.

    As ``within`` of ``assets/explorer.js``.
    """
    value = state.get(name)
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
    return value if fits and isinstance(value, int) else otherwise % count


class ExplorerView(View):
    """One run of a model in linked panels.

    Args:
        reading: the run.
        state: what is selected, see ``assets/explorer.js``; what is missing is chosen.
        parts: answers by name, as the script takes them.
        model: the model in words.
        code: Python that makes the same, with ``{position}``, ``{layer}``, ``{head}`` and
            ``{revision}`` in it, where these go; answers bring their own.
        revision: which checkpoint of a training this is; empty if there is only one.
        others: readings of the same prompt by other checkpoints, None for those not run, all in
            the order of training, this one among them.
        title: the headline.

    Raises:
        InputError: attention over some of the tokens only.
    """

    asset = "explorer"

    def __init__(
        self,
        reading: ReadingView,
        state: Mapping[str, object] | None = None,
        parts: Mapping[str, Any] | None = None,
        model: str = "",
        code: str = "",
        revision: str = "",
        others: Mapping[str, ReadingView | None] | None = None,
        title: str | None = None,
    ) -> None:
        if reading.attention.pieces != reading.lens.pieces:
            raise InputError("attention and lens must be of the same tokens")
        self.reading, self.state, self.parts = reading, dict(state or {}), dict(parts or {})
        self.model, self.code = model, code
        self.revision, self.others = revision, dict(others or {})
        super().__init__(title or "Explorer")

    @property
    def frame(self) -> pd.DataFrame:
        """The lens, one row for each candidate; ``reading.attention.frame`` has the patterns."""
        return self.reading.lens.frame

    @property
    def python(self) -> str:
        """The calls that make what is shown, with what is selected in them."""
        view = self.reading
        counts = {
            "position": (len(view.lens.pieces), -1),
            "layer": (len(view.attention.layers), -1),
            "head": (len(view.attention.heads), 0),
        }
        code = self.code.replace("{revision}", json.dumps(self.revision))
        for name, (count, otherwise) in counts.items():
            code = code.replace(f"{{{name}}}", str(chosen(self.state, name, count, otherwise)))
        answers = [*self.parts.get("effects", {}).values()]
        answers += [self.parts.get(name, {}) for name in ANSWERS]
        return "\n\n".join([code, *(found["code"] for found in answers if "code" in found)])

    def selecting(self, state: Mapping[str, object]) -> ExplorerView:
        """The same with something else selected."""
        other = copy.copy(self)
        other.state = dict(state)
        return other

    @property
    def alt_text(self) -> str:
        """The lens in words."""
        return self.reading.lens.alt_text

    def tables(self) -> list[Table]:
        """How the last prediction takes shape, and where each head looks; to be opened."""
        folded = []
        for table in (*self.reading.lens.tables(), *self.reading.attention.tables()):
            folded.append(Table(table.caption, table.columns, table.rows, table.note, folded=True))
        return folded

    def data(self) -> dict[str, Any]:
        """Everything, as much of it as fits into a file of a notebook's size."""
        room, parts = WEIGHTS, dict(self.parts)
        while True:
            data = self._data(room, parts)
            excess = len(json_text(data)) / (0.9 * LIMIT)
            if excess <= 1:
                return data
            left = [name for name in GIVEN_UP if name in parts]
            if left:
                parts.pop(left[-1])
            else:
                room = int(room / excess * 0.9)

    def _data(self, room: int, parts: Mapping[str, Any]) -> dict[str, Any]:
        reading = self.reading.data(room)
        notes = []
        count = len(self.reading.attention.layers) * len(self.reading.attention.heads)
        kept = len(reading["attention"]["layers"]) * len(reading["attention"]["heads"])
        if kept < count:
            notes.append(f"To stay small this has the patterns of {kept} of {count} heads.")
        gone = [name for name in self.parts if name not in parts]
        if gone:
            notes.append(f"To stay small this page leaves out: {', '.join(gone)}.")
        return {
            "title": self.title,
            "notes": notes,
            "model": self.model,
            "layers": 1 + max(self.reading.attention.layers),
            "state": self.state,
            "reading": reading,
            "parts": dict(parts),
            "code": self.code,
            **self._revisions(room),
        }

    def _revisions(self, room: int) -> dict[str, Any]:
        """The other checkpoints; they share what one reading takes for its weights."""
        if not self.others:
            return {}
        there = {name: reading for name, reading in self.others.items() if reading is not None}
        each = room // max(1, len(there))
        readings = {name: reading.data(each) for name, reading in there.items()}
        names = list(self.others)
        return {"revisions": {"names": names, "chosen": self.revision, "readings": readings}}

    def _draw(self) -> Sheet:
        return self.reading.lens._draw()
