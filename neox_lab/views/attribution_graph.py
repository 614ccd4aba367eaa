"""An attribution graph: tokens from left to right, layers from below, and who adds to whom.

A feature is a dot, what features miss a square, both in the column of their position and the row of
their layer; tokens stand below, the explained logits above. An edge is as strong as its share of
what its target gets, times how much of the logits goes back to that target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neox_lab.checks import TEXT, check, several, shown
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.progress import counted
from neox_lab.views.base import View, texts
from neox_lab.views.drawing import (
    DASHES,
    HEADING,
    INK,
    LESS,
    MORE,
    SOFT,
    Sheet,
    dashed,
    number,
    text_width,
)
from neox_lab.views.live import rounded
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label

if TYPE_CHECKING:
    import pandas as pd

MARKS, EDGES = 1_200, 5_000  # of a live view
DRAWN = 200  # edges of a picture
NAME_LIMIT, TOKEN_LIMIT = 30, 12
STEP, LEAST, ROW, LINE, PER_LINE = 0.125, 0.36, 0.34, 0.125, 6  # inches, and marks of a line
LEFT = 0.62
LISTED = 20
KINDS = ("feature", "error", "token", "logit")
GROUPS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442")


class Mark(NamedTuple):
    """A node.

    Attributes:
        name: what it is called; no two alike.
        kind: ``"feature"``, ``"error"``, ``"token"`` or ``"logit"``.
        layer: its layer; -1 for tokens, the number of layers for logits.
        pos: its position.
        influence: how much of the logits goes back to it.
        said: more about it, a line.
        page: where its page is, or "".
    """

    name: str
    kind: str
    layer: int
    pos: int
    influence: float
    said: str = ""
    page: str = ""


class Flow(NamedTuple):
    """An edge.

    Attributes:
        begin: number of the node that writes.
        end: number of the node that reads.
        weight: what it adds.
        share: its part of all that goes into the reader, each taken absolute.
    """

    begin: int
    end: int
    weight: float
    share: float


class AttributionGraphView(View):
    """Nodes at their layer and position, and edges up to the logits.

    Args:
        tokens: of the prompt.
        layers: how many layers there are.
        marks: the nodes.
        flows: the edges.
        groups: names of supernodes, and the names of their nodes; a node is in one at most.
        pinned: names of nodes whose edges to each other always stay in sight.
        title: the headline.
        note: a line below it.
        details: more that a reader should know, where there is room.

    Raises:
        InputError: nodes and edges do not fit together.
    """

    asset = "attribution_graph"

    def __init__(
        self,
        tokens: Sequence[str],
        layers: int,
        marks: Sequence[Mark],
        flows: Sequence[Flow],
        groups: Mapping[str, Sequence[str]] | None = None,
        pinned: Sequence[str] = (),
        title: str | None = None,
        note: str = "",
        details: str = "",
    ) -> None:
        listed = several("tokens", tokens, "a list of strings", InputError)
        self.tokens = texts(listed, len(listed), "tokens", "position")
        self.layers, self.marks = layers, list(marks)
        self.note = check("note", note, TEXT, InputError)
        self.details = check("details", details, TEXT, InputError)
        for mark in self.marks:
            if mark.kind not in KINDS or not -1 <= mark.layer <= layers:
                raise InputError(f"{mark} is no node of {layers} layers; kinds are {KINDS}.")
            if not 0 <= mark.pos < len(self.tokens):
                raise InputError(f"{mark} stands at no position of {len(self.tokens)} tokens.")
        self.place = {mark.name: at for at, mark in enumerate(self.marks)}
        if len(self.place) < len(self.marks) or not self.marks:
            raise InputError("A graph needs nodes, and no two of one name.")
        for flow in flows:
            if not (0 <= flow.begin < len(self.marks) and 0 <= flow.end < len(self.marks)):
                raise InputError(f"{flow} joins nodes that are not there.")
        self.flows = sorted(flows, key=lambda flow: -self._carried(flow))
        self.groups = self._grouped({} if groups is None else groups)
        self.pinned = [self._number(name, "pinned") for name in several(
            "pinned", pinned, "a list of names of nodes", InputError
        )]  # fmt: skip
        super().__init__(title, "Attribution graph")

    def _number(self, name: object, what: str) -> int:
        if not isinstance(name, str) or name not in self.place:
            raise InputError(
                f"{what}: there is no node {shown(name)} in this graph; names are such as "
                f"{self.marks[0].name!r}. A pruned graph has fewer."
            )
        return self.place[name]

    def _grouped(self, groups: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
        """The numbers of each supernode's nodes.

        Raises:
            InputError: a node is not there, or in two.
        """
        found: dict[str, list[int]] = {}
        if not isinstance(groups, Mapping):
            raise InputError(
                f"groups={shown(groups)}; expected names of supernodes, each with the names of its "
                "nodes."
            )
        for name, members in groups.items():
            listed = several(f"group {name!r}", members, "a list of names of nodes", InputError)
            found[str(name)] = [self._number(member, f"group {name!r}") for member in listed]
        every = [member for members in found.values() for member in members]
        if len(set(every)) < len(every):
            twice = next(self.marks[one].name for one in every if every.count(one) > 1)
            raise InputError(f"{twice!r} is in two groups.")
        return found

    def _carried(self, flow: Flow) -> float:
        """How much of the logits goes back along an edge."""
        target = self.marks[flow.end]
        return abs(flow.share) * target.influence

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each edge: source, target, weight, share; what carries most first."""
        names = [mark.name for mark in self.marks]
        rows = [(names[a], names[b], weight, share) for a, b, weight, share in self.flows]
        return make_frame(rows, columns=["source", "target", "weight", "share"])

    @property
    def alt_text(self) -> str:
        """How large it is, and the nodes that matter most."""
        kinds = [mark.kind for mark in self.marks]
        counts = [counted(kinds.count(kind), kind) for kind in KINDS]
        best = sorted(
            (mark for mark in self.marks if mark.kind == "feature"), key=lambda m: -m.influence
        )[:3]
        named = ", ".join(isolated(label(mark.name, NAME_LIMIT)) for mark in best)
        return (
            f"An attribution graph of {', '.join(counts[:-1])} and {counts[-1]} with "
            f"{counted(len(self.flows), 'edge')}."
            + (f" Features of the largest influence: {named}." if named else "")
        )

    def tables(self) -> list[Table]:
        """Nodes of the largest influence, and edges that carry most."""
        best = sorted(self.marks, key=lambda mark: -mark.influence)[:LISTED]
        rows = [
            [
                isolated(label(m.name, NAME_LIMIT)),
                number(m.influence, 3),
                label(m.said, 60) if m.said else "",
            ]
            for m in best
        ]
        nodes = Table("Nodes", [("node", "l"), ("influence", "r"), ("", "l")], rows)
        names = [isolated(label(mark.name, NAME_LIMIT)) for mark in self.marks]
        edges = [
            [names[f.begin], names[f.end], number(f.weight, 3), f"{f.share:.1%}"]
            for f in self.flows[:LISTED]
        ]
        columns = [("from", "l"), ("to", "l"), ("adds", "r"), ("share", "r")]
        return [nodes, Table(f"Edges, of {len(self.flows):,}", columns, edges)]

    def data(self) -> dict[str, Any]:
        """Everything at its place, edges that carry most first."""
        shown_marks = sorted(
            range(len(self.marks)),
            key=lambda at: (self.marks[at].kind in ("feature", "error"), -self.marks[at].influence),
        )[:MARKS]
        number_of = {at: new for new, at in enumerate(shown_marks)}
        flows = [f for f in self.flows if f.begin in number_of and f.end in number_of]
        left, flows = len(self.flows), flows[:EDGES]
        notes = [text for text in (self.note, self.details) if text]
        if len(flows) < left or len(shown_marks) < len(self.marks):
            notes.append(
                f"To stay small this shows only the first {len(shown_marks):,} of "
                f"{len(self.marks):,} nodes and {len(flows):,} of {left:,} edges, those that "
                "carry most."
            )
        places, columns, rows, size = self._layout()
        marks = [self.marks[at] for at in shown_marks]
        group_of = {one: at for at, members in enumerate(self.groups.values()) for one in members}
        return {
            "title": self.title,
            "notes": notes,
            "tokens": [label(token, TOKEN_LIMIT) for token in self.tokens],
            "columns": rounded(np.array(columns), 3),
            "rows": rounded(np.array(rows), 3),
            "row_labels": self._row_labels(),
            "size": rounded(np.array(size), 3),
            "names": [label(mark.name, NAME_LIMIT) for mark in marks],
            "kinds": [KINDS.index(mark.kind) for mark in marks],
            "x": rounded(np.array([places[at][0] for at in shown_marks]), 3),
            "y": rounded(np.array([places[at][1] for at in shown_marks]), 3),
            "influence": rounded(np.array([mark.influence for mark in marks]), 4),
            "said": [label(mark.said, 120) if mark.said else "" for mark in marks],
            "page": [mark.page for mark in marks],
            "group": [group_of.get(at, -1) for at in shown_marks],
            "group_names": [label(name, NAME_LIMIT) for name in self.groups],
            "group_colours": [GROUPS[at % len(GROUPS)] for at in range(len(self.groups))],
            "pinned": [number_of[at] for at in self.pinned if at in number_of],
            "begin": [number_of[f.begin] for f in flows],
            "end": [number_of[f.end] for f in flows],
            "dashed": self._dashed(),
            "weight": rounded(np.array([f.weight for f in flows]), 4),
            "share": rounded(np.array([f.share for f in flows]), 3),
        }

    def _row_labels(self) -> list[str]:
        return ["logits", *(f"layer {at}" for at in reversed(range(self.layers))), "tokens"]

    def _layout(
        self,
    ) -> tuple[list[tuple[float, float]], list[float], list[float], tuple[float, float]]:
        """Where each mark, column and row stands, and the size of it all, in inches."""
        cells: dict[tuple[int, int], list[int]] = {}
        for at, mark in enumerate(self.marks):
            cells.setdefault((mark.layer, mark.pos), []).append(at)
        widths = [LEAST] * len(self.tokens)
        lines = dict.fromkeys(range(-1, self.layers + 1), 1)
        for (layer, pos), members in cells.items():
            in_line = min(self._per_line(layer), len(members))
            widths[pos] = max(widths[pos], (in_line + 1.2) * self._step(layer))
            lines[layer] = max(lines[layer], -(-len(members) // self._per_line(layer)))
        edges = np.concatenate([[LEFT], LEFT + np.cumsum(widths)])
        columns = ((edges[1:] + edges[:-1]) / 2).tolist()
        rows, y = [], HEADING + 0.05 + 0.055 * self._longest()
        for layer in reversed(range(-1, self.layers + 1)):
            high = ROW + (lines[layer] - 1) * LINE
            rows.append(y + high / 2)
            y += high
        places = [(0.0, 0.0)] * len(self.marks)
        for (layer, pos), members in cells.items():
            members.sort(key=lambda at: -self.marks[at].influence)
            most = self._per_line(layer)
            count = -(-len(members) // most)
            for rank, at in enumerate(members):
                line, slot = divmod(rank, most)
                in_line = min(most, len(members) - line * most)
                x = columns[pos] + (slot - (in_line - 1) / 2) * self._step(layer)
                places[at] = x, rows[self.layers - layer] + (line - (count - 1) / 2) * LINE
        return places, columns, rows, (float(edges[-1]), y + self._feet())

    def _step(self, layer: int) -> float:
        """From mark to mark; logits have their names above them."""
        return 2 * STEP if layer == self.layers else STEP

    def _per_line(self, layer: int) -> int:
        return len(self.marks) if layer == self.layers else PER_LINE

    def _longest(self) -> int:
        """Letters of the longest name of a logit, as it is drawn."""
        names = [mark.name.removeprefix("logit ") for mark in self.marks if mark.kind == "logit"]
        return max((len(label(name, TOKEN_LIMIT)) for name in names), default=0)

    def _feet(self) -> float:
        """Room for the tokens' names, which lean, and a line below them."""
        longest = max(len(label(token, TOKEN_LIMIT)) for token in self.tokens)
        return 0.25 + 0.065 * longest

    def _draw(self) -> Sheet:
        from matplotlib.collections import LineCollection

        places, columns, rows, (width, height) = self._layout()
        sheet = Sheet(max(width, 5.5), height)
        drawn = self.flows[:DRAWN]
        note = f"{self.note} " if self.note else ""
        if len(drawn) < len(self.flows):
            note += f"The {len(drawn)} edges that carry most, of {len(self.flows):,}."
        sheet.heading(0, figure_text(self.title), figure_text(note.strip()))
        most = max((self._carried(flow) for flow in drawn), default=1.0) or 1.0
        broken = self._dashed()
        for sign, colour in ((-1, LESS), (1, MORE)):
            own = [flow for flow in reversed(drawn) if (flow.weight >= 0) == (sign > 0)]
            if not own:
                continue
            shares = [self._carried(flow) / most for flow in own]
            sheet.axes.add_collection(
                LineCollection(
                    [(places[flow.begin], places[flow.end]) for flow in own],
                    colors=colour,
                    linestyles=DASHES if broken == ("more" if sign > 0 else "less") else "solid",
                    linewidths=[0.3 + 2.2 * share**0.5 for share in shares],
                    alpha=[0.2 + 0.6 * share**0.5 for share in shares],
                )
            )
        self._draw_marks(sheet, places)
        for name, y in zip(self._row_labels(), rows, strict=True):
            sheet.text(0, y, name, 7.5, color=SOFT, va="center")
        for token, x in zip(self.tokens, columns, strict=True):
            shown = figure_text(label(token, TOKEN_LIMIT))
            style = {"rotation": 55, "ha": "right", "va": "top", "rotation_mode": "anchor"}
            sheet.text(x + 0.05, rows[-1] + 0.13, shown, 7, **style)
        self._draw_legend(sheet, height)
        sheet._measure()
        return sheet

    def _dashed(self) -> str:
        """Which kind of edges is dashed; see ``dashed``."""
        return dashed([math.copysign(self._carried(flow), flow.weight) for flow in self.flows])

    def _draw_marks(self, sheet: Sheet, places: list[tuple[float, float]]) -> None:
        colours = ["white"] * len(self.marks)
        for at, members in enumerate(self.groups.values()):
            for member in members:
                colours[member] = GROUPS[at % len(GROUPS)]
        shapes = {"feature": "o", "error": "s", "token": "^", "logit": "D"}
        for kind, shape in shapes.items():
            own = [at for at, mark in enumerate(self.marks) if mark.kind == kind]
            if own:
                sheet.axes.scatter(
                    [places[at][0] for at in own],
                    [places[at][1] for at in own],
                    s=[12 + 60 * min(1.0, self.marks[at].influence) ** 0.5 for at in own],
                    marker=shape,
                    c=[colours[at] for at in own],
                    edgecolors=INK if kind != "error" else SOFT,
                    linewidths=0.7,
                    zorder=3,
                )
        for at, mark in enumerate(self.marks):
            if mark.kind == "logit":
                x, y = places[at]
                shown = figure_text(label(mark.name.removeprefix("logit "), TOKEN_LIMIT))
                style = {"rotation": 55, "va": "bottom", "rotation_mode": "anchor"}
                sheet.text(x - 0.02, y - 0.1, shown, 7, **style)

    def _draw_legend(self, sheet: Sheet, height: float) -> None:
        y = height - 0.05
        x, broken = 0.0, self._dashed()
        for kind, words, colour in (("more", "adds", MORE), ("less", "takes away", LESS)):
            words += " (dashed)" if kind == broken else ""
            sheet.text(x, y, words, 7.5, color=colour, weight="bold")
            x += 1.15 * text_width(words, 7.5) + 0.1
        said = "dots: features, squares: what they miss; the larger, the more influence"
        sheet.text(x, y, said, 7.5, color=SOFT)
        for at, name in enumerate(self.groups):
            left = x + text_width(said, 7.5) + 0.2 + 1.6 * at
            sheet.rectangle(left, y - 0.09, 0.1, 0.1, facecolor=GROUPS[at % len(GROUPS)])
            sheet.text(left + 0.15, y, figure_text(label(name, 18)), 7.5)
