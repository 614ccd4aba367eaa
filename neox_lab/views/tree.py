"""Named rows in groups: the hook points of a model, or any table that one searches by words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neox_lab.checks import SWITCH, check, several, shown
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.views.base import View
from neox_lab.views.drawing import HEADING, SOFT, Sheet, text_width
from neox_lab.views.markup import Table
from neox_lab.views.tokens import figure_text, isolated, label

if TYPE_CHECKING:
    import pandas as pd

STEP, DRAWN = 0.185, 120  # inches from row to row, and rows drawn
CELL_LIMIT, LIVE_LIMIT = 100, 200  # characters of a cell in the picture, and in the live view
LIVE_ROWS = 3_000


class TreeView(View):
    """Groups of rows, each group under its heading; in a notebook they fold and can be searched.

    Args:
        columns: what the cells of a row are; the first one is the row's name.
        groups: rows of texts by heading.
        title: the headline.
        folded: whether a notebook shows several groups folded at first.

    Raises:
        InputError: there is no row, or one of another length than ``columns``.
    """

    asset = "tree"

    def __init__(
        self,
        columns: Sequence[str],
        groups: Mapping[str, Sequence[Sequence[str]]],
        title: str | None = None,
        folded: bool = True,
    ) -> None:
        self.folded = check("folded", folded, SWITCH, InputError)
        self.columns = several("columns", columns, "a list of names", InputError)
        if not isinstance(groups, Mapping):
            raise InputError(f"groups={shown(groups)}; expected rows by the name of their group")
        self.groups = {
            name: [
                several("a row", row, "a list of texts", InputError)
                for row in several(f"groups[{name!r}]", rows, "a list of rows", InputError)
            ]
            for name, rows in groups.items()
        }
        rows = [row for listed in self.groups.values() for row in listed]
        if not rows or any(len(row) != len(self.columns) for row in rows):
            raise InputError(f"needed: at least one row, and a text for each of {self.columns}")
        super().__init__(title, "Rows")

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each row: group, and the columns."""
        rows = [[name, *row] for name, listed in self.groups.items() for row in listed]
        return make_frame(rows, columns=["group", *self.columns])

    @property
    def alt_text(self) -> str:
        """The groups and how many rows they have."""
        named = [f"{label(name, CELL_LIMIT)}: {len(rows)}" for name, rows in self.groups.items()]
        return f"Rows by group. {'; '.join(named)}."

    def tables(self) -> list[Table]:
        """A table for each group."""
        columns = [(name, "l") for name in self.columns]
        return [
            Table(
                label(name, CELL_LIMIT),
                columns,
                [[isolated(_shown(cell)) for cell in row] for row in rows],
            )
            for name, rows in self.groups.items()
        ]

    def data(self) -> dict[str, Any]:
        """All rows; the first ones of very many."""
        room, groups = LIVE_ROWS, []
        for name, rows in self.groups.items():
            shown = [[_shown(cell, LIVE_LIMIT) for cell in row] for row in rows[:room]]
            groups.append({"name": label(name, LIVE_LIMIT), "rows": shown})
            room -= len(shown)
        total = sum(map(len, self.groups.values()))
        cut = f"To stay small this shows only the first {LIVE_ROWS} of {total} rows."
        notes = [cut] if total > LIVE_ROWS else []
        made = {"title": self.title, "notes": notes, "columns": self.columns, "groups": groups}
        return made | {"folded": self.folded}

    def _draw(self) -> Sheet:
        drawn = [
            (name, [[figure_text(_shown(cell), CELL_LIMIT) for cell in row] for row in rows])
            for name, rows in self.groups.items()
        ]
        wide = [
            max(text_width(row[at], 7.5) for _, rows in drawn for row in rows[:DRAWN]) + 0.25
            for at in range(len(self.columns))
        ]
        lines: list[tuple[str, list[str]]] = []
        for name, rows in drawn:
            lines += [(name, []), *(("", row) for row in rows)]
        shown = lines[:DRAWN]
        headings = [
            1.15 * text_width(figure_text(label(name), CELL_LIMIT), 8) for name in self.groups
        ]
        sheet = Sheet(max(0.15 + sum(wide), *headings), HEADING + STEP * len(shown))
        cut = f" The first {DRAWN} of {len(lines)} lines." if len(lines) > DRAWN else ""
        sheet.heading(0, figure_text(self.title), figure_text(" · ".join(self.columns)) + cut)
        for at, (heading, row) in enumerate(shown):
            y = HEADING + STEP * (at + 0.6)
            if not row:
                sheet.text(0, y, figure_text(label(heading), CELL_LIMIT), 8, weight="bold")
            x = 0.15
            for column, cell in enumerate(row):
                sheet.text(x, y, cell, 7.5, **({} if column == 0 else {"color": SOFT}))
                x += wide[column]
        return sheet


def _shown(cell: str, limit: int | None = None) -> str:
    """A cell as a label; an empty one says nothing, where an empty token would be told."""
    return label(cell, limit) if cell else ""
