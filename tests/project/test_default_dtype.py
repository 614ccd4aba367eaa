"""No answer depends on ``torch.set_default_dtype``, which other code of a notebook may have called.

Tensors are made with a dtype, never with whatever is the default just now: read from the source,
and asked of every public question.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import test_dropout_gate as gate
import torch
from dictionaries import random_dictionary
from rooms import PACKAGE

import neox_lab as nl
from neox_lab.errors import NeoxLabError

MAKERS = ("zeros", "ones", "empty", "eye", "rand", "randn", "linspace", "logspace", "normal")
ASKED = [name for name in gate.QUESTIONS if not name.startswith("patching.get_act_patch")]


def left_to_the_default(source: str) -> Iterator[str]:
    """Calls that make numbers with a fraction in whatever dtype is the default."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        module, _, name = ast.unparse(node.func).rpartition(".")
        if module != "torch" or {word.arg for word in node.keywords} & {"dtype", "out"}:
            continue
        fill = ast.unparse(node.args[1]) if name == "full" and len(node.args) > 1 else ""
        if name in MAKERS or any(part in fill for part in (".", "nan", "inf")):
            yield ast.unparse(node)


def test_calls_are_recognised() -> None:
    source = "torch.zeros(3); torch.full((2,), -1.0); torch.full((2,), -1); torch.eye(2, dtype=d)"
    assert list(left_to_the_default(source)) == ["torch.zeros(3)", "torch.full((2,), -1.0)"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_every_tensor_is_made_with_a_dtype(path: Path) -> None:
    whole_numbers = {  # filled with one
        "torch.full((len(prompts.ids),), prompts.ids.shape[1] - 1)",
    }
    assert set(left_to_the_default(path.read_text())) <= whole_numbers


def answer(name: str) -> object:
    """What a question finds, or why there is nothing to find."""
    model = nl.load()
    torch.manual_seed(0)
    try:
        found: Any = gate.QUESTIONS[name](model)
    except NeoxLabError as error:
        return str(error)
    return getattr(found, "frame", found)


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
@pytest.mark.parametrize("name", [name for name in ASKED if name != "activations.collect"])
def test_a_question_has_the_same_answer(
    name: str, default: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "random_dictionary", cache(random_dictionary))  # one for both
    usual = answer(name)
    torch.set_default_dtype(default)
    try:
        other = answer(name)
    finally:
        torch.set_default_dtype(torch.float32)
    assert type(other) is type(usual)
    if isinstance(usual, pd.DataFrame):
        pd.testing.assert_frame_equal(other, usual)
    elif isinstance(usual, torch.Tensor):
        assert torch.equal(other, usual)
        assert other.dtype == usual.dtype
    else:
        assert repr(other) == repr(usual)
