"""Long questions say in which layer they are; short ones, and models in memory, nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, tokens, written

import neox_lab as nl
from neox_lab import progress
from neox_lab.progress import Progress

METRIC = nl.patching.logit_difference(3, 4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Where lines are written within ``redirect_stderr``; each look at the clock takes seconds."""
    made, now = Terminal(), [0.0]

    def clock() -> float:
        now[0] += 2
        return now[0]

    monkeypatch.setattr(Progress, "_clock", staticmethod(clock))
    return made


def test_a_pass_says_which_layer_it_is_at(tmp_path: Path, terminal: Terminal) -> None:
    _, streamed, _ = both(written(tmp_path))  # the first of five layers is in memory
    with redirect_stderr(terminal):
        streamed(tokens())
    counts = re.findall(r"(\d)/5 layers · .*? s left", terminal.getvalue())
    assert counts == ["2", "3", "4", "5"]
    assert terminal.getvalue().split("\r")[-2].strip() == ""


def test_generation_counts_tokens_and_their_layers(tmp_path: Path, terminal: Terminal) -> None:
    whole, streamed, _ = both(written(tmp_path))
    asked = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with redirect_stderr(terminal):
        found = streamed.generate(tokens(1), **asked)
    lines = terminal.getvalue().split("\r")
    assert any("1/3 tokens" in line and "3/5 layers" in line for line in lines)
    assert torch.equal(whole.generate(tokens(1), **asked), found)


QUESTIONS: dict[str, Callable[..., Any]] = {
    "sweep": lambda model, **more: nl.patching.sweep(
        model, tokens(1), tokens(1, seed=4), METRIC, **more
    ),
    "ablation": lambda model, **more: nl.patching.ablate(model, tokens(), METRIC, **more),
    "edges": lambda model, **more: nl.patching.edge_sweep(
        model, tokens(1), tokens(1, seed=4), METRIC, "mlps", "mlps", **more
    ),
    "paths": lambda model, **more: nl.patching.path_patch(
        model, tokens(1), tokens(1, seed=4), METRIC, **more
    ),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_climb_says_which_layer_it_is_at(
    question: str, tmp_path: Path, terminal: Terminal
) -> None:
    for model in both(written(tmp_path))[:2]:
        with redirect_stderr(terminal):
            QUESTIONS[question](model, progress=False)
            assert terminal.getvalue() == ""
            QUESTIONS[question](model)
        lines = terminal.getvalue().split("\r")
        last = LAYERS - 1
        assert any(f"in layer {last} of 0 to {last}" in line and " left" in line for line in lines)
        assert not any("/5 layers" in line for line in lines)  # passes of one layer count nothing
        terminal.truncate(0)


def test_a_model_in_memory_makes_no_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, streamed, _ = both(written(tmp_path))

    def refuse(self: Progress, *_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(progress.Progress, "__init__", refuse)
    whole(tokens())
    whole.generate(tokens(1), max_new_tokens=2)
    with pytest.raises(AssertionError):
        streamed(tokens())


def test_short_passes_are_silent(tmp_path: Path) -> None:
    terminal = Terminal()
    _, streamed, _ = both(written(tmp_path))
    with redirect_stderr(terminal):
        streamed.generate(tokens(1), max_new_tokens=2)
    assert terminal.getvalue() == ""
