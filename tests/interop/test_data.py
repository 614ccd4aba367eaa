"""transformers' collators and the datasets library around both libraries' tokenizers and models."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs what `pip install -e '.[interop]'` brings")

import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from oracle import same
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    DefaultDataCollator,
)
from upstream.conftest import TEXTS
from upstream.library import Library, ids, load

from interop.surroundings import model_of


@pytest.fixture
def tokenizers(tokenizer_folder: Any) -> list[Any]:
    """Transformers' tokenizer and ours."""
    return [
        load(name).GPTNeoXTokenizerFast.from_pretrained(tokenizer_folder)
        for name in ("transformers", "neox_lab")
    ]


def features(tokenizer: Any, labels: bool = False) -> list[dict[str, Any]]:
    """What a data set holds: one dictionary a text."""
    rows = [dict(tokenizer(text)) for text in TEXTS]
    for row in rows:
        row.pop("token_type_ids", None)
        if labels:
            row["labels"] = list(row["input_ids"])
    return rows


def assert_same_batch(got: Any, expected: Any) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(got[name], value), name
        else:
            assert got[name] == value, name


@pytest.mark.parametrize(
    ("collator", "labels"),
    [
        (lambda t: DataCollatorWithPadding(t), False),
        (lambda t: DataCollatorWithPadding(t, pad_to_multiple_of=8), False),
        (lambda t: DataCollatorWithPadding(t, padding="max_length", max_length=50), False),
        (lambda t: DataCollatorForLanguageModeling(t, mlm=False), False),
        (lambda t: DataCollatorForLanguageModeling(t, mlm=False, pad_to_multiple_of=8), False),
        (lambda t: DataCollatorForTokenClassification(t), True),
        (lambda t: DataCollatorForSeq2Seq(t), True),
    ],
    ids=["padding", "multiple", "longest", "language", "language multiple", "token", "sequence"],
)
def test_collators(collator: Any, labels: bool, tokenizers: list[Any]) -> None:
    theirs, ours = (collator(t)(features(t, labels)) for t in tokenizers)
    assert_same_batch(ours, theirs)


def test_masked_language_modelling_draws_the_same(tokenizers: list[Any]) -> None:
    batches = []
    for tokenizer in tokenizers:
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        torch.manual_seed(0)
        batches.append(DataCollatorForLanguageModeling(tokenizer)(features(tokenizer)))
    assert_same_batch(batches[1], batches[0])


def test_the_padding_side_is_the_tokenizers(tokenizers: list[Any]) -> None:
    batches = []
    for tokenizer in tokenizers:
        tokenizer.padding_side = "left"
        batches.append(DataCollatorWithPadding(tokenizer)(features(tokenizer)))
    assert_same_batch(batches[1], batches[0])


def test_texts_packed_by_a_collator_are_kept_apart() -> None:
    rows = [{"input_ids": row.tolist()} for row in ids(3, 5)]
    batch = DataCollatorWithFlattening()(rows)
    theirs, ours = (model_of(load(name))(**batch) for name in ("transformers", "neox_lab"))
    same(ours.logits, theirs.logits)
    same(ours.loss, theirs.loss)


def test_a_default_collator_feeds_a_model() -> None:
    rows = [{"input_ids": row, "labels": row} for row in ids(3, 5).tolist()]
    batch = DefaultDataCollator()(rows)
    theirs, ours = (model_of(load(name))(**batch) for name in ("transformers", "neox_lab"))
    same(ours.loss, theirs.loss)


@pytest.mark.parametrize("processes", [None, 2])
def test_a_data_set_is_mapped_by_a_tokenizer(tokenizers: list[Any], processes: int | None) -> None:
    results = []
    for tokenizer in tokenizers:
        rows = Dataset.from_dict({"text": TEXTS})

        def encode(batch: dict[str, Any], tokenizer: Any = tokenizer) -> Any:
            return tokenizer(batch["text"], truncation=True, max_length=12)

        results.append(rows.map(encode, batched=True, num_proc=processes, remove_columns="text"))
    theirs, ours = results
    assert ours.to_dict() == theirs.to_dict()
    assert ours.features == theirs.features


def test_a_tokenizer_keeps_its_fingerprint(tokenizer: Any) -> None:
    """Otherwise a data set is mapped again in every session, instead of being read from disk."""
    before = Hasher.hash(tokenizer)
    assert Hasher.hash(copy.deepcopy(tokenizer)) == before
    assert Hasher.hash(pickle.loads(pickle.dumps(tokenizer))) == before


def test_a_data_set_is_mapped_by_a_model(library: Library) -> None:
    model, inputs = model_of(library), ids(4, 6)
    rows = Dataset.from_dict({"input_ids": inputs.tolist()}).with_format("torch")

    @torch.no_grad()
    def last(batch: dict[str, Any]) -> dict[str, Any]:
        return {"logits": model(batch["input_ids"]).logits[:, -1]}

    mapped = rows.map(last, batched=True, batch_size=2)
    same(mapped[:]["logits"], model(inputs).logits[:, -1].detach())


def test_a_model_can_be_pickled_and_copied(library: Library) -> None:
    model, inputs = model_of(library), ids(2, 6)
    expected = model(inputs)
    same(pickle.loads(pickle.dumps(model))(inputs).logits, expected.logits)
    same(copy.deepcopy(model)(inputs).logits, expected.logits)
    output = pickle.loads(pickle.dumps(model(inputs, use_cache=False)))
    assert type(output) is type(expected)
    same(output.logits, expected.logits)
