"""Lines over one axis: how a loss falls, how a probe's accuracy rises with the layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import FINITE, TEXT, check, shown
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View, array
from neox_lab.views.drawing import (
    HEADING,
    SOFT,
    Sheet,
    fitted,
    name_ticks,
    number,
    room_for,
    text_width,
    tick_texts,
)
from neox_lab.views.live import rounded
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label, labels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Okabe and Ito's set, those that show well on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1a1a1a")
# The same, told apart on white and on black.
ON_BOTH = ("#2a8bc9", "#d9661f", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8a8f96")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 4")  # lengths drawn and left out
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FAINT = "#b9bdc2"
POINTS = 8_000  # points of a live view
NAME_LIMIT = 48
MARKED = 40  # lines of up to so many points get a mark at each
WIDE, HIGH = 5.2, 2.7  # inches of the plot
SMALL_HIGH = 1.7  # of one of several
END_LIMIT = 28
LEGEND = 0.24  # inches of a line of the legend


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        x: where, ``[point]``.
        y: how much, ``[point]``.
        low: lower end of an interval ``[point]``, or None.
        high: upper end.
        faint: drawn thin and grey, for what lies behind a smoothed line.
        y_label: what runs upwards, where that is not the plot's ``y_label``; such lines have a
            panel of their own, with its own scale, below the others.
        kind: what it is of; lines of one kind look alike in all panels. None for the only one.
    """

    x: Any
    y: Any
    low: Any = None
    high: Any = None
    faint: bool = False
    y_label: str | None = None
    kind: str | None = None


class CurvesView(View):
    """Lines with their names, intervals where there are some, and values at their ends.

    What is measured in different units stands in different panels, over one x axis.

    Args:
        title: the headline.
        lines: by name.
        x_label: what runs to the right.
        y_label: what runs upwards, for lines that say nothing else.
        x_names: names of the places 0, 1, … on the x axis, instead of numbers.
        levels: horizontal lines to compare with, by name, such as a baseline.

    Raises:
        InputError: there is no line or one whose x and y differ in length.
    """

    asset = "curves"

    def __init__(
        self,
        title: str,
        lines: Mapping[str, Line],
        x_label: str,
        y_label: str,
        x_names: list[str] | None = None,
        levels: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(title)
        if not isinstance(lines, Mapping) or not lines:
            raise InputError(f"no lines to draw in {shown(lines)}; expected Line by name")
        self.lines = {name: _checked(name, line) for name, line in lines.items()}
        self._short = labels(list(self.lines), NAME_LIMIT)
        kinds = [name if line.kind is None else line.kind for name, line in self.lines.items()]
        order = {kind: at for at, kind in enumerate(dict.fromkeys(kinds))}
        self._looks = [order[kind] for kind in kinds]  # which colour, dash and mark each has
        self.x_label = check("x_label", x_label, TEXT, InputError)
        self.y_label = check("y_label", y_label, TEXT, InputError)
        shown_up = (line.y_label or self.y_label for line in self.lines.values())
        self.panels = list(dict.fromkeys(shown_up))
        self.x_names = x_names
        if not isinstance(levels, Mapping | None):
            raise InputError(f"levels={shown(levels)}; expected numbers by name")
        self.levels = {n: check("levels", v, FINITE, InputError) for n, v in (levels or {}).items()}

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each point: line, x, y, low, high."""
        rows = [
            (name, x, y, low, high)
            for name, line in self.lines.items()
            for x, y, low, high in zip(line.x, line.y, line.low, line.high, strict=True)
        ]
        return make_frame(rows, columns=["line", self.x_label, self.y_label, "low", "high"])

    @property
    def alt_text(self) -> str:
        """Where each line begins and ends; lines that look alike, panel by panel."""
        parts: list[str] = []
        for panel, shown_up in enumerate(self.panels):
            of_kinds: list[str] = []
            alone: list[str] = []
            for name, line in self.lines.items():
                if self._panel(line) == panel and len(line.y) and not line.faint:
                    ends = f"from {number(float(line.y[0]), 3)} to {number(float(line.y[-1]), 3)}"
                    named = f"{_named(line.kind or name)} {ends}"
                    (alone if line.kind is None else of_kinds).append(named)
            if of_kinds:
                parts.append(f"{_named(shown_up)}: {', '.join(of_kinds)}")
            parts += alone
        levels = [f"{_named(name)} at {number(value, 3)}" for name, value in self.levels.items()]
        said = "; ".join([*parts, *levels])
        grouped = any(line.kind is not None for line in self.lines.values())
        return f"Over {_named(self.x_label)}, {said}." if grouped else f"{self._axes()}: {said}."

    def _panel(self, line: Line) -> int:
        """The number of the panel a line stands in, from the top."""
        return self.panels.index(line.y_label or self.y_label)

    def _range(self, panel: int) -> tuple[float, float]:
        """The ends of a panel's axis."""
        lines = [line for line in self.lines.values() if self._panel(line) == panel]
        levels = np.array(list(self.levels.values()) if panel == 0 else (), dtype=np.float64)
        return room_for(
            np.concatenate([levels, *(ys for one in lines for ys in (one.y, one.low, one.high))])
        )

    def _axes(self) -> str:
        return f"{', '.join(map(_named, self.panels))} over {_named(self.x_label)}"

    def tables(self) -> list[Table]:
        """First, lowest, highest and last value of each line."""
        rows = []
        for name, line in self.lines.items():
            finite = line.y[np.isfinite(line.y)]
            if len(finite) and not line.faint:
                found = (finite[0], finite.min(), finite.max(), finite[-1])
                rows.append([_named(name), *(number(float(value), 3) for value in found)])
        rows += [[_named(name), *([number(value, 3)] * 4)] for name, value in self.levels.items()]
        columns = [("line", "l"), *((name, "r") for name in ("first", "lowest", "highest", "last"))]
        return [Table("Values", columns, rows)]

    def data(self) -> dict[str, Any]:
        """The lines; of very long ones every so many points."""
        most = max(len(line.x) for line in self.lines.values())
        total = sum(len(line.x) for line in self.lines.values())
        every = max(1, math.ceil(total / POINTS))
        notes = []
        if every > 1:
            notes.append(f"To stay small this shows every {every}th of up to {most} points.")
        lines = []
        each = zip(self._looks, self._short, self.lines.values(), strict=True)
        for at, name, line in each:
            kept = np.unique(np.append(np.arange(0, len(line.x), every), max(0, len(line.x) - 1)))
            kept = kept[: len(line.x)]
            numbers = {
                axis: rounded(getattr(line, axis)[kept], 5) for axis in ("x", "y", "low", "high")
            }
            colour = FAINT if line.faint else ON_BOTH[at % len(ON_BOTH)]
            lines.append({"name": name, **numbers, "faint": line.faint})
            lines[-1] |= {"colour": colour, "dash": "" if line.faint else _dash(at)}
            lines[-1] |= {"panel": self._panel(line), "end": self._end_name(name, line)}
        return {
            "title": self.title,
            "notes": notes,
            "x_label": label(self.x_label, NAME_LIMIT),
            "y_label": label(self.y_label, NAME_LIMIT),
            "x_names": self.x_names and [label(name, NAME_LIMIT) for name in self.x_names],
            "panels": labels(self.panels, NAME_LIMIT),
            "ranges": [self._range(panel) for panel in range(len(self.panels))],
            "lines": lines,
            "levels": {label(name, NAME_LIMIT): value for name, value in self.levels.items()},
        }

    def _draw(self) -> Sheet:
        several = len(self.panels) > 1
        high, apart = (SMALL_HIGH, SMALL_HIGH + 0.35) if several else (HIGH, 0.0)
        below = HEADING + high + apart * (len(self.panels) - 1)  # where the lowest panel ends
        ends = map(self._end, self._short, self.lines.values())
        right = max(text_width(end, 8) for end in ends) + 0.5 if several else 0.0
        sheet = Sheet(WIDE + 0.6 + right, below + 0.5 + LEGEND * len(self._legend_names()))
        axes = f"{', '.join(self.panels)} over {self.x_label}."
        sheet.heading(0, figure_text(self.title), figure_text(label(axes), 2 * NAME_LIMIT))
        for panel, name in enumerate(self.panels):
            bottom = HEADING + high + apart * panel
            plot = sheet.plot(0.6, bottom - high, WIDE, high)
            self._plot(plot, panel, name, high)
            if several:
                self._name_ends(sheet, plot, panel, bottom, high)
        self._legend(sheet, below + 0.62)
        return sheet

    def _plot(self, plot: Axes, panel: int, name: str, high: float) -> None:
        """One panel, ``high`` inches: its lines, its scale, and the axis they share."""
        for at, line in zip(self._looks, self.lines.values(), strict=True):
            if self._panel(line) == panel:
                self._line(plot, at, line)
        for value in self.levels.values() if panel == 0 else ():
            plot.axhline(value, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        if panel == len(self.panels) - 1:
            plot.set_xlabel(fitted(label(self.x_label), 8, WIDE), fontsize=8)
        xs = np.concatenate([line.x for line in self.lines.values()])
        xs = xs[np.isfinite(xs)]
        if len(self.panels) > 1 and len(xs) and xs.min() < xs.max():
            plot.set_xlim(float(xs.min()), float(xs.max()))
        plot.set_ylabel(fitted(label(name), 8, high), fontsize=8)
        plot.set_ylim(*self._range(panel))
        plot.tick_params(labelsize=7)
        name_ticks(plot.yaxis)
        plot.grid(color="#ececec", linewidth=0.6)
        plot.set_axisbelow(True)
        plot.spines[["top", "right"]].set_visible(False)
        if self.x_names is not None:
            names = [figure_text(label(n), 16) for n in self.x_names]
            room = max(text_width(name, 7) for name in names) + 0.12
            every = math.ceil(len(names) * room / WIDE)
            plot.set_xticks(range(0, len(names), every), names[::every])
        elif len(xs) and xs.min() == xs.max():
            plot.set_xticks(xs[:1], tick_texts([float(xs[0])]))
        else:
            name_ticks(plot.xaxis)

    @staticmethod
    def _end_name(name: str, line: Line) -> str:
        """A line's name within its panel."""
        return name if line.kind is None else label(line.kind, NAME_LIMIT)

    @classmethod
    def _end(cls, name: str, line: Line) -> str:
        """What stands where a line ends."""
        finite = line.y[np.isfinite(line.y)]
        said = "" if line.faint or not len(finite) else f"  {number(float(finite[-1]), 3)}"
        return f"{figure_text(cls._end_name(name, line), END_LIMIT)}{said}"

    def _name_ends(self, sheet: Sheet, plot: Axes, panel: int, bottom: float, high: float) -> None:
        """The name and last value of each line of a panel, where the line ends."""
        low, top = plot.get_ylim()
        ends = []
        each = zip(self._looks, self._short, self.lines.values(), strict=True)
        for at, name, line in each:
            finite = line.y[np.isfinite(line.y)]
            if self._panel(line) == panel and len(finite):
                value = float(finite[-1])
                y = bottom - high * (value - low) / (top - low)
                ends.append((y, self._end(name, line), at, line.faint))
        x, free = 0.6 + WIDE + 0.08, bottom - high
        for y, said, at, faint in sorted(ends):
            y = max(y, free)
            colour = FAINT if faint else COLOURS[at % len(COLOURS)]
            style = "-" if faint else _style(at)
            sheet.axes.plot([x, x + 0.25], [y, y], color=colour, linestyle=style)
            sheet.text(x + 0.32, y, said, 8, va="center_baseline")
            free = y + 0.17

    def _line(self, plot: Axes, at: int, line: Line) -> None:
        colour = FAINT if line.faint else COLOURS[at % len(COLOURS)]
        marker = MARKERS[at % len(MARKERS)] if len(line.x) <= MARKED and not line.faint else None
        plot.plot(
            line.x,
            line.y,
            color=colour,
            linewidth=0.7 if line.faint else 1.6,
            linestyle="-" if line.faint else _style(at),
            marker=marker,
            markersize=4,
            zorder=1 if line.faint else 3,
        )
        if len(line.x) == 1:
            plot.vlines(line.x, line.low, line.high, color=colour, linewidth=0.8, zorder=2)
        elif np.isfinite(line.low).any():
            plot.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)

    def _legend_names(self) -> list[str]:
        """What the legend below the plot explains: of several panels only the levels."""
        return [*(self._short if len(self.panels) == 1 else ()), *self.levels]

    def _legend(self, sheet: Sheet, y: float) -> None:
        """A line for each name, with its mark and its last value, below the plot."""
        named = zip(self._looks, self._short, self.lines.values(), strict=True)
        for at, name, line in named if len(self.panels) == 1 else ():
            colour = FAINT if line.faint else ON_BOTH[at % len(ON_BOTH)]
            marker = None if line.faint or len(line.x) > MARKED else MARKERS[at % len(MARKERS)]
            style = "-" if line.faint else _style(at)
            sheet.axes.plot(
                [0.6, 0.9], [y - 0.04] * 2, color=colour, linewidth=1.8, linestyle=style
            )
            if marker:
                sheet.axes.plot([0.75], [y - 0.04], color=colour, marker=marker, markersize=4)
            last = "" if line.faint or not len(line.y) else f"  {number(float(line.y[-1]), 3)}"
            sheet.text(1.0, y, f"{figure_text(name, NAME_LIMIT)}{last}", 8)
            y += LEGEND
        for name, value in self.levels.items():
            sheet.axes.plot(
                [0.6, 0.9], [y - 0.04] * 2, color=SOFT, linewidth=1, linestyle=(0, (4, 3))
            )
            sheet.text(1.0, y, f"{figure_text(label(name), NAME_LIMIT)}  {number(value, 3)}", 8)
            y += LEGEND


def _dash(at: int) -> str:
    """How the ``at``-th line is broken: with its colour no other line is like it, up to 49."""
    return DASHES[(at + at // len(COLOURS)) % len(DASHES)]


def _style(at: int) -> tuple[int, tuple[float, ...]] | str:
    """The same for matplotlib."""
    lengths = tuple(int(length) / 2 for length in _dash(at).split())
    return (0, lengths) if lengths else "-"


def _named(name: str) -> str:
    """A name for running text."""
    return isolated(label(name, NAME_LIMIT))


def _checked(name: str, line: Line) -> Line:
    """The line with float32 arrays throughout; a missing interval is NaN."""
    if not isinstance(line, Line):
        raise InputError(f"lines[{name!r}] is {shown(line)}; expected a Line")
    x, y = array(line.x, "point", f"x of {name!r}"), array(line.y, "point", f"y of {name!r}")
    missing: NDArray[np.float32] = np.full_like(y, np.nan)
    low = missing if line.low is None else array(line.low, "point", f"low of {name!r}")
    high = missing if line.high is None else array(line.high, "point", f"high of {name!r}")
    if not len(x) == len(y) == len(low) == len(high):
        raise InputError(
            f"line {name!r} has {len(x)} x, {len(y)} y, {len(low)} low and {len(high)} high values"
        )
    if line.y_label is not None:
        check(f"y_label of {name!r}", line.y_label, TEXT, InputError)
    if line.kind is not None:
        check(f"kind of {name!r}", line.kind, TEXT, InputError)
    return Line(x, y, low, high, line.faint, line.y_label, line.kind)
