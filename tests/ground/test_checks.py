"""Checks of settings: what each kind takes, and what its message says."""

from __future__ import annotations

import math

import pytest

from neox_lab.checks import SWITCH, TEXT, Kind, check, list_of, number, one_of, or_none, whole
from neox_lab.errors import ConfigError, InputError

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
