"""Every public question, asked of a model whose layers are on several devices: the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from logical_devices import AWAY, HOME, LogicalDevices
from settings64 import CLASSES, build, close
from test_padding_rows import HEADS, QUESTIONS, Given
from torch import Tensor

from neox_lab.gym import planting

DEVICES = (AWAY, HOME, AWAY)
SETTINGS = {"parallel": "default", "sequential, tied": "sequential"}
WIRINGS = [pytest.param("parallel", marks=pytest.mark.slow), "sequential, tied"]


@pytest.fixture(scope="module")
def models() -> Any:
    """By settings and head a model, made when it is asked for."""
    made: dict[tuple[str, str], Any] = {}

    def one(settings: str, head: str) -> Any:
        if (settings, head) not in made:
            sizes: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0}
            sizes["num_hidden_layers"] = len(DEVICES)
            if head == "token-classification":
                sizes["id2label"] = {0: "O", 1: "B-PERSON", 2: "I-PERSON"}
            assert CLASSES[head]
            model, _ = build(SETTINGS[settings], head, **sizes)
            model.tokenizer = planting.tokenizer()
            made[settings, head] = model
        return made[settings, head]

    return one


@contextmanager
def spread(model: Any) -> Iterator[LogicalDevices]:
    with LogicalDevices() as devices:
        for layer, device in enumerate(DEVICES):
            devices.put(model.backbone.block(layer), device)
        model.backbone.devices = DEVICES
        try:
            yield devices
        finally:
            model.backbone.devices = None


@pytest.mark.parametrize("settings", WIRINGS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_spread_model_answers_as_one_on_one_device(
    models: Any, question: str, settings: str
) -> None:
    model = models(settings, HEADS.get(question, "causal-lm"))
    expected = [
        each for row in QUESTIONS[question](Given(model, [0, 1, 2], "left")) for each in row
    ]
    with spread(model) as devices:
        answer = QUESTIONS[question](Given(model, [0, 1, 2], "left"))
        found = [each.cpu() if isinstance(each, Tensor) else each for row in answer for each in row]
        assert devices.moves
    assert len(found) == len(expected) > 0
    for got, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, Tensor):
            close(got.nan_to_num(9e9), wanted.nan_to_num(9e9))
        else:
            assert got == wanted
