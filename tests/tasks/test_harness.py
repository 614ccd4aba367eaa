"""The adapter for the evaluation harness: its rules, and, where it is installed, the real thing."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.tasks import harness, likelihood

TEXT = "The people of the United States are the rightful masters of both Congress and the courts."


@cache
def model() -> Any:
    return nl.load()


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The adapter over a stand-in for the harness's base class."""
    stand_in = ModuleType("lm_eval.api.model")
    stand_in.LM = type("LM", (), {"rank": 0})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", stand_in)
    found = harness.adapter(model(), batch_size=2)
    assert isinstance(found, stand_in.LM)
    return found


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def test_continuations_and_whole_texts(adapted: Any) -> None:
    pairs = [("The people of the", " United States"), ("", "The king"), ("It is ", "the duty")]
    frame = likelihood.continuations(model(), pairs)
    found = adapted.loglikelihood([asked(*pair) for pair in pairs])
    assert [value for value, _ in found] == pytest.approx(frame["log_probability"].tolist())
    assert [greedy for _, greedy in found] == frame["greedy"].tolist()
    assert adapted.loglikelihood([]) == []

    short, empty = adapted.loglikelihood_rolling([asked(TEXT), asked("")])
    ids = [model().tokenizer.eos_token_id, *model().tokenizer(TEXT).input_ids]
    with torch.no_grad():
        scores = model()(torch.tensor([ids[:-1]])).logits[0].log_softmax(dim=-1)
    expected = scores.gather(-1, torch.tensor(ids[1:])[:, None]).sum().item()
    assert short == pytest.approx(expected, abs=1e-3)
    assert empty == 0


def test_long_texts_are_cut_as_the_harness_cuts_them(adapted: Any) -> None:
    """Disjoint stretches of all positions, the last one with as much before it as fits."""
    longest = model().config.max_position_embeddings
    text = TEXT * (2 * longest // len(model().tokenizer(TEXT).input_ids) + 1)
    ids = [model().tokenizer.eos_token_id, *model().tokenizer(text).input_ids]
    assert len(ids) > 2 * longest
    total, at = 0.0, 1
    while at < len(ids):
        end = min(len(ids), at + longest)
        begin = end - longest - 1
        with torch.no_grad():
            scores = model()(torch.tensor([ids[begin : end - 1]])).logits[0].log_softmax(dim=-1)
        total += sum(float(scores[i - begin - 1, ids[i]]) for i in range(at, end))
        at = end
    assert adapted.loglikelihood_rolling([asked(text)]) == pytest.approx([total], rel=1e-5)


def test_answers_end_where_they_should(adapted: Any) -> None:
    tokens = model().to_tokens(TEXT)
    written = model().generate(tokens, max_new_tokens=12)[0, tokens.shape[1] :]
    whole = model().tokenizer.decode(written.tolist(), skip_special_tokens=True)
    assert adapted.generate_until([asked(TEXT, {"max_gen_toks": 12})]) == [whole]
    stop = whole[len(whole) // 2 :]
    assert stop
    (cut,) = adapted.generate_until([asked(TEXT, {"until": [stop], "max_gen_toks": 12})])
    assert cut == whole.split(stop)[0]
    long = TEXT * 60
    assert adapted.generate_until([asked(long, {"until": "zzz", "max_new_tokens": 3})])[0]
    assert isinstance(adapted.generate_until([asked("", {"max_gen_toks": 2})])[0], str)
    with pytest.raises(InputError, match="asks for 9999 new tokens"):
        adapted.generate_until([asked(TEXT, {"max_gen_toks": 9999})])


def test_what_cannot_be_adapted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="expected 'causal-lm'"):
        harness.adapter(nl.load(head="base"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(InputError, match=r"pip install 'neox_lab\[eval\]'"):
        harness.adapter(model())


@pytest.mark.slow
def test_the_harness_itself_gives_what_it_gives_with_transformers(tmp_path: Path) -> None:
    """One multiple choice task, from a file, with our model and with the harness's own one."""
    evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm-eval is not installed")
    from lm_eval.models.huggingface import HFLM

    rows = [
        {"q": "The people of the", "options": ["United States", "zebra"], "right": 0},
        {"q": "It is the duty of every", "options": ["xylophone", "man"], "right": 1},
        {"q": "The capital of France is ", "options": ["Paris", "London"], "right": 0},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    task = {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "{{right}}",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in ("acc", "acc_norm")
        ],
    }
    directory = nl.gym.weights_directory()
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(directory),
        tokenizer=transformers.AutoTokenizer.from_pretrained(directory),
        device="cpu",
    )
    runs = [
        evaluator.simple_evaluate(model=one, tasks=[dict(task)], bootstrap_iters=0)
        for one in (harness.adapter(model()), theirs)
    ]
    results = [run["results"]["tiny"] for run in runs]
    assert results[0]["acc,none"] == results[1]["acc,none"]
    assert results[0]["acc_norm,none"] == results[1]["acc_norm,none"]
    scores = [
        [answer[0][0] for row in run["samples"]["tiny"] for answer in row["resps"]] for run in runs
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
