"""transformers' pipelines around both libraries' models and tokenizers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import numpy as np
from transformers import pipeline
from upstream.library import BASE, CAUSAL, SEQUENCE, TOKEN, load

from interop.surroundings import model_of

TEXTS = ["The quick brown fox", "Hello world, hello"]


def both(task: str, kind: str, folder: Any, **settings: Any) -> tuple[Any, Any]:
    """The pipeline of each library, on the same weights."""
    pipelines = []
    for name in ("transformers", "neox_lab"):
        library = load(name)
        tokenizer = library.GPTNeoXTokenizerFast.from_pretrained(folder)
        values: dict[str, Any] = {"vocab_size": len(tokenizer)}
        values["pad_token_id"] = tokenizer.pad_token_id
        values["eos_token_id"] = values["bos_token_id"] = tokenizer.eos_token_id
        model = model_of(library, kind, **values)
        pipelines.append(pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **settings))
    return pipelines[0], pipelines[1]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 6},
        {"max_new_tokens": 6, "num_beams": 2, "num_return_sequences": 2},
        {"max_new_tokens": 6, "return_full_text": False},
        {"max_new_tokens": 4, "return_tensors": True},
        {"max_new_tokens": 4, "batch_size": 2},
        {"max_length": 12, "max_new_tokens": None},
        {"max_new_tokens": 6, "stop_sequence": "e"},
    ],
    ids=str,
)
def test_text_generation(arguments: dict[str, Any], tokenizer_folder: Any) -> None:
    theirs, ours = both("text-generation", CAUSAL, tokenizer_folder)
    settings = {"do_sample": False} | arguments
    assert ours(TEXTS, **settings) == theirs(TEXTS, **settings)


def test_text_generation_as_the_pipeline_does_by_default(tokenizer_folder: Any) -> None:
    _, ours = both("text-generation", CAUSAL, tokenizer_folder)
    (answer,) = ours(TEXTS[0], max_new_tokens=5)
    assert answer["generated_text"].startswith(TEXTS[0])


def test_text_classification(tokenizer_folder: Any) -> None:
    theirs, ours = both("text-classification", SEQUENCE, tokenizer_folder, top_k=None)
    for got, expected in zip(ours(TEXTS), theirs(TEXTS), strict=True):
        assert [entry["label"] for entry in got] == [entry["label"] for entry in expected]
        scores = ([entry["score"] for entry in side] for side in (got, expected))
        np.testing.assert_allclose(*scores, rtol=1e-5)


def test_token_classification(tokenizer_folder: Any) -> None:
    theirs, ours = both("token-classification", TOKEN, tokenizer_folder)
    for got, expected in zip(ours(TEXTS), theirs(TEXTS), strict=True):
        for mine, wanted in zip(got, expected, strict=True):
            assert mine["score"] == pytest.approx(wanted["score"], rel=1e-5)
            # A leading space belongs to no token of ours, see docs/differences.md.
            for name in ("entity", "index", "word", "end"):
                assert mine[name] == wanted[name]


def test_feature_extraction(tokenizer_folder: Any) -> None:
    theirs, ours = both("feature-extraction", BASE, tokenizer_folder)
    for got, expected in zip(ours(TEXTS), theirs(TEXTS), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
