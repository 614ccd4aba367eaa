"""Hostile values for every argument of every public function: an answer, or an error in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import MODEL, calls, public
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from judge import SAME, outcome
from values import HOSTILE

from neox_lab.errors import NeoxLabError

Calls = dict[str, tuple[Callable[..., Any], dict[str, Any]]]

SMALL, LARGE = 700, 25_000

ELSEWHERE = {
    "write_report": "writes; see report",
    "collect": "writes; called for a new folder, as _collect",
    "page": "writes; called as _page",
    "pages": "writes; called for a new folder, as _pages",
    "course_model": "takes nothing",
    "course_training": "takes nothing",
    "dictionary_card": "takes nothing",
    "exercises": "takes nothing",
    "named_features": "takes nothing",
    "revisions": "takes nothing",
    "planted": "takes nothing",
    "planted_induction": "takes nothing",
    "planted_variable": "takes nothing",
    "run": "takes exchanges one after another, as calls_of_interchange does",
    "steer": "a context, entered in calls_of_steering",
    "tensor_measure": "takes names one after another, as _tensor_measure",
    "reads_only": "a decorator of functions",
    "explore": "makes a widget, as all of nl.widgets do",
    "logit_difference": "called with a model, as _difference",
}
"""Public functions that are not called here, and why."""


LONG = {
    ("attribution.occlusion", "inputs", "digits"),  # runs the model once for each of 4500 tokens
    ("features.effects one by one", "inputs", "digits"),  # likewise
    ("generate", "max_new_tokens", "2**31"),
}
"""What takes long and is right."""

OF_TORCH = ("meta tensor", "meta ids", "sparse tensor", "ids out of range")
"""What a forward pass leaves to PyTorch to refuse: looking for it would take time in each."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    return calls(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hostile names of folders are made where nobody misses them."""
    monkeypatch.chdir(tmp_path)


def attack(good: Calls, count: int) -> None:
    """Replace one argument at a time, ``count`` times."""
    places = [(name, argument) for name, (_, given) in good.items() for argument in given]
    before = [parameter.detach().clone() for parameter in MODEL.parameters()]

    @settings(max_examples=count, database=None, derandomize=SAME)
    @given(st.sampled_from(places), st.sampled_from(sorted(HOSTILE)))
    def run(place: tuple[str, str], value: str) -> None:
        assume((*place, value) not in LONG)
        assume(place[0] != "forward" or value not in OF_TORCH)
        name, argument = place
        function, arguments = good[name]
        outcome(lambda: function(**{**arguments, argument: HOSTILE[value]()}))
        assert MODEL.hook_stack.placements == [], "a hook was left"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()
    for parameter, old in zip(MODEL.parameters(), before, strict=True):
        assert torch.equal(parameter, old), "the model was changed"
        assert parameter.grad is None


def test_hostile_arguments(good: Calls) -> None:
    attack(good, SMALL)


@pytest.mark.slow
def test_many_hostile_arguments(good: Calls) -> None:
    attack(good, LARGE)


def test_good_calls_are_good(good: Calls) -> None:
    """Else an error of theirs would hide what their other arguments do."""
    missing = ("load", "views.clean_notebook", "views.notebook_faults")  # name what is not there
    for name, (function, arguments) in good.items():
        answer = outcome(lambda f=function, a=arguments: f(**a))  # type: ignore[misc]
        assert isinstance(answer, NeoxLabError) == (name in missing), (name, answer)


def test_every_public_function_is_called(good: Calls) -> None:
    called = {function for function, _ in good.values()}
    kinds = ("widgets.", "patching.get_act_patch_")
    left = [
        name
        for name, value in public().items()
        if not isinstance(value, type) and value not in called and not name.startswith(kinds)
    ]
    assert [name for name in left if name.rpartition(".")[2] not in ELSEWHERE] == []
