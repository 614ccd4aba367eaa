"""Checks of settings: what each kind takes, and what its message says."""

from __future__ import annotations

import json
import math
import warnings
from collections import namedtuple
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import neox_lab as nl
from neox_lab.checks import (
    SWITCH,
    TEXT,
    Kind,
    check,
    holds_names,
    ids_to_tensor,
    list_of,
    listed_texts,
    number,
    one_of,
    or_none,
    plain,
    several,
    whole,
)
from neox_lab.errors import ConfigError, InputError, NeoxLabWarning

NAN, INFINITE = math.nan, math.inf


@pytest.mark.parametrize(
    ("kind", "words", "taken", "refused"),
    [
        (number(), "a number", [0, -1.5, 2, INFINITE], [True, "1", None, NAN]),
        (number(below=INFINITE), "a finite number", [0, -1.5], [INFINITE, NAN]),
        (number(above=0), "a number above 0", [1e-9, 3, INFINITE], [0, -1, NAN]),
        (number(above=0, below=INFINITE), "a finite number above 0", [3], [0, INFINITE, NAN]),
        (number(least=1), "a number of at least 1", [1, 1.0], [0.9]),
        (number(least=0, most=1), "a number from 0 to 1", [0, 1, 0.5], [1.1, -0.1, True]),
        (number(above=0, most=1), "a number above 0 and up to 1", [1, 0.1], [0, 2]),
        (number(least=0, below=1), "a number of at least 0 and below 1", [0, 0.9], [1, -1]),
        (number(below=1), "a number below 1", [-3, 0.9], [1]),
        (whole(), "a whole number", [-1, 0, 5], [1.0, True, "1"]),
        (whole(above=0), "a whole number above 0", [1], [0, 0.5, 1.0]),
        (whole(least=2, most=4), "a whole number from 2 to 4", [2, 4], [1, 5, 3.0]),
        (one_of("a", "b"), "one of a, b", ["a", "b"], ["c", None, ["a"]]),
        (or_none(whole(above=0)), "a whole number above 0 or None", [None, 1], [0]),
        (or_none(one_of("a", "b")), "one of a, b, or None", [None, "a"], ["c"]),
        (list_of(whole(), "whole numbers"), "a list of whole numbers", [[], [1]], [[1.0], (1,), 1]),
        (SWITCH, "True or False", [True, False], [0, 1, None]),
        (TEXT, "a string", ["", "a"], [b"a", None]),
    ],
)
def test_each_kind_takes_what_its_words_say(
    kind: Kind[object], words: str, taken: list[object], refused: list[object]
) -> None:
    for value in taken:
        assert check("x", value, kind, InputError) is value
    for value in refused:
        with pytest.raises(InputError) as caught:
            check("x", value, kind, InputError)
        assert str(caught.value).startswith(f"x={value!r}; expected {words}.")


def test_a_misspelt_name_is_told_the_nearest_one_and_the_error_is_the_callers() -> None:
    with pytest.raises(ConfigError, match=r"kind='linaer'; expected .* Did you mean 'linear'\?"):
        check("kind", "linaer", one_of("linear", "constant"), ConfigError)
    for value, meant in (("ov", "OV"), ("k", "K"), ("EAP", "eap")):  # capitals of another kind
        with pytest.raises(InputError, match=rf"Did you mean '{meant}'"):
            check("kind", value, one_of("OV", "QK", "K", "eap"), InputError)


@pytest.mark.parametrize(
    ("kind", "value", "meant"),
    [
        (whole(above=0), np.int64(3), 3),
        (whole(), np.uint8(7), 7),
        (whole(), torch.tensor(5), 5),
        (number(least=0), np.float32(0.5), 0.5),
        (number(), np.float64(0.25), 0.25),
        (number(), Fraction(1, 4), 0.25),
        (SWITCH, np.bool_(True), True),
    ],
)
def test_numbers_of_other_libraries_become_python_s(
    kind: Kind[Any], value: Any, meant: object
) -> None:
    got = check("x", value, kind, InputError)
    assert got == meant and type(got) is type(meant)


@pytest.mark.parametrize("value", [np.float64(2.0), np.bool_(True), torch.tensor([3]), "3"])
def test_other_values_stay_no_whole_numbers(value: Any) -> None:
    with pytest.raises(InputError, match="whole number"):
        check("x", value, whole(), InputError)


def test_numbers_within_become_python_s_too() -> None:
    given = {"a": (np.int64(1), [torch.tensor([2, 3])]), np.int64(4): None}
    made = plain(given)
    assert made == {"a": (1, [[2, 3]]), 4: None}
    assert json.loads(json.dumps(made)) == {"a": [1, [[2, 3]]], "4": None}
    keeps = object()
    assert plain(keeps) is keeps and plain(int) is int


def test_configurations_are_written_whatever_numbers_they_were_given(tmp_path: Path) -> None:
    config = nl.GPTNeoXConfig(
        hidden_size=np.int64(64),
        num_attention_heads=torch.tensor(4),
        layer_norm_eps=np.float32(0.5),
        rotary_pct=np.float64(0.5),
        rotary_emb_base=np.int64(1000),
        rope_scaling={"rope_type": "linear", "factor": np.float32(2.0)},
    )
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["hidden_size"] == 64 and written["layer_norm_eps"] == 0.5
    again = nl.GPTNeoXConfig.from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters
    assert again.rope_parameters["factor"] == 2.0


def test_whole_numbers_that_nothing_can_hold() -> None:
    for kind in (number(above=0), number(most=1), whole(), or_none(whole(above=0))):
        for value in (10**400, -(10**400), 10**5000, [10**5000]):
            with pytest.raises(InputError, match="expected a"):
                check("x", value, kind, InputError)
    assert check("x", 2**63 - 1, whole(), InputError) == 2**63 - 1
    assert check("x", 10**300, number(above=0), InputError) == 10**300
    with pytest.raises(InputError, match="expected a whole number"):
        check("x", 2**63, whole(), InputError)


def test_values_that_say_no_numbers_are_refused_in_words() -> None:
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    endless: list[object] = []
    endless.append(endless)
    tensors = (torch.ones(2, device="meta"), torch.ones(2).to_sparse(), torch.ones(2) * 1j)
    for value in (deep, endless, "x" * 10**6, *tensors):
        with pytest.raises(InputError) as caught:
            check("x", value, whole(), InputError)
        assert str(caught.value).endswith("expected a whole number.")
        assert len(str(caught.value)) < 300


def test_a_warning_can_be_sent_and_written_whatever_it_names() -> None:
    with pytest.warns(NeoxLabWarning) as told:
        warnings.warn("\ud800 é is NaN", NeoxLabWarning, stacklevel=1)
    assert str(told[0].message) == "\\ud800 é is NaN"


def test_columns_of_texts_are_lists_and_nothing_else_changes() -> None:
    texts = ["a b", "c"]
    columns = (
        pd.Series(texts, index=[7, 3]),
        pd.Index(texts),
        np.array(texts),
        np.array(texts, dtype=object),
    )
    for column in columns:
        assert listed_texts(column) == texts
    holed = listed_texts(pd.Series(["a", float("nan")], dtype=object))
    assert isinstance(holed, list) and holed[0] == "a"
    others: tuple[Any, ...] = (
        "a",
        np.str_("a"),
        ("a", "b"),
        None,
        torch.tensor([1]),
        np.array([1]),
        np.array("a"),
        pd.Series(dtype=object),
        pd.DataFrame({"a": texts}),
        {"a": texts},
        list,
    )
    for other in others:
        assert listed_texts(other) is other


def test_a_column_of_polars_is_a_list() -> None:
    polars = pytest.importorskip("polars")
    assert listed_texts(polars.Series(["a b", "c"])) == ["a b", "c"]


def test_ids_in_lists_and_arrays_are_told_how_to_become_tensors() -> None:
    assert ids_to_tensor([1, 2]).endswith("torch.tensor([ids]).")
    assert ids_to_tensor(np.array([[1, 2]])).endswith("torch.tensor(ids).")
    others: tuple[Any, ...] = ("a", ["a"], [], [[]], [1.5], [True], None, np.array([0.5]))
    for other in others:
        assert ids_to_tensor(other) == ""


def test_frames_hold_names_and_what_has_a_part_called_columns_holds_content() -> None:
    class DataSet:
        columns = ("text",)

        def __iter__(self) -> Iterator[str]:
            return iter(("a", "b"))

    row = namedtuple("row", ["rows", "columns"])("a", "b")
    for value in (DataSet(), row, pd.Series(["a", "b"], index=["rows", "columns"]), ["a", "b"]):
        assert not holds_names(value)
        assert several("texts", value, "texts", InputError) == ["a", "b"]
    frame = pd.DataFrame({"columns": ["a"], "b": ["c"]})
    for value in (frame, frame.iloc[:0], {"a": "b"}):
        assert holds_names(value)
        with pytest.raises(InputError, match="expected texts"):
            several("texts", value, "texts", InputError)


def test_what_cannot_be_listed_stays_for_whoever_refuses_it() -> None:
    class Broken:
        def tolist(self) -> list[str]:
            raise RuntimeError("broken")

    class Other:
        def tolist(self, name: str) -> list[str]:
            return [name]

    class Guarded:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("closed")

    for value in (Broken(), Other(), Guarded()):
        assert listed_texts(value) is value
        with pytest.raises(InputError, match="expected"):
            nl.load()(value)
