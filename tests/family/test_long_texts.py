"""Texts longer than the model was made for: each question says so, once, at the user's line."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import NeoxLabWarning
from neox_lab.experiments.metrics import logit_difference
from neox_lab.notices import gathered, tell

LONG = "The king went to the city." + " The king went to the city." * 2
SHORT = "The king went to the city."


@pytest.fixture(scope="module")
def model() -> Any:
    model = nl.load()
    model.config.max_position_embeddings = 12
    model.tokenizer.model_max_length = 12
    model.generation_config.eos_token_id = None
    return model


QUESTIONS: dict[str, Callable[[Any, Any], object]] = {
    "view": lambda model, text: nl.views.attention(model, text),
    "lens": lambda model, text: nl.lens.logit_lens(model, text),
    "logits": lambda model, text: model.run_with_cache(text),
    "hooks": lambda model, text: model.run_with_hooks(text),
    "sweep": lambda model, text: nl.patching.ablate(model, text, metric(" a"), progress=False),
    "attribution": lambda model, text: nl.attribution.occlusion(model, text, metric(" a")),
    "detection": lambda model, text: nl.detect.heads(model, "previous_token", text),
    "generate": lambda model, text: model.generate(text, max_new_tokens=1),
    "stream": lambda model, text: list(model.stream(text, max_new_tokens=1)),
}


def metric(token: str) -> Any:
    return logit_difference(token, " the")


def told(question: Callable[[Any, Any], object], model: Any, text: Any) -> list[Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        question(model, text)
    return [w for w in caught if issubclass(w.category, NeoxLabWarning)]


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("as_ids", [False, True])
def test_what_is_too_long_is_told_once_and_what_is_not_never(
    model: Any, name: str, as_ids: bool
) -> None:
    def given(text: str) -> Any:
        return (
            model.tokenizer(text, return_tensors="pt", verbose=False).input_ids if as_ids else text
        )

    [notice] = told(QUESTIONS[name], model, given(LONG))
    count = model.to_tokens(SHORT).shape[1]
    assert count < 12
    assert "the model was made for 12" in str(notice.message)
    assert Path(notice.filename) == Path(__file__)  # where the user can do something
    assert not told(QUESTIONS[name], model, given(SHORT))


def test_a_text_that_may_become_too_long_is_told(model: Any) -> None:
    [notice] = told(lambda m, text: m.generate(text, max_new_tokens=30), model, SHORT)
    count = model.to_tokens(SHORT).shape[1]
    assert f"may come to have {count + 30} tokens" in str(notice.message)
    assert not told(lambda m, text: m.generate(text), model, SHORT)  # as many as there is room for
    vectors = torch.zeros(1, 13, model.config.hidden_size)
    assert told(lambda m, given: m.run_with_hooks(given), model, vectors)


def test_notices_are_gathered_by_thread_and_each_once() -> None:
    with warnings.catch_warnings(record=True) as caught, gathered() as notices:
        warnings.simplefilter("always")
        tell("one")
        tell("two")
        tell("one")
        other = threading.Thread(target=tell, args=("elsewhere",))
        other.start()
        other.join()
        with gathered() as inner:
            tell("three")
    assert (notices, inner) == (["one", "two"], ["three"])
    assert [str(w.message) for w in caught] == ["elsewhere"]
    with pytest.warns(NeoxLabWarning, match="four"):
        tell("four")
