"""Frames hold any Python string, and are made in one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import neox_lab
from neox_lab.frames import make_frame

HALF = "\ud83d"  # half of a surrogate pair, which UTF-8 (and so Arrow) does not hold


def test_half_a_character_is_a_text() -> None:
    for frame in (
        make_frame({"token": [HALF, "b"], "n": np.arange(2)}),
        make_frame({"token": np.array([HALF, "b"], dtype=object), "n": np.arange(2)}),
        make_frame([{"token": HALF, "n": 0}, {"token": "b", "n": 1}]),
        make_frame([[HALF, 0], ["b", 1]], columns=["token", "n"]),
    ):
        assert frame["token"].tolist() == [HALF, "b"]
        assert frame[frame["token"] == HALF]["n"].tolist() == [0]
        assert HALF in frame.to_csv()


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ([{"a": 1, "b": "x", "c": [1]}, {"a": 2, "b": None}], None),
        ([{"a": True}, {"a": False}], None),
        ([{"a": 1}, {"a": 2.5}, {}], None),
        ([["x", 1, 2.0]], ["same", "same", "other"]),
        ([], ["a", "b"]),
        ([], None),
    ],
)
def test_frames_are_those_of_pandas(rows: list[dict[str, object]], columns: list[str]) -> None:
    pd.testing.assert_frame_equal(
        make_frame(rows, columns), pd.DataFrame(rows, columns=columns), check_dtype=False
    )
    for _, made in make_frame(rows, columns).items():
        assert made.dtype.kind in "ifbO"


def test_no_other_module_makes_frames() -> None:
    package = Path(neox_lab.__file__).parent
    makers = {
        path.name
        for path in package.rglob("*.py")
        if any(
            maker in path.read_text(encoding="utf-8")
            for maker in ("pd.DataFrame(", "pd.read_", "pandas.DataFrame(")
        )
    }
    assert makers == {"frames.py"}
