"""Every public question, asked of a model whose layers are read from a file: the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from settings64 import CLASSES, build
from test_padding_rows import HEADS, QUESTIONS, Given
from torch import Tensor

import neox_lab as nl
from neox_lab.gym import planting
from neox_lab.streaming import store_of

LAYERS = 3
ON_DISK = {"": "cpu", **dict.fromkeys(range(LAYERS), "disk")}
SETTINGS = {"parallel": "default", "sequential, tied": "sequential"}
WIRINGS = [pytest.param("parallel", marks=pytest.mark.slow), "sequential, tied"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any) -> Any:
    """By settings and head a model in memory and streamed, made when they are asked for."""
    made: dict[tuple[str, str], tuple[Any, Any]] = {}

    def both(settings: str, head: str) -> tuple[Any, Any]:
        if (settings, head) not in made:
            made[settings, head] = pair(settings, head, tmp_path_factory.mktemp("model"))
        return made[settings, head]

    return both


def pair(settings: str, head: str, folder: Path) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "num_hidden_layers": LAYERS}
    if head == "token-classification":
        sizes["id2label"] = {0: "O", 1: "B-PERSON", 2: "I-PERSON"}
    model, _ = build(SETTINGS[settings], head, **sizes)
    model.save_pretrained(folder)
    kind = getattr(nl, CLASSES[head])
    found = kind.from_pretrained(folder), kind.from_pretrained(folder, device_map=ON_DISK)
    for each in found:
        each.tokenizer = planting.tokenizer()
    assert store_of(found[0]) is None
    return found


def numbers(answer: list[list[Any]]) -> Iterator[Any]:
    for row in answer:
        yield from row


@pytest.mark.parametrize("settings", WIRINGS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_streamed_model_answers_as_one_in_memory(
    models: Any, question: str, settings: str
) -> None:
    whole, streamed = models(settings, HEADS.get(question, "causal-lm"))
    expected, found = (
        list(numbers(QUESTIONS[question](Given(model, [0, 1, 2], "left"))))
        for model in (whole, streamed)
    )
    assert len(found) == len(expected) > 0
    for got, wanted in zip(found, expected, strict=True):
        if isinstance(wanted, Tensor):
            assert torch.equal(got.nan_to_num(9e9), wanted.nan_to_num(9e9))
        else:
            assert got == wanted
    assert not streamed.hook_stack.placements
    store = store_of(streamed)
    assert store is not None
    # Once everything is answered, nothing holds more than two layers.
    streamed(torch.ones(1, 2, dtype=torch.long))
    assert store.nbytes == 2 * 8 * sum(
        weight.numel() for weight in whole.backbone.block(0).parameters() if weight.dim() > 1
    )
