"""What one measure says at many steps: a frame, curves, and maps with a slider."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.checks import check, one_of, or_none
from neox_lab.dynamics.listing import whole_numbers
from neox_lab.dynamics.measures import OWN_COLUMNS
from neox_lab.dynamics.records import Record
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.head_names import head_name
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView, Line, SliderView, View

LINES = 10  # of one picture
LABEL = 24  # characters beside a panel
KIND = "statistic"  # the column that says what a row is a number of


@dataclasses.dataclass(frozen=True)
class DynamicsResult(FrameResult):
    """One measure over training.

    Attributes:
        model: whose revisions.
        measure: what the function is called.
        frame: the rows of each answer, by step: ``revision``, ``step``, ``tokens`` (missing where
            nobody knows), the answer's own columns, ``weights`` (12 digits, equal for equal files),
            ``fault`` (why the revision is not what its name says; "" where nothing is known
            against it) and ``error`` (why there is no answer, "" where there is one).
        maps: of answers that are maps, what each shows, by revision; empty for others.
    """

    model: str
    measure: str
    frame: pd.DataFrame
    maps: dict[str, dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The columns of ``frame`` that hold the measure's numbers."""
        return [name for name in self._own() if self._is_number(name)]

    def view(self) -> View:
        """Maps with a slider over the steps where answers are maps, curves otherwise.

        Raises:
            InputError: there is nothing to draw.
        """
        return self.slider() if self.maps else self.curves()

    def curves(self, column: str | None = None) -> CurvesView:
        """A number over the steps, which stand at equal distances.

        Where answers have several rows, each has a line; of more than ten lines these are shown
        that change most. Numbers of different kinds stand in panels with scales of their own: rows
        by their column ``statistic``, and several numbers of one row by their size (a panel holds
        those within a factor of ten).

        Args:
            column: which number; None for all where answers are single rows, else for the first.

        Raises:
            InputError: there is no such column, or no number.
        """
        from neox_lab.views import CurvesView

        if not self.columns:
            raise InputError(f"No answer has a number; there is {', '.join(self._own()) or 'none'}")
        check("column", column, or_none(one_of(*self.columns)), InputError)
        names = list(dict.fromkeys(self.frame["revision"]))
        lines = self._lines(column, {name: at for at, name in enumerate(names)})
        steps = dict(zip(self.frame["revision"], self.frame["step"], strict=True))
        title = f"{self.measure} over training: {self.model}"
        several = self._several_rows()
        axis = next(iter(lines)) if len(lines) == 1 else column or "value"
        if len(lines) > 1 and column is None and several:
            axis = self._measured()[0]
        panels = {name: line.y_label for name, line in lines.items() if line.y_label}
        if len(lines) > 1 and not several:
            panels = _by_size(lines)
        shown = _changing_most(lines, panels)
        if len(shown) < len(lines):
            title += f" ({len(shown)} of {len(lines)} lines, those that change most)"
        if len(set(panels.values())) < 2:
            panels = {}
        return CurvesView(
            title,
            {
                name: dataclasses.replace(line, y_label=panels.get(name))
                for name, line in lines.items()
                if name in shown
            },
            "step",
            axis,
            [_step_text(name, steps[name]) for name in names],
        )

    def slider(self) -> SliderView:
        """The answers as maps of one scale, with a slider over the steps.

        Raises:
            InputError: answers are no maps.
        """
        from neox_lab.views import HeatmapView, SliderView

        if not self.maps:
            raise InputError("These answers are no maps; curves() shows numbers.")
        steps = dict(zip(self.frame["revision"], self.frame["step"], strict=True))
        made = {_step_text(name, steps[name]): HeatmapView(**m) for name, m in self.maps.items()}
        return SliderView(made, "step", f"{self.measure} over training: {self.model}")

    def _own(self) -> list[str]:
        return [name for name in self.frame.columns if name not in OWN_COLUMNS]

    def _is_number(self, name: str) -> bool:
        import pandas as pd

        kinds = pd.api.types
        column = self.frame[name]
        return kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column)

    def _several_rows(self) -> bool:
        return bool(self.frame["revision"].duplicated().any())

    def _measured(self) -> list[str]:
        """The columns that are measured, where others number layers, heads or positions.

        Such numbers are whole, also where some rows have none and the column is of floats.
        """
        good = self.frame[self.frame["error"] == ""]
        floats = [name for name in self.columns if good[name].dtype.kind == "f"]
        broken = [name for name in floats if (good[name].dropna() % 1 != 0).any()]
        return broken or floats or self.columns

    def _lines(self, column: str | None, at: Mapping[str, int]) -> dict[str, Any]:
        """What is drawn, by name."""
        from neox_lab.views import Line

        good = self.frame[self.frame["error"] == ""]
        if not self._several_rows():
            x = [at[name] for name in good["revision"]]
            names = [column] if column else [n for n in self.columns if not self._is_interval(n)]
            return {name: Line(x, good[name], *self._interval(good, name)) for name in names}
        measured = self._measured()
        value = column or measured[0]
        keys = [n for n in self._own() if n not in measured and n != value]
        keys = [n for n in keys if good.groupby("revision")[n].nunique().max() > 1]
        keys = _telling_apart(good, keys)
        lines = {}
        groups = good.groupby(keys, sort=False, dropna=False) if keys else [((), good)]
        for key, rows in groups:
            rows = rows.drop_duplicates("revision")
            x = [at[name] for name in rows["revision"]]
            line = Line(x, rows[value], *self._interval(rows, value))
            if KIND in keys:  # each has a unit of its own
                line = dataclasses.replace(line, y_label=str(rows[KIND].iloc[0]))
            lines[_name(keys, key)] = line
        return lines

    def _is_interval(self, name: str) -> bool:
        stem, _, end = name.rpartition("_")
        return end in ("low", "high") and (stem or name) in self.columns

    def _interval(self, rows: pd.DataFrame, name: str) -> tuple[Any, ...]:
        ends = [f"{name}_low", f"{name}_high"]
        return tuple(rows[end] for end in ends) if set(ends) <= set(rows.columns) else ()


def gathered(
    model: str, measure: str, records: Sequence[Record], faults: Mapping[str, Sequence[str]]
) -> DynamicsResult:
    """The result of some records.

    Args:
        model: whose revisions.
        measure: what it is called.
        records: in the order of the frame.
        faults: of revisions by name.
    """
    rows: list[dict[str, Any]] = []
    own = dict.fromkeys(name for record in records for row in record["rows"] for name in row)
    for record in records:
        head = {name: record[name] for name in ("revision", "step", "tokens")}
        tail = {
            "weights": record["weights"],
            "fault": "; ".join(faults.get(str(record["revision"]), ())),
            "error": record["error"],
        }
        rows += [
            head | {name: row.get(name) for name in own} | tail for row in record["rows"] or [{}]
        ]
    frame = make_frame(rows, ["revision", "step", "tokens", *own, "weights", "fault", "error"])
    maps = {str(record["revision"]): record["map"] for record in records if record["map"]}
    same = {json.dumps([m["row_labels"], m["column_labels"]]) for m in maps.values()}
    return DynamicsResult(
        model,
        measure,
        whole_numbers(frame, "step", "tokens"),
        maps if len(same) == 1 else {},
    )


def _telling_apart(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """The columns that name the rows of a revision.

    Left out is what follows from the columns before it and changes in training, such as the
    likeliest token of a place: with it in a line's name no line would reach over two steps.
    """

    def groups(*columns: str) -> int:
        return frame.groupby(list(columns), dropna=False).ngroups

    keys: list[str] = []
    for name in names:
        one_each = groups("revision", *keys, name) == groups("revision", *keys)
        if not one_each or groups(*keys, name) == (groups(*keys) if keys else 1):
            keys.append(name)
    return keys


def _name(keys: Sequence[str], key: Hashable) -> str:
    """A line's name: ``L1H3``; of texts the text alone, of what is missing nothing."""
    values = key if isinstance(key, tuple) else (key,)
    given = {n: v for n, v in zip(keys, values, strict=True) if v == v and v is not None}
    layer, head = given.get("layer"), given.get("head")
    parts = []
    if isinstance(layer, int | float) and isinstance(head, int | float):
        parts.append(head_name(int(layer), int(head)))
        del given["layer"], given["head"]
    for name, value in given.items():
        if isinstance(value, bool | np.bool_):
            parts.append(name if value else f"not {name}")
        else:
            parts.append(value if isinstance(value, str) else f"{name} {_short(value)}")
    return ", ".join(parts) or "value"


def _short(value: object) -> str:
    """A number without the ".0" that a column with missing entries gives it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _by_size(lines: Mapping[str, Line]) -> dict[str, str]:
    """The panel of each line: those whose largest numbers are within a factor of ten share one."""
    most = {name: _largest(line.y) for name, line in lines.items()}
    groups: list[list[str]] = []
    for name in sorted(most, key=lambda name: -most[name]):
        if groups and most[name] * 10 >= most[groups[-1][0]]:
            groups[-1].append(name)
        else:
            groups.append([name])
    found: dict[str, str] = {}
    for group in groups:
        group.sort(key=list(lines).index)
        told = ", ".join(group)
        told = told if len(told) <= LABEL else f"{group[0]} and {len(group) - 1} more"
        found |= dict.fromkeys(group, told)
    return found


def _largest(values: object) -> float:
    numbers = np.asarray(values, dtype=float)
    finite = numbers[np.isfinite(numbers)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _changing_most(lines: Mapping[str, Line], panels: Mapping[str, str]) -> set[str]:
    """Which lines are drawn: of every panel those that change most."""
    kinds = list(dict.fromkeys(panels.get(name, "") for name in lines))
    each = max(1, LINES // max(1, len(kinds)))
    found: set[str] = set()
    for kind in kinds:
        here = [name for name in lines if panels.get(name, "") == kind]
        found |= set(sorted(here, key=lambda name: -_range(lines[name].y))[:each])
    return found


def _range(values: object) -> float:
    numbers = np.asarray(values, dtype=float)
    finite = numbers[np.isfinite(numbers)]
    return float(finite.max() - finite.min()) if finite.size else 0.0


def _step_text(name: str, step: object) -> str:
    import pandas as pd

    return name if pd.isna(step) else str(step)  # type: ignore[call-overload]
