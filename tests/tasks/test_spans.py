"""Where answers and words stand, in any text and in the tokens of real and built-in tokenizers."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tasks import head

from neox_lab.data.batches import padded
from neox_lab.data.encoding import token_spans
from neox_lab.data.sentences import read_sentences, words_of
from neox_lab.data.squad import read_squad
from neox_lab.errors import ConfigError, DataError
from neox_lab.tasks import answering, classification, tagging
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tokenizer import GPTNeoXTokenizerFast

BLANKS = " \t\n\u00a0\u2003\u3000\u0085"
PARTS = [
    "cafe\u0301",
    "\u0301",
    "a\u0323\u0307",
    "a\u0301\u0323",
    "\u1100\u1161\u11a8",
    "\u212b",
    "e",
]
PARTS += [
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\u0344",
    "\u0958",
    "\U0001f469\u200d\U0001f467",
    "x",
]
PARTS += [
    "\U0001d15e",
    "\u00df",
    "\ufb01",
    "\u0e19\u0e49\u0e33",
    "?",
    "'s",
    "12",
    "\u200b",
    "\ufeff",
]
LETTERS = st.characters(codec="utf-8")
BITS = st.one_of(
    st.sampled_from(PARTS), st.sampled_from(list(BLANKS)), st.text(LETTERS, max_size=3)
)
TEXTS = st.lists(BITS, min_size=1, max_size=12).map("".join).filter(lambda text: text.strip())
MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@functools.cache
def with_tokenizer(kind: str, path: Path | None) -> Any:
    model = head(kind, labels=["O", "B-X", "I-X"] if kind == "token-classification" else None)
    if path is not None:
        model.tokenizer = GPTNeoXTokenizerFast(tokenizer_file=str(path))
    return model


@pytest.fixture(params=["built-in", "GPT-NeoX-20B"])
def tokenizer(request: pytest.FixtureRequest) -> Path | None:
    if request.param == "built-in":
        return None
    shared: Path = request.getfixturevalue("shared")
    return shared / "data" / "gpt-neox-20b-tokenizer.json"


@MANY
@given(text=TEXTS)
def test_the_spans_of_tokens_hold_every_character(tokenizer: Path | None, text: str) -> None:
    spans = token_spans(with_tokenizer("question-answering", tokenizer), text).spans
    held = {at for low, high in spans for at in range(low, high)}
    assert {at for at, letter in enumerate(text) if not letter.isspace()} <= held
    assert all(0 <= low <= high <= len(text) for low, high in spans)
    assert spans == sorted(spans)


@MANY
@given(text=TEXTS, data=st.data())
def test_targets_are_the_tokens_of_the_answer(tokenizer: Path | None, text: str, data: Any) -> None:
    """Also of answers with blanks at their ends, which hold the answer and no other word."""
    model = with_tokenizer("question-answering", tokenizer)
    low = data.draw(st.integers(0, len(text) - 1))
    high = data.draw(st.integers(low + 1, len(text)))
    answers = [{"text": text[low:high], "answer_start": low}]
    row = {"question": "Q?", "context": text, "answers": answers}
    if not text[low:high].strip():
        with pytest.raises(DataError, match="is not at character"):
            read_squad([row])
        return
    (example,) = answering.prepare(model, [row])
    begin, end = example["start_positions"], example["end_positions"]
    ids = example["input_ids"]
    assert begin <= end < len(ids) - 1  # the last one would say "no answer"
    spans = token_spans(model, text).spans
    first = len(ids) - 1 - len(spans)
    answer = {at for at in range(low, high) if not text[at].isspace()}
    touching = [at for at, span in enumerate(spans) if answer & set(range(*span))]
    assert (begin - first, end - first) == (touching[0], touching[-1])


@settings(MANY, max_examples=50)
@given(
    text=TEXTS,
    seed=st.integers(0, 2**32 - 1),
    stride=st.integers(0, 4),
    room=st.integers(5, 40),
)
def test_the_best_span_of_all_windows_is_found(
    tokenizer: Path | None, text: str, seed: int, stride: int, room: int
) -> None:
    """Against every span of every window, one by one."""
    model = with_tokenizer("question-answering", tokenizer)
    text = text * 6
    frame = read_squad([{"question": "Q", "context": text, "answers": []}])
    asked = len(model.tokenizer("Q\n").input_ids) + 1
    windows = answering._windows(model, frame, asked + room, stride)
    chance = torch.Generator().manual_seed(seed)
    names = ("start_logits", "end_logits")
    logits = [{n: torch.randn(len(w.ids), generator=chance) for n in names} for w in windows]
    spans: dict[tuple[int, int], float] = {}
    nothing, sure = float("inf"), -float("inf")
    for window, row in zip(windows, logits, strict=True):
        pairs: list[float] = []
        start, end = row["start_logits"], row["end_logits"]
        nothing = min(nothing, float(start[-1] + end[-1]))
        for a, (low, _) in enumerate(window.offsets):
            for b, (_, high) in enumerate(window.offsets[a : a + answering.LONGEST_ANSWER], a):
                if text[low:high].strip():
                    score = float(start[window.first + a] + end[window.first + b])
                    spans[low, high] = max(spans.get((low, high), score), score)
                    pairs.append(score)
        if len(pairs) > answering.CANDIDATES:  # pairs of tokens below are not looked at
            sure = max(sure, sorted(pairs)[-answering.CANDIDATES])
    (found,) = answering._ranked(windows, logits, frame)
    best = sorted([*spans.values(), nothing], reverse=True)
    count = sum(score > sure for score in best)
    assert [answer.score for answer in found[:count]] == pytest.approx(best[:count], abs=1e-6)
    assert len(found) == len(best) or sure > -float("inf")
    for answer in found:
        if answer.text:
            assert answer.text == text[answer.start : answer.end]
            assert spans[answer.start, answer.end] >= answer.score - 1e-6
        else:
            assert answer.score == pytest.approx(nothing)


@MANY
@given(text=TEXTS)
def test_every_word_has_a_token(tokenizer: Path | None, text: str) -> None:
    model = with_tokenizer("token-classification", tokenizer)
    words = [word for word in text.split(" ") if word.strip()]
    (sentence,) = read_sentences([{"words": words, "tags": ["O"] * len(words)}])
    (example,) = tagging.prepare(model, [sentence])
    spans = token_spans(model, sentence.text).spans
    for word, (low, high), last in zip(words, sentence.words, example["_last"], strict=True):
        assert sentence.text[low:high] == word.strip()
        assert spans[last][0] < high <= spans[last][1]
        assert all(span[0] >= high for span in spans[last + 1 :])


@MANY
@given(text=TEXTS)
def test_words_are_cut_at_no_mark(text: str) -> None:
    words = words_of(text)
    inside = {at for low, high in words for at in range(low, high)}
    assert inside == {at for at, letter in enumerate(text) if not letter.isspace()}
    for low, _ in words[1:]:
        assert unicodedata.category(text[low])[0] != "M" or text[low - 1].isspace()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mary's 3.5 a_b!", ["Mary", "'", "s", "3", ".", "5", "a_b", "!"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u0936\u092c\u094d\u0926", None),
        ("cafe\u0301 a\u0323\u0307b", None),
        ("\u0645\u06cc\u200c\u0634\u0648\u062f ok", None),
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f", None),
        ("'\u0301x", ["'\u0301", "x"]),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str] | None) -> None:
    expected = text.split() if words is None else words
    assert [text[low:high] for low, high in words_of(text)] == expected


def test_entities_of_decomposed_words() -> None:
    text = "Rene\u0301 ran"
    model = with_tokenizer("token-classification", None)
    row = {"text": text, "entities": [{"start": 0, "end": 5, "label": "X"}]}
    (sentence,) = read_sentences([row])
    assert sentence.tags == ["B-X", "O"]
    tagging.train(model, [row], settings=TrainingSettings(steps=1))
    for found in tagging.predict(model, text).frame.to_dict("records"):
        assert found["entity"] == text[found["start"] : found["end"]]


def test_labels_of_a_text_are_no_labels_of_its_tokens() -> None:
    """A text may have as many tokens as there are labels."""
    rows = [
        {"input_ids": [5, 6], "labels": [1.0, 0.0]},
        {"input_ids": [5, 6, 7], "labels": [0.0, 0.0]},
    ]
    for examples in (rows, rows[::-1], rows[:1]):
        labels = padded(examples, 0)["labels"]
        assert labels.dtype == torch.float32
        assert labels.tolist() == [row["labels"] for row in examples]
    tags = [{"input_ids": [5, 6], "labels": [1, 0]}, {"input_ids": [5], "labels": [2]}]
    assert padded(tags, 0)["labels"].tolist() == [[1, 0], [2, -100]]


def test_a_text_with_as_many_tokens_as_labels_is_learned() -> None:
    model = head("sequence-classification", labels=["a", "b"])
    model.config.problem_type = "multi_label_classification"
    texts = [
        text for text in ("Mary", "Mary went", "Mary went to") if len(model.to_tokens(text)[0])
    ]
    assert 2 in [model.to_tokens(text).shape[1] for text in texts]
    rows = [{"text": text, "label": ["a"]} for text in texts]
    few = TrainingSettings(steps=2, batch_size=3)
    assert classification.train(model, rows, settings=few).steps == 2


@pytest.mark.parametrize("given_labels", [{"neg": 0, "pos": 0}, {"neg": 0, "pos": "00"}])
def test_no_label_is_lost(given_labels: dict[str, int | str]) -> None:
    from neox_lab import GPTNeoXConfig

    with pytest.raises(ConfigError, match="label2id gives the id 0 to 'neg' and to 'pos'"):
        GPTNeoXConfig(label2id=given_labels)
    with pytest.raises(ConfigError, match="id2label gives the id 0 to 'a' and to 'b'"):
        GPTNeoXConfig(id2label={"0": "a", "00": "b"})
    with pytest.raises(ConfigError, match="ids 0, 1, 2"):
        GPTNeoXConfig(label2id={"neg": 0, "pos": 2})


@pytest.mark.parametrize(
    ("names", "cells", "classes"),
    [
        (["01", "02", "03"], ["01", "02", "03"], [0, 1, 2]),
        (["False", "True"], [True, "True", False], [1, 1, 0]),
        (["neg", "pos"], ["0", "1", 1.0, "pos"], [0, 1, 1, 1]),
        (["1.5", "2"], ["1.5", "2", 2], [0, 1, 1]),
    ],
)
def test_labels_are_what_the_cell_says(
    tmp_path: Path, names: list[str], cells: list[object], classes: list[int]
) -> None:
    model = head("sequence-classification", labels=names)
    rows = [{"text": "a", "label": cell} for cell in cells]
    prepare = functools.partial(classification.prepare, text="text", label="label", truncate=False)
    assert [row["labels"] for row in prepare(model, rows)] == classes
    file = tmp_path / "t.csv"
    file.write_text("text,label\n" + "".join(f"a,{cell}\n" for cell in map(str, cells[:2])))
    assert [row["labels"] for row in prepare(model, file)] == classes[:2]


@pytest.mark.parametrize(
    "cell", ["01", "1.5", "1.0", "True", True, 2, "2", -1, "", None, 1.5, 10**400]
)
def test_labels_that_are_none(cell: object) -> None:
    model = head("sequence-classification", labels=["neg", "pos"])
    with pytest.raises(DataError, match="Unknown labels in 1 rows"):
        classification.train(model, [{"text": "a", "label": cell}])


@pytest.mark.parametrize("cell", [10**400, "1_000", "nan", "inf", "", None, "1,5", [1]])
def test_numbers_that_are_none(cell: object) -> None:
    model = head("sequence-classification", labels=["grade"])
    with pytest.raises(DataError, match="Expected a number"):
        classification.train(model, [{"text": "a", "label": cell}])


def test_an_entity_of_several_words_shows_a_tag_for_each() -> None:
    found = {"text": 0, "entity": "Mary-Ann", "label": "X", "start": 0, "end": 8, "score": 1.0}
    (piece,) = tagging._view(["Mary-Ann"], [found]).pieces
    assert piece.details["tags"] == "B-X I-X I-X"
