"""A network in rows, from where it reads to where it answers: parts as boxes, edges between them.

The first row is on top. An edge is as wide as its number is large, blue where that is below zero
and orange where it is above; of both kinds the one that counts less in all is dashed. One whose
note is q, k or v ends at that letter of its reader. In a browser, a head that is pointed at or
clicked shows where it looks, and a feature links to its page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neox_lab.checks import FINITE, TEXT, check, several, shown, whole
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.progress import counted
from neox_lab.views.attention_data import attention_data
from neox_lab.views.attention_patterns import AttentionPatterns
from neox_lab.views.base import View, array, texts
from neox_lab.views.drawing import (
    DASHES,
    HEADING,
    INK,
    LESS,
    MORE,
    SOFT,
    Sheet,
    dashed,
    decimals,
    number,
    text_width,
)
from neox_lab.views.live import rounded
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.path import Path

EDGES = 1_000  # of a live view
DRAWN = 300  # of a picture
NAME_LIMIT, ROW_LIMIT = 24, 20
BOX, GAP, ROW = 0.5, 0.12, 0.75  # inches: a box, from box to box, from row to row
HIGH, HIGH_WITH_PORTS = 0.2, 0.28
PORTS = {"q": -0.15, "k": 0.0, "v": 0.15}  # where an edge to one of a head's inputs ends
LEFT, LEAST = 0.75, 5.5
LISTED = 20  # edges of the table
WEIGHTS = 300_000  # characters for the attention of all heads


class Link(NamedTuple):
    """One edge.

    Attributes:
        begin: number of the part that writes.
        end: number of the part that reads.
        value: how much it counts.
        note: what of the part reads it, such as ``"q"``; "" for all of it.
    """

    begin: int
    end: int
    value: float
    note: str = ""


class HeadPatterns(NamedTuple):
    """Where some of the parts look, which are heads.

    Attributes:
        parts: their numbers.
        patterns: weights of each ``[part, query, key]``, finite and not negative.
        pieces: the tokens, one string for each position.
        said: on what text, such as ``"the first prompt"``.
    """

    parts: Sequence[int]
    patterns: object
    pieces: Sequence[str]
    said: str = "one prompt"


class NetworkView(View):
    """Parts in rows, and edges that go down from one to another.

    Args:
        names: of the parts.
        rows: in which row each stands ``[part]``, from 0.
        columns: in which column ``[part]``; columns that no part stands in take no room. A part in
            column -1 stands in the middle of its row.
        row_labels: a name for each row.
        links: the edges; each goes down.
        value_name: what their numbers are.
        title: the headline.
        note: a line below it.
        boxes: what stands in the box of each part; None for its name.
        signs: what a number below 0 and one above 0 means.
        attention: where heads among the parts look, to be seen in a browser; None for nothing.
        pages: where each part has a page of its own, "" where it has none; None for none at all.

    Raises:
        InputError: there is no edge, or parts, rows, edges, patterns and pages do not fit together.
    """

    asset = "network"

    def __init__(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        columns: Sequence[int],
        row_labels: Sequence[str],
        links: Sequence[Link],
        value_name: str,
        title: str | None = None,
        note: str = "",
        boxes: Sequence[str] | None = None,
        signs: Sequence[str] = ("below 0", "above 0"),
        attention: HeadPatterns | None = None,
        pages: Sequence[str] | None = None,
    ) -> None:
        listed = several("names", names, "a list of strings, one for each part", InputError)
        self.names = texts(listed, len(listed), "names", "part")
        self.boxes = self.names
        if boxes is not None:
            listed = several("boxes", boxes, "a list of strings, one for each part", InputError)
            self.boxes = texts(listed, len(self.names), "boxes", "part")
        count, column = len(self.names), "a list of whole numbers, one for each part"
        self.rows = _numbers("rows", several("rows", rows, column, InputError), 0, count)
        self.columns = _numbers(
            "columns", several("columns", columns, column, InputError), -1, count
        )
        listed = several(
            "row_labels", row_labels, "a list of strings, one for each row", InputError
        )
        self.row_labels = texts(listed, len(listed), "row_labels", "row")
        found = [_link(link) for link in several("links", links, "a list of edges", InputError)]
        self.links = sorted(found, key=lambda link: -abs(link.value))
        self.value_name = check("value_name", value_name, TEXT, InputError)
        self.signs = texts(signs, 2, "signs", "side of 0")
        self.note = check("note", note, TEXT, InputError)
        if not self.links or max(self.rows) >= len(self.row_labels):
            raise InputError("a network needs at least one edge, and a label for each row")
        for link in self.links:
            if max(link.begin, link.end) >= len(self.rows):
                raise InputError(f"{link} joins parts that are not there; there are {count}")
        self.attention = None if attention is None else _attention(attention, count)
        self.pages = [""] * count if pages is None else texts(pages, count, "pages", "part")
        super().__init__(title, "Network")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each edge: writer, reader, note, value; the largest first."""
        rows = [(self.names[a], self.names[b], note, value) for a, b, value, note in self.links]
        return make_frame(rows, columns=["writer", "reader", "note", "value"])

    @property
    def alt_text(self) -> str:
        """How large it is, and its largest edge."""
        largest = self.links[0]
        return (
            f"A network of {len(self.names)} parts in {len(self.row_labels)} rows with "
            f"{counted(len(self.links), 'edge')}; {self.value_name}. "
            f"The largest is {self._spoken(largest)} "
            f"with {number(largest.value, self._decimals())}."
        )

    def tables(self) -> list[Table]:
        """The largest edges."""
        rows = [
            [
                isolated(label(self.names[link.begin], NAME_LIMIT)),
                isolated(self._reader(link)),
                number(link.value, self._decimals()),
            ]
            for link in self.links[:LISTED]
        ]
        columns = [("writer", "l"), ("reader", "l"), (self.value_name, "r")]
        return [Table(f"Largest of {counted(len(self.links), 'edge')}", columns, rows)]

    def data(self) -> dict[str, Any]:
        """Parts and edges, the largest edges first."""
        shown = self.links[:EDGES]
        notes = [self.note] if self.note else []
        looks = self._looks()
        notes += [] if looks is None else looks["notes"]
        if len(shown) < len(self.links):
            notes.append(
                f"To stay small this shows only the first {len(shown):,} of {len(self.links):,} "
                "edges, the largest."
            )
        return {
            "title": self.title,
            "notes": notes,
            "names": [label(name, NAME_LIMIT) for name in self.names],
            "boxes": [label(name, NAME_LIMIT) for name in self.boxes],
            "rows": self.rows,
            "columns": self._ranks(),
            "row_labels": [label(name, ROW_LIMIT) for name in self.row_labels],
            "begin": [link.begin for link in shown],
            "end": [link.end for link in shown],
            "value": rounded(np.array([link.value for link in shown]), 5),
            "note": [label(link.note, NAME_LIMIT) if link.note else "" for link in shown],
            "value_name": self.value_name,
            "signs": self.signs,
            "dashed": dashed([link.value for link in self.links]),
            "pages": self.pages,
            "attention": looks,
        }

    def _looks(self) -> dict[str, Any] | None:
        """The attention of heads as ``assets/maps.js`` reads it, of as many as fit."""
        if self.attention is None:
            return None
        parts, patterns = self.attention
        found = attention_data(patterns, WEIGHTS)
        note = (
            f"Attention is that on {patterns.title}, rounded to ±{patterns.top / 510:.1g}; click a "
            "head to hold its map."
        )
        shown, count = len(found["heads"]), len(found["pieces"])
        if shown < len(parts):
            note += f" To stay small, {shown} of {len(parts)} heads have one."
        if found["first"]:
            note += (
                f" To stay small, maps are of the last {count} of {len(patterns.pieces)} tokens."
            )
        return found | {
            "parts": [parts[at] for at in found["heads"]],
            "title": label(patterns.title, 2 * NAME_LIMIT),
            "notes": [note],
        }

    def _reader(self, link: Link) -> str:
        name = label(self.names[link.end], NAME_LIMIT)
        return f"{name} {label(link.note, NAME_LIMIT)}" if link.note else name

    def _spoken(self, link: Link) -> str:
        writer = isolated(label(self.names[link.begin], NAME_LIMIT))
        return f"{writer} to {isolated(self._reader(link))}"

    def _decimals(self) -> int:
        return decimals(abs(self.links[0].value))

    def _ranks(self) -> list[int]:
        """The column of each part, counted without those that are empty; -1 for the middle."""
        used = sorted({column for column in self.columns if column >= 0})
        return [used.index(column) if column >= 0 else -1 for column in self.columns]

    def _places(self) -> list[tuple[float, float]]:
        """The middle of each box."""
        ranks = self._ranks()
        count = max(1, max(ranks) + 1)
        wide = max(LEAST, count * (BOX + GAP))
        return [
            (LEFT + wide * (0.5 if rank < 0 else (rank + 0.5) / count), HEADING + 0.15 + row * ROW)
            for rank, row in zip(ranks, self.rows, strict=True)
        ]

    def _draw(self) -> Sheet:
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import PathPatch

        places = self._places()
        wide = max(max(x for x, _ in places) + BOX, LEAST + LEFT)
        sheet = Sheet(wide, HEADING + 0.1 + len(self.row_labels) * ROW)
        note = f"{self.note} " if self.note else ""
        drawn = self.links[:DRAWN]
        if len(drawn) < len(self.links):
            note += f"The {len(drawn)} largest of {len(self.links):,}."
        sheet.heading(0, figure_text(self.title), figure_text(note.strip()))
        most = abs(self.links[0].value) or 1.0
        ports = {(link.end, link.note) for link in drawn if link.note in PORTS}
        high = HIGH_WITH_PORTS if ports else HIGH
        broken = dashed([link.value for link in self.links])
        for sign, colour in ((-1, LESS), (1, MORE)):
            links = [link for link in reversed(drawn) if (link.value >= 0) == (sign > 0)]
            if not links:
                continue
            shares = [abs(link.value) / most for link in links]
            paths = [PathPatch(_curve(places, link, high)) for link in links]
            collection = PatchCollection(
                paths,
                facecolors="none",
                edgecolors=colour,
                linestyles=DASHES if broken == ("more" if sign > 0 else "less") else "solid",
                linewidths=[0.3 + 3.2 * share for share in shares],
                alpha=[0.25 + 0.6 * share**0.5 for share in shares],
            )
            sheet.axes.add_collection(collection)
        style = {"ha": "center", "va": "center_baseline", "zorder": 4}
        for part, (name, (x, y)) in enumerate(zip(self.boxes, places, strict=True)):
            frame = {"facecolor": "white", "edgecolor": INK, "linewidth": 0.7, "zorder": 3}
            sheet.rectangle(x - BOX / 2, y - high / 2, BOX, high, **frame)
            read = [letter for letter in PORTS if (part, letter) in ports]
            for letter in read:
                sheet.text(x + PORTS[letter], y - 0.08, letter, 5.5, color=SOFT, **style)
            shown = figure_text(label(name, NAME_LIMIT), 9)
            sheet.text(x, y + (0.05 if read else 0), shown, 6.5, **style)
        for row, name in enumerate(self.row_labels):
            y = HEADING + 0.15 + row * ROW
            sheet.text(0, y, figure_text(label(name, ROW_LIMIT)), 7.5, color=SOFT, va="center")
        bottom = HEADING + len(self.row_labels) * ROW - 0.1
        sheet.text(LEFT, bottom, figure_text(self.value_name), 7.5, color=SOFT)
        x = LEFT
        kinds = {"less" if link.value < 0 else "more" for link in self.links}
        for kind, words, colour in zip(("less", "more"), self.signs, (LESS, MORE), strict=True):
            if kind not in kinds:
                continue
            shown = figure_text(words) + (" (dashed)" if kind == broken else "")
            sheet.text(x, bottom + 0.16, shown, 7.5, color=colour, weight="bold")
            x += 1.15 * text_width(shown, 7.5) + 0.2
        sheet.size = max(sheet.size[0], x), sheet.size[1] + 0.16
        sheet._measure()
        return sheet


def _numbers(name: str, given: list[Any], least: int, count: int) -> list[int]:
    """Whole numbers, one for each part.

    Raises:
        InputError: they are not.
    """
    if len(given) != count:
        raise InputError(f"{name} has {len(given)} entries; needed: {count}, one for each part")
    return [check(name, each, whole(least=least, most=10**6), InputError) for each in given]


def _attention(given: object, count: int) -> tuple[list[int], AttentionPatterns]:
    """The parts that are heads, and their patterns as of one layer; the title says on what text.

    Args:
        given: what somebody gave.
        count: of the parts.

    Raises:
        InputError: it is none, or of parts that are not there.
    """
    if not isinstance(given, HeadPatterns):
        raise InputError(f"attention={shown(given)}; expected a HeadPatterns.")
    kind = whole(least=0, most=count - 1)
    listed = several("parts", given.parts, "numbers of parts", InputError)
    parts = [check("parts", part, kind, InputError) for part in listed]
    found = array(given.patterns, "part query key", "patterns")
    if len(found) != len(parts):
        raise InputError(f"patterns are of {len(found)} parts; parts has {len(parts)}")
    made = AttentionPatterns(found[None], given.pieces)
    made.title = check("said", given.said, TEXT, InputError)
    return parts, made


def _link(given: object) -> Link:
    """An edge that somebody gave.

    Raises:
        InputError: it is none.
    """
    listed = several("an edge", given, "a Link", InputError)
    if not 3 <= len(listed) <= 4:
        raise InputError(f"An edge is {shown(given)}; expected Link(begin, end, value, note).")
    begin, end = (check("an edge's part", part, whole(least=0), InputError) for part in listed[:2])
    value = check("an edge's value", listed[2], FINITE, InputError)
    note = check("an edge's note", listed[3] if len(listed) == 4 else "", TEXT, InputError)
    return Link(begin, end, value, note)


def _curve(places: list[tuple[float, float]], link: Link, high: float) -> Path:
    """A line from below one box to above another, upright at both ends."""
    from matplotlib.path import Path

    (x1, y1), (x2, y2) = places[link.begin], places[link.end]
    x2 += PORTS.get(link.note, 0.0)
    y1, y2 = y1 + high / 2, y2 - high / 2
    bend = 0.5 * (y2 - y1)
    corners = [(x1, y1), (x1, y1 + bend), (x2, y2 - bend), (x2, y2)]
    return Path(corners, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
