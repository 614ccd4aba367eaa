"""What people and programs pass by mistake, made anew for each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch


def _deep() -> list[object]:
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    return nested


def _endless() -> list[object]:
    nested: list[object] = []
    nested.append(nested)
    return nested


class Strange:
    """Refuses whatever it is asked, its own text too."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class Anything:
    """A class that takes whatever it is given, passed where an object belongs."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1": lambda: 1,
    "7": lambda: 7,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "1j": lambda: 1j,
    "empty text": lambda: "",
    "text": lambda: "x",
    "number in text": lambda: "1",
    "digits": lambda: "1" * 4500,
    "half a character": lambda: "\ud800",
    "superscript": lambda: "²",
    "zero byte": lambda: "a\0b",
    "long text": lambda: "ab " * 200,
    "bytes": lambda: b"x",
    "[]": list,
    "()": tuple,
    "{}": dict,
    "set": lambda: {1},
    "[0]": lambda: [0],
    "[None]": lambda: [None],
    "[1.5]": lambda: [1.5],
    "[[]]": lambda: [[]],
    "[[0], [0, 1]]": lambda: [[0], [0, 1]],
    "['']": lambda: [""],
    "['a', 1]": lambda: ["a", 1],
    "[2**63]": lambda: [2**63],
    "{1: 2}": lambda: {1: 2},
    "{'a': None}": lambda: {"a": None},
    "deep": _deep,
    "endless": _endless,
    "object": object,
    "strange": Strange,
    "class": lambda: Anything,
    "function": lambda: lambda *_: None,
    "slice": lambda: slice(0, 0),
    "range": lambda: range(3),
    "generator": lambda: iter([1]),
    "np.int64": lambda: np.int64(1),
    "np.float32": lambda: np.float32(0.5),
    "np.bool": lambda: np.bool_(True),
    "np.array": lambda: np.array([1, 2]),
    "np.array of objects": lambda: np.array([None, "a"], dtype=object),
    "np.array of NaN": lambda: np.array([[np.nan]]),
    "np.str": lambda: np.str_("x"),
    "empty tensor": lambda: torch.empty(0),
    "scalar tensor": lambda: torch.tensor(1),
    "ids": lambda: torch.tensor([[1, 2]]),
    "ids in int8": lambda: torch.tensor([[1, 2]], dtype=torch.int8),
    "ids in uint8": lambda: torch.tensor([[1, 2]], dtype=torch.uint8),
    "ids out of range": lambda: torch.tensor([[10**6, -5]]),
    "float16 tensor": lambda: torch.ones(1, 2, dtype=torch.float16),
    "NaN tensor": lambda: torch.full((1, 2), float("nan")),
    "bool tensor": lambda: torch.tensor([True, False]),
    "complex tensor": lambda: torch.ones(2) * 1j,
    "4 axes": lambda: torch.ones(1, 2, 1, 2),
    "meta tensor": lambda: torch.ones(1, 2, device="meta"),
    "meta ids": lambda: torch.ones(1, 2, device="meta", dtype=torch.long),
    "sparse tensor": lambda: torch.ones(1, 2).to_sparse(),
    "frame": lambda: pd.DataFrame({"a": [1]}),
    "NaT": lambda: pd.NaT,
    "pd.NA": lambda: pd.NA,
}
"""Hostile values by name."""
