"""No answer depends on ``torch.set_default_dtype``, which other code of a notebook may have called.

Tensors are made with a dtype, never with whatever is the default just now: read from the source,
and asked of every public question.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache, partial
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
        filled = name == "full" and not isinstance(ast.literal_eval(_number(node)), bool | int)
        if name in MAKERS or filled:
            yield ast.unparse(node)


def _number(call: ast.Call) -> ast.expr:
    """What a tensor is filled with; where only running tells, a number with a fraction."""
    fill = call.args[1] if len(call.args) > 1 else None
    try:
        ast.literal_eval(fill or "")
    except (ValueError, SyntaxError):
        return ast.Constant(0.5)
    assert fill is not None
    return fill


def test_calls_are_recognised() -> None:
    source = "torch.zeros(3); torch.full((2,), -1.0); torch.full((2,), -1); torch.eye(2, dtype=d)"
    source += "; torch.full((2,), BEGIN); torch.full((2,), True)"
    expected = ["torch.zeros(3)", "torch.full((2,), -1.0)", "torch.full((2,), BEGIN)"]
    assert list(left_to_the_default(source)) == expected


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


def _trained(kind: str) -> dict[str, torch.Tensor]:
    found = nl.sae.train(ROWS, latents=32, kind=kind, steps=10)
    return {"history": found.history, "W_dec": found.dictionary.W_dec.detach()}


def _pruned() -> dict[str, torch.Tensor]:
    model = nl.load()
    pairs = nl.gym.pairs(model, "agreement", 2)
    metric = nl.patching.logit_difference([p.correct for p in pairs], [p.wrong for p in pairs])
    clean, corrupted = [p.clean for p in pairs], [p.corrupted for p in pairs]
    found = nl.circuits.prune_edges(model, clean, corrupted, metric, 200, steps=10, progress=False)
    return {"masks": found.masks}


ROWS = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
MADE: dict[str, Any] = {
    "planted": lambda: nl.gym.planted().state_dict(),
    "planted_ioi": lambda: nl.gym.planted_ioi().model.state_dict(),
    "planted_two_step": lambda: nl.gym.planted_two_step().model.state_dict(),
    "planted_variable": lambda: nl.gym.planted_variable().state_dict(),
    **{
        f"sae.train, {kind}": partial(_trained, kind)
        for kind in ("topk", "batchtopk", "jumprelu", "relu")
    },
    "prune_edges": _pruned,
}


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MADE)
def test_what_is_made_is_the_same(name: str, default: torch.dtype) -> None:
    usual = MADE[name]()
    torch.set_default_dtype(default)
    try:
        other = MADE[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(usual) == list(other)
    for key, tensor in usual.items():
        assert other[key].dtype == tensor.dtype, key
        assert torch.equal(other[key], tensor), key
