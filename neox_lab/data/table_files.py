"""Tables in files: every cell of a ``.csv`` or ``.tsv`` is text, every value of JSON what it says.

No type is guessed from how a cell looks: ``01``, ``NA``, ``True`` and ``2020-01-01`` are texts, and
who asks for a number converts. A ``.csv`` is RFC 4180's, with quotes around cells that need them. A
``.tsv`` has one row a line; a quote there means something only in a cell that begins and ends with
one and doubles those between.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from neox_lab.errors import DataError
from neox_lab.files import parse_json
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
_CELL = re.compile(r'"((?:[^"]|"")*)"(?=\t|$)|([^\t]*)')


def read_file(path: Path) -> pd.DataFrame:
    """The table in a file.

    Args:
        path: with one of ``ENDINGS``.

    Raises:
        DataError: another ending, no such file, or a file that is not what its name says; with the
            line.
    """
    kind = path.suffix.lower()
    if kind not in ENDINGS:
        raise DataError(f"{path.name} ends in {path.suffix!r}; expected {', '.join(ENDINGS)}")
    text = read_text(path)
    try:
        if kind == ".json":
            return _records(parse_json(text))
        if kind == ".jsonl":
            return _records([_line(at, line) for at, line in _lines(text)])
        return _table(_csv_rows(text) if kind == ".csv" else _tsv_rows(text))
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path.name} is not a readable {kind[1:]} file: {error}") from error


def read_text(path: Path) -> str:
    """A file's text, line ends as they are, without a byte-order mark.

    Raises:
        DataError: there is no such file, or it is no UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from error


def _records(rows: object) -> pd.DataFrame:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects, one for each row")
    return make_frame(rows)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.removesuffix("\r"):
            yield number, line.removesuffix("\r")


def _line(number: int, line: str) -> object:
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    with _cells_of_any_size():
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in _lines(text):
        cells, at = [], 0
        while at <= len(line):
            found = _CELL.match(line, at)
            assert found is not None  # the second half matches anything
            quoted, plain = found.groups()
            cells.append(plain if quoted is None else quoted.replace('""', '"'))
            at = found.end() + 1
        yield number, cells


def _table(rows: Iterator[tuple[int, list[str]]]) -> pd.DataFrame:
    """Rows under a first one with the names."""
    names = next(rows, (0, []))[1]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}")
    listed = []
    for number, row in rows:
        if len(row) != len(names):
            raise ValueError(f"line {number} has {len(row)} cells; expected {len(names)}")
        listed.append(row)
    return make_frame(listed, names)


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)
