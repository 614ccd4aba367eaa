"""Reading examples from wherever people keep them, and telling which rows are wrong."""

from __future__ import annotations

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from neox_lab.checks import shown
from neox_lab.data.table_files import read_file
from neox_lab.errors import DataError, nearest
from neox_lab.files import parse_json
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class SupportsToPandas(Protocol):
    """What can turn itself into a frame, such as a ``datasets.Dataset`` or a polars frame."""

    def to_pandas(self) -> Any:
        """The frame."""


Table: TypeAlias = (
    "pd.DataFrame | str | os.PathLike[str] | Sequence[Mapping[str, object]] | SupportsToPandas"
)
"""A pandas frame; a path to a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file (a list of objects),
where nothing is guessed (see ``table_files``); a list of dictionaries; or what has ``to_pandas``,
such as a ``datasets.Dataset`` or a polars frame."""

SHOWN = 5
"""How many wrong rows a message lists."""


def read_table(source: object, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A table with one example a row, rows numbered from 0.

    Args:
        source: see ``Table``.
        columns: those that must be there.

    Raises:
        DataError: another kind of source, an unreadable or empty table, or a missing column.
    """
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        frame = source.reset_index(drop=True)
    elif isinstance(source, str | os.PathLike):
        frame = read_file(Path(source))
    elif isinstance(source, SupportsToPandas):
        frame = _converted(source)
    elif isinstance(source, dict) and all(hasattr(part, "to_pandas") for part in source.values()):
        raise DataError(
            f"this is a dictionary of datasets; choose one of its parts: {', '.join(source)}"
        )
    elif isinstance(source, list | tuple) and all(isinstance(row, dict) for row in source):
        frame = make_frame(source)
    else:
        raise DataError(
            f"cannot read examples from {type(source).__name__}; expected a pandas frame, a path "
            "to a csv, tsv, jsonl or json file, a list of dictionaries, or what has to_pandas "
            "(a datasets.Dataset, a polars frame)"
        )
    if frame.empty:
        raise DataError("the table has no rows; expected at least one example")
    for column in columns:
        if column not in frame.columns:
            known = [str(name) for name in frame.columns]
            raise DataError(
                f"there is no column {column!r}; the table has {', '.join(known)}."
                f"{nearest(column, known)}"
            )
    return frame


def _converted(source: SupportsToPandas) -> pd.DataFrame:
    import pandas as pd

    kind = type(source).__name__
    try:
        frame = source.to_pandas()
    except ImportError as error:  # polars asks for pyarrow
        raise DataError(f"this {kind} cannot be turned into a pandas frame: {error}") from error
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"this {kind} is one column; expected a table with named columns")
    return frame.reset_index(drop=True)


def listed(cell: object) -> Any:
    """What a cell holds that should be a list or an object; in a CSV file it stands as text.

    Args:
        cell: of a table.

    Raises:
        ValueError: it is text that does not read as one.
    """
    if not isinstance(cell, str):
        return cell
    with suppress(ValueError):  # JSON first: a literal of Python's would read its escapes otherwise
        return parse_json(cell)
    try:
        _no_neighbours(cell)
        return ast.literal_eval(cell)  # as pandas writes lists; runs no code
    except (SyntaxError, ValueError, MemoryError, RecursionError, tokenize.TokenError):
        raise ValueError(f"{shown(cell)} is no list and no object") from None


def _no_neighbours(text: str) -> None:
    """Refuse ``['a' 'b']``, as arrays are printed, which Python reads as ``['ab']``."""
    before = None
    for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        if token.type == before == tokenize.STRING:
            raise ValueError(text)
        if token.type != tokenize.NL:  # a line may end between the two
            before = token.type


def whole_number(cell: object) -> int:
    """The whole number that a cell holds; in a CSV file it stands as text.

    Args:
        cell: of a table.

    Raises:
        ValueError: it is something else, such as ``1.5``, ``"01"``, ``"1.0"`` or ``True``.
    """
    if isinstance(cell, str):
        if not re.fullmatch(r"0|-?[1-9][0-9]*", cell):
            raise ValueError(cell)
        return int(cell)
    if isinstance(cell, bool | np.bool_) or not isinstance(cell, int | float | np.number):
        raise ValueError(cell)
    if isinstance(cell, int):  # however large
        return cell
    if not np.isfinite(cell) or cell != int(cell):
        raise ValueError(cell)
    return int(cell)


def refuse(what: str, wrong: Iterable[tuple[int, str]], advice: str) -> None:
    """Refuse wrong rows, if there are any.

    Args:
        what: what is wrong with them, as in "Column 'text' has no text".
        wrong: number of each, and what is wrong there.
        advice: what to do.

    Raises:
        DataError: there are; the message names the first few.
    """
    listed = list(wrong)
    if not listed:
        return
    shown = "".join(f"\n  row {row}: {problem}" for row, problem in listed[:SHOWN])
    more = f"\n  and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    raise DataError(f"{what} in {len(listed)} rows.{shown}{more}\n{advice}")


def texts_of(frame: pd.DataFrame, column: str) -> list[str]:
    """The texts of a column.

    Args:
        frame: a table that has it.
        column: its name.

    Raises:
        DataError: some are empty or no text; the rows are named.
    """
    values = frame[column].tolist()
    wrong = [
        (row, "is empty" if value == "" else f"is {value!r:.60}, not text")
        for row, value in enumerate(values)
        if not isinstance(value, str) or not value.strip()
    ]
    refuse(f"Column {column!r} has no text", wrong, "Drop these rows or fill them in.")
    return values


def check_lengths(ids: Sequence[Sequence[int]], longest: int, advice: str) -> None:
    """Refuse texts that a model cannot read.

    Args:
        ids: token ids of each.
        longest: how many tokens it reads.
        advice: what to do.

    Raises:
        DataError: some have more; the message names them.
    """
    wrong = [(row, f"{len(r)} tokens") for row, r in enumerate(ids) if len(r) > longest]
    refuse(f"Texts are longer than the model's {longest} positions", wrong, advice)
