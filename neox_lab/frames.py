"""Frames whose texts are Python's, whatever else is installed.

Where pyarrow is installed, pandas keeps texts in Arrow, which is UTF-8 and refuses half of a
surrogate pair. Half a character is what a byte-level token may be, so every frame of this package
is made here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def make_frame(
    data: Mapping[str, Any] | Iterable[Mapping[str, Any] | Sequence[object]],
    columns: list[str] | None = None,
) -> pd.DataFrame:
    """``pandas.DataFrame(data, columns=columns)``, able to hold any Python string.

    Args:
        data: columns by name; or rows, as mappings or as sequences.
        columns: names of the columns, or which of the keys to keep.

    Returns:
        The frame; columns of texts have the dtype ``str`` with Python's own strings (before pandas
        2.3: ``object``).
    """
    import pandas as pd

    if isinstance(data, Mapping):
        return pd.DataFrame({name: _column(values) for name, values in data.items()})
    rows = pd.DataFrame(list(data), columns=columns, dtype=object)
    made = pd.DataFrame(
        {at: _column(rows.iloc[:, at]) for at in range(rows.shape[1])}, index=rows.index
    )
    made.columns = rows.columns  # two may have the same name
    return made


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV that reads back cell for cell, a missing value as an empty cell.

    Args:
        frame: with plain column names; its index is left out.

    Returns:
        Rows that end in a line feed, with quotes where RFC 4180 needs them.
    """
    text = frame.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # which would end a row, and which Python's csv leaves without quotes
        text = frame.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text


def _column(values: Any) -> Any:
    """Values as a column of what they are: numbers, texts or objects."""
    import pandas as pd

    if isinstance(values, np.ndarray) and values.dtype != object:
        return values
    column = pd.Series(values, dtype=object)
    if pd.api.types.infer_dtype(column, skipna=True) == "string":
        try:
            return column.astype(pd.StringDtype("python", na_value=np.nan))
        except TypeError:  # pandas before 2.3, which has no such texts, keeps them as objects
            return column
    return column.infer_objects()
