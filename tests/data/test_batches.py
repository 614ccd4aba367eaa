"""Padding, batches of similar length, and positions in each text's own tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SIZES, pair, randomize
from transformers import GPTNeoXTokenizerFast as Theirs

import neox_lab as nl
from neox_lab.built_in import weights_directory
from neox_lab.data.batches import by_length, evaluating, outputs, padded
from neox_lab.data.encoding import pad_rows, token_ids, token_spans
from neox_lab.data.positions import positions
from neox_lab.errors import InputError, TokenizerError

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=9), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, left=st.booleans())
def test_rows_are_padded_as_pytorch_pads_them(rows: list[list[int]], left: bool) -> None:
    ids, mask = pad_rows(rows, 7, "left" if left else "right")
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    for got, sequences, fill in ((ids, tensors, 7), (mask, [t * 0 + 1 for t in tensors], 0)):
        wanted = torch.nn.utils.rnn.pad_sequence(
            sequences,
            batch_first=True,
            padding_value=fill,
            padding_side="left" if left else "right",
        )
        assert got.dtype == torch.long
        assert torch.equal(got, wanted)


@cache
def plain() -> Any:
    return pair("GPTNeoXModel")[1]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), max_size=20), size=st.integers(1, 5))
def test_batches_by_length_hold_every_row_once_the_longest_first(
    lengths: list[int], size: int
) -> None:
    batches = list(by_length(plain(), lengths, size))
    order = [row for batch in batches for row in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == size for batch in batches[:-1])


LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1],
    "long_factor": [3.0, 7.0],
    "original_max_position_embeddings": 6,
}


@pytest.mark.parametrize("scaling", [LONGROPE, {"rope_type": "dynamic", "factor": 4.0}])
def test_no_text_is_read_otherwise_beside_longer_ones(scaling: dict[str, Any]) -> None:
    """Where the rotary embedding looks at the longest text of a batch."""
    sizes = {"max_position_embeddings": 6} if scaling["rope_type"] == "dynamic" else {}
    rope = {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, **scaling}
    model = nl.GPTNeoXForTokenClassification(
        nl.GPTNeoXConfig(**SIZES | sizes, rope_parameters=rope, num_labels=3)
    ).eval()
    randomize(model)
    rows = [{"input_ids": list(range(2, 2 + length))} for length in (3, 6, 7, 12, 5, 12, 9)]
    together = outputs(model, rows, 16, ["logits"])
    moved = []
    for row, found in zip(rows, together, strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([row["input_ids"]])).logits[0]
            padded_ids = torch.tensor([row["input_ids"] + [1] * (12 - len(row["input_ids"]))])
            beside = model(padded_ids).logits[0, : len(alone)]
        torch.testing.assert_close(found["logits"], alone, rtol=0, atol=1e-4)
        moved.append(float((beside - alone).abs().max()))
    assert max(moved) > 0.005  # a long neighbour would have changed the short ones


def test_a_batch_fills_labels_with_minus_100_and_leaves_notes_out() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [1, 2, 3], "start": 1, "_text": "a"},
        {"input_ids": [8], "labels": [4], "start": 0, "_text": "b"},
    ]
    batch = padded(rows, pad_token_id=0)
    assert list(batch) == ["input_ids", "labels", "start", "attention_mask"]
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["start"].tolist() == [1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tokens_and_their_characters_are_those_of_the_tokenizer() -> None:
    model = nl.load()
    texts = ["Mary went home.", "", "x" * 3000]
    theirs = Theirs.from_pretrained(weights_directory())
    assert token_ids(model, texts) == theirs(texts).input_ids
    assert token_ids(model, []) == []
    read = token_spans(model, texts[0])
    assert read.ids == theirs(texts[0]).input_ids
    words = [theirs.decode([number]).strip() for number in read.ids]
    assert [texts[0][low:high] for low, high in read.spans] == words
    model.tokenizer = None
    with pytest.raises(TokenizerError, match="no tokenizer"):
        token_ids(model, texts)


def test_evaluation_mode_ends_with_the_block_also_after_an_error() -> None:
    model = nl.load().train()
    modes = []

    def fail() -> None:
        with evaluating(model):
            modes.append(model.training)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [*modes, model.training] == [False, True]


def test_positions_count_each_texts_own_tokens() -> None:
    assert positions(-1, [3, 5]) == [2, 4]
    assert positions([0, -2], [3, 5]) == positions(torch.tensor([0, 3]), [3, 5]) == [0, 3]
    for wrong, message in (
        (3, "text 0 has 3 tokens and no position 3"),
        ([0], "pos has 1 entries; expected one, or 2"),
        ("last", "pos='last'; expected a position, 'mean'"),
    ):
        with pytest.raises(InputError, match=message):
            positions(wrong, [3, 5])
