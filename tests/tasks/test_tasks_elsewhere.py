"""Likelihoods and the harness's requests, answered by workers: the numbers of one process."""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from backwards import Backwards

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.tasks import harness, likelihood, scoring

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = "The people of the United States are the rightful masters of both Congress".split()
TEXTS = [" ".join(WORDS[start : start + 2 + length]) for start in range(5) for length in range(7)]
PAIRS = [(text, " " + word) for text in TEXTS[::3] for word in WORDS[:2]]


@cache
def model() -> Any:
    return nl.load()


def same(one: Any, other: Any) -> None:
    pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)
    assert one.metrics == other.metrics


def test_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "TOGETHER", 2)
    executor = Backwards()
    settings: dict[str, Any] = {"context": 6, "stride": 2, "batch_size": 4}
    there = likelihood.perplexity(model(), TEXTS, **settings, executor=executor)
    same(there, likelihood.perplexity(model(), TEXTS, **settings))
    assert len(executor.sent) > 5
    pd.testing.assert_frame_equal(
        likelihood.continuations(model(), PAIRS, 3, executor),
        likelihood.continuations(model(), PAIRS, 3),
        check_exact=True,
    )
    asked = TEXTS[:4], [[" the", " of"]] * 4, [0, 1, 1, 0]
    same(likelihood.choose(model(), *asked, executor=executor), likelihood.choose(model(), *asked))
    same(
        likelihood.last_word(model(), TEXTS, executor=executor),
        likelihood.last_word(model(), TEXTS),
    )


def test_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("lm_eval.api.model")
    stand_in.LM = type("LM", (), {"rank": 0})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", stand_in)
    executor = Backwards()
    here = harness.adapter(model(), 3)
    there = harness.adapter(model(), 3, executor)
    pairs = [SimpleNamespace(args=pair) for pair in PAIRS]
    assert there.loglikelihood(pairs) == here.loglikelihood(pairs)
    texts = [SimpleNamespace(args=(text,)) for text in ["", " ".join(TEXTS * 4), *TEXTS[:5]]]
    assert there.loglikelihood_rolling(texts) == here.loglikelihood_rolling(texts)
    wanted: list[dict[str, Any]] = [
        {"until": ["."], "max_gen_toks": 8},
        {"max_gen_toks": 4, "do_sample": True, "temperature": 1.0},
        {"max_gen_toks": 5},
    ]
    requests = [SimpleNamespace(args=(text, each)) for text in TEXTS[:3] for each in wanted]
    before = len(executor.sent)
    torch.manual_seed(3)
    found = there.generate_until(requests)
    torch.manual_seed(3)
    assert found == here.generate_until(requests)
    assert len(executor.sent) - before == 6  # what is drawn, is drawn here
    assert there.generate_until([]) == []
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        harness.adapter(model(), executor=3)  # type: ignore[arg-type]


def test_models_that_nobody_could_load_again() -> None:
    made = nl.GPTNeoXForCausalLM(model().config.__class__.from_dict(model().config.to_dict()))
    made.config.name_or_path = ""
    made.tokenizer = model().tokenizer
    with pytest.raises(InputError, match="made here and came from no folder"):
        likelihood.perplexity(made.eval(), TEXTS, executor=Backwards())
