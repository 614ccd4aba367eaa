"""HTML that survives: tables, pictures and pages that need no script, no style sheet, no network.

JupyterLab removes ``<style>``, ``<script>`` and inline ``<svg>`` from the output of a notebook it
does not trust, and GitHub removes ``style`` attributes as well. What stays is used here: a picture
as ``<img src="data:…" alt="…">``, numbers as a ``<table>``, long lists inside ``<details>``. All
text goes through ``html_text``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap

from neox_lab.progress import counted
from neox_lab.views.live import policy
from neox_lab.views.tokens import display_width, html_text

ROW_LIMIT = 200
TEXT_ROWS = 16
TEXT_WIDTH, CELL_WIDTH, CELL_LINES = 110, 48, 4
OPEN_ROWS = 12


@dataclass(frozen=True)
class Table:
    """A small table of texts, for a page and for a terminal.

    ``columns`` are pairs of a heading and ``"l"`` or ``"r"``, how its cells are aligned. The cells
    are finished texts (tokens already as labels). ``note`` stands below the table, and ``source``
    names the attribute that has every row when some are left out. ``folded`` ones are to be opened.
    """

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    note: str = ""
    source: str = ".frame"
    folded: bool = False

    def to_html(self) -> str:
        """A ``<table>``, folded into ``<details>`` if it is long, with at most 200 rows."""
        head = "".join(self._cell("th", name, side) for name, side in self.columns)
        body = "".join(
            "<tr>"
            + "".join(
                self._cell("td", cell, side)
                for cell, (_, side) in zip(row, self.columns, strict=True)
            )
            + "</tr>"
            for row in self.rows[:ROW_LIMIT]
        )
        caption = html_text(self.caption)
        table = (
            '<div class="neox-table" style="overflow-x:auto">'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
        notes = [html_text(note) for note in (self._left_out(ROW_LIMIT), self.note) if note]
        after = f"<p><small>{' '.join(notes)}</small></p>" if notes else ""
        if self.folded or len(self.rows) > OPEN_ROWS or len(self.columns) > OPEN_ROWS:
            return (
                f"<details><summary>{caption} ({counted(len(self.rows), 'row')})</summary>"
                f"{table}{after}</details>"
            )
        return f"<p><strong>{caption}</strong></p>{table}{after}"

    def to_text(self) -> str:
        """Aligned columns for a terminal: at most 16 rows, and what fits into 110 columns.

        Cells of more than 48 characters go on in lines of their own, up to four.
        """
        rows = [[name for name, _ in self.columns], *self.rows[:TEXT_ROWS]]
        lines = [list(line) for row in rows for line in _lines(row)]
        widths = [max(map(display_width, column)) for column in zip(*lines, strict=True)]
        ends = [sum(widths[: at + 1]) + 2 * at for at in range(len(widths))]
        fitting = max(1, sum(end <= TEXT_WIDTH for end in ends))
        cut = len(widths) - fitting
        sides = [side for _, side in self.columns]
        shown = [
            "  " + "  ".join(map(_padded, line[:fitting], widths, sides)).rstrip() for line in lines
        ]
        hidden = f"Columns that do not fit: {cut}; they are in {self.source}." if cut else ""
        notes = [note for note in (self._left_out(TEXT_ROWS), hidden, self.note) if note]
        return "\n".join([self.caption, *shown, *(f"  ({note})" for note in notes)])

    def _left_out(self, limit: int) -> str:
        """What a reader does not see when only ``limit`` rows are shown."""
        if len(self.rows) <= limit:
            return ""
        return f"The first {limit} of {len(self.rows)} rows; {self.source} has them all."

    @staticmethod
    def _cell(tag: str, text: str, side: str) -> str:
        """One cell; right-aligned ones keep their digits below each other."""
        align = "right" if side == "r" else "left"
        return f'<{tag} style="text-align:{align};padding:2px 8px">{html_text(text)}</{tag}>'


def _lines(row: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A row as the lines that it takes where no cell is wider than ``CELL_WIDTH``."""
    cells = [
        wrap(cell, CELL_WIDTH, max_lines=CELL_LINES, placeholder="…", break_on_hyphens=False)
        if len(cell) > CELL_WIDTH
        else [cell]
        for cell in row
    ]
    return zip_longest(*cells, fillvalue="")


def _padded(text: str, width: int, side: str) -> str:
    """``text`` filled with spaces to ``width`` terminal columns."""
    space = " " * (width - display_width(text))
    return space + text if side == "r" else text + space


def image(png: bytes, alt: str, width: int) -> str:
    """A PNG as an ``<img>`` that carries its own bytes, ``width`` pixels wide on a page."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html_text(alt)}" width="{width}" '
        f'style="max-width:100%;height:auto;background-color:#ffffff">'
    )


STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --soft: #5f6368;
  --line: #dadce0; --stripe: #f6f7f8; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e8eaed; --soft: #a8adb4;
  --line: #3a3f46; --stripe: #1e2126; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; }
body:has(> .neox-view[data-kind="explorer"]) { max-width: 80rem; }
section > p { max-width: 44rem; }
img { border-radius: 6px; border: 1px solid var(--line); box-sizing: border-box; }
pre { background: var(--stripe); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 14px/1.5 "DejaVu Sans Mono", ui-monospace, monospace; }
.neox-table { overflow-x: auto; }
h1 + .neox-view { --own-title: none; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--line); }
th { white-space: nowrap; } th, td { padding: .22rem .7rem .22rem 0; vertical-align: top; }
tbody tr + tr td { border-top: 1px solid var(--stripe); }
summary { cursor: pointer; padding: .3rem 0; } .neox-tables > summary { color: var(--soft); }
small { color: var(--soft); }
"""


def page(title: str, body: str, style: str = "") -> str:
    """One self-contained page around ``body`` (HTML), for light and dark, printable.

    The browser itself then refuses to fetch anything, and to run a script that is not one of ours.

    Args:
        title: what the browser calls it.
        body: HTML.
        style: more rules after the usual ones.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en" data-neox="page">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
