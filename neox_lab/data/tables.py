"""Reading examples from wherever people keep them, and telling which rows are wrong."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from neox_lab.errors import DataError, nearest

if TYPE_CHECKING:
    import pandas as pd


class SupportsToPandas(Protocol):
    """What can turn itself into a frame, such as a ``datasets.Dataset``."""

    def to_pandas(self) -> Any:
        """The frame."""


Table: TypeAlias = (
    "pd.DataFrame | str | os.PathLike[str] | Sequence[Mapping[str, object]] | SupportsToPandas"
)
"""A pandas frame; a path to a ``.csv``, ``.tsv``, ``.jsonl`` or ``.json`` file (a list of objects);
a list of dictionaries; or a ``datasets.Dataset``."""

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
        frame = _read_file(Path(source))
    elif hasattr(source, "to_pandas"):
        frame = source.to_pandas()
    elif isinstance(source, dict) and all(hasattr(part, "to_pandas") for part in source.values()):
        raise DataError(
            f"this is a dictionary of datasets; choose one of its parts: {', '.join(source)}"
        )
    elif isinstance(source, list | tuple) and all(isinstance(row, dict) for row in source):
        frame = pd.DataFrame(list(source))
    else:
        raise DataError(
            f"cannot read examples from {type(source).__name__}; expected a pandas frame, a path "
            "to a csv, tsv, jsonl or json file, a list of dictionaries, or a datasets.Dataset"
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


def _read_file(path: Path) -> pd.DataFrame:
    import pandas as pd

    # Texts stay what they are: "None" is a word, "007" in quotes is a text, and no date is guessed.
    cells: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
    values: dict[str, Any] = {"dtype": False}  # which guesses no dates either
    readers: dict[str, Any] = {
        ".csv": lambda at: pd.read_csv(at, **cells),
        ".tsv": lambda at: pd.read_csv(at, sep="\t", **cells),
        ".jsonl": lambda at: pd.read_json(at, lines=True, **values),
        ".json": lambda at: pd.read_json(at, **values),
    }
    if path.suffix.lower() not in readers:
        raise DataError(f"{path.name} ends in {path.suffix!r}; expected {', '.join(readers)}")
    try:
        frame: pd.DataFrame = readers[path.suffix.lower()](path)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except (OSError, ValueError, TypeError) as error:  # pandas fails on JSON in many ways
        raise DataError(f"{path.name} is not a readable {path.suffix[1:]} file: {error}") from error
    return frame


def listed(cell: object) -> Any:
    """What a cell holds that should be a list or an object; in a CSV file it stands as text.

    Args:
        cell: of a table.

    Raises:
        ValueError: it is text that does not read as one.
    """
    if not isinstance(cell, str):
        return cell
    try:
        return ast.literal_eval(cell)  # reads what JSON and pandas write, and runs no code
    except SyntaxError as error:
        raise ValueError(cell) from error


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
