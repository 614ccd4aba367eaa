"""Classify, answer, tag: from tables to trained heads, predictions and metrics."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import neox_lab as nl
from neox_lab.errors import DataError, InputError
from neox_lab.family.losses import IGNORED
from neox_lab.tasks import (
    TrainingSettings,
    answering,
    classification,
    conll,
    metrics,
    squad,
    tables,
    tagging,
)

FEW = TrainingSettings(steps=2, batch_size=4)


def head(kind: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return nl.load(head=kind, **arguments)


# ------------------------------------------------------------------------------------- tables


def test_every_kind_of_table_says_the_same(tmp_path: Path) -> None:
    rows = [{"text": "one, two", "label": "a"}, {"text": "ünï", "label": "b"}]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    (tmp_path / "t.json").write_text(json.dumps(rows))
    for source in (
        frame,
        rows,
        *(tmp_path / f"t.{end}" for end in ("csv", "tsv", "jsonl", "json")),
    ):
        pd.testing.assert_frame_equal(tables.read_table(source, ("text", "label")), frame)


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "none.csv", "no file"),
        (tmp_path / "bad.json", "not a readable json"),
        (tmp_path / "x.xml", "ends in '.xml'"),
        (pd.DataFrame({"text": []}), "no rows"),
        (3, "cannot read examples from int"),
        ([{"txt": "a"}], r"no column 'text'; the table has txt. Did you mean 'txt'"),
    ]
    for source, message in cases:
        with pytest.raises(DataError, match=message):
            tables.read_table(source, ("text",))


# ------------------------------------------------------------------------------ classification


def reviews(count: int = 48) -> list[dict[str, Any]]:
    chance = random.Random(0)
    words = {"bad": ["terrible", "poor", "evil"], "good": ["great", "noble", "happy"]}
    rows = []
    for _ in range(count):
        label = chance.choice(list(words))
        rows.append({"text": f"It was a {chance.choice(words[label])} day.", "label": label})
    return rows


def test_a_classifier_learns_and_transformers_reads_it(tmp_path: Path) -> None:
    model = head("sequence-classification", labels=["bad", "good"])
    rows = reviews()
    settings = TrainingSettings(steps=30, batch_size=16, learning_rate=3e-3)
    result = classification.train(model, rows[:32], rows[32:], settings)
    report = classification.evaluate(model, rows[32:])
    assert report.metrics["accuracy"] == 1.0
    assert result.best == pytest.approx(report.metrics)
    assert (report.frame["prediction"] == report.frame["label"]).all()
    shown = classification.predict(model, ["It was a great day.", "It was a poor day."])
    assert shown.frame["prediction"].tolist() == ["good", "bad"]
    assert shown.to_png()[:4] == report.to_png()[:4] == b"\x89PNG"

    model.save_pretrained(tmp_path)
    theirs = transformers.GPTNeoXForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = model.to_tokens("It was a great day.")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    theirs.save_pretrained(tmp_path / "theirs")
    back = nl.GPTNeoXForSequenceClassification.from_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, back(ids).logits, rtol=1e-4, atol=1e-5)


def test_several_labels_and_numbers() -> None:
    model = head("sequence-classification", labels=["sad", "short"])
    model.config.problem_type = "multi_label_classification"
    rows = [
        {"text": "Woe", "label": ["sad", "short"]},
        {"text": "A fine long day", "label": []},
    ] * 6
    settings = TrainingSettings(steps=25, batch_size=12, learning_rate=3e-3)
    classification.train(model, rows, settings=settings)
    report = classification.evaluate(model, rows)
    assert report.metrics["accuracy"] == 1.0
    assert report.frame["prediction"][0] == ["sad", "short"]
    assert report.view().frame is not None

    model = head("sequence-classification", labels=["length"])
    numbers = [{"text": "word " * n, "label": float(n)} for n in range(1, 13)]
    settings = TrainingSettings(steps=80, batch_size=12, learning_rate=3e-3)
    classification.train(model, numbers, settings=settings)
    report = classification.evaluate(model, numbers)
    assert report.metrics["r2"] > 0.8
    assert "prediction" in report.frame
    assert report.view().frame is not None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": "ugly"}], r"row 0: 'ugly'\nExpected one of bad, good"),
        ([{"text": "a", "label": 2}], "row 0: 2"),
        ([{"text": "a", "label": True}], "row 0: True"),
        ([{"text": "a", "label": None}], "Unknown labels in 1 rows"),
        ([{"text": "", "label": 0}], "row 0: is empty"),
        ([{"text": 5, "label": 0}], "row 0: is 5, not text"),
        ([{"text": "a " * 600, "label": 0}], "Texts are longer than the model's 512 positions"),
        ([{"text": "a", "label": "x"}] * 9, "and 4 more"),
    ],
)
def test_rows_that_cannot_be_classified(rows: Any, message: str) -> None:
    model = head("sequence-classification", labels=["bad", "good"])
    with pytest.raises(DataError, match=message):
        classification.train(model, rows, settings=FEW)


def test_a_model_with_another_head_is_refused() -> None:
    model = nl.load()
    with pytest.raises(InputError, match="head is 'causal-lm'; expected 'sequence-class"):
        classification.train(model, reviews())
    with pytest.raises(InputError, match="expected 'question-answering'"):
        answering.train(model, [])
    with pytest.raises(InputError, match="expected 'token-classification'"):
        tagging.train(model, [])


def test_metrics_are_those_of_their_formulas() -> None:
    chance = np.random.default_rng(0)
    labels = chance.integers(0, 3, 200)
    probabilities = chance.dirichlet(np.ones(3), 200)
    found = metrics.classification(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    f1 = []
    for kind in range(3):
        hits = ((predicted == kind) & (labels == kind)).sum()
        f1.append(2 * hits / ((predicted == kind).sum() + (labels == kind).sum()))
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["loss"] == pytest.approx(-np.log(probabilities[range(200), labels]).mean())
    assert found["majority"] == pytest.approx(max(np.mean(labels == k) for k in range(3)))
    counts = metrics.confusion(labels, predicted, 3)
    assert counts.sum() == 200
    assert counts[0, 1] == ((labels == 0) & (predicted == 1)).sum()
    # Confidence 0.85 and right in 7 of 10: off by 0.15.
    sure = np.tile([0.85, 0.15], (10, 1))
    assert metrics.calibration_error(np.array([0] * 7 + [1] * 3), sure) == pytest.approx(0.15)
    low, high = metrics.mean_interval((predicted == labels).astype(float))
    assert low < found["accuracy"] < high
    numbers = metrics.regression(np.array([1.0, 2, 3]), np.array([1.0, 2, 5]))
    assert numbers["r2"] == pytest.approx(1 - 4 / 2)
    assert numbers["spearman"] == pytest.approx(1.0)


# ---------------------------------------------------------------------------------- answering

STORY = "Mary went to the kitchen. John went to the garden."


def questions() -> list[dict[str, Any]]:
    rows = []
    for who, place in (("Mary", "kitchen"), ("John", "garden")):
        answers = [{"text": place, "answer_start": STORY.index(place)}]
        rows.append({"question": f"Where is {who}?", "context": STORY, "answers": answers})
    return [*rows, {"question": "Where is Anna?", "context": STORY, "answers": []}]


def test_answers_are_learned_with_their_places(tmp_path: Path) -> None:
    model = head("question-answering")
    settings = TrainingSettings(steps=60, batch_size=3, learning_rate=3e-3)
    answering.train(model, questions(), questions(), settings)
    report = answering.evaluate(model, questions())
    assert report.metrics["exact_match"] == 1.0
    assert report.metrics["exact_match_unanswerable"] == 1.0
    found = answering.predict(model, "Where is John?", STORY)
    best = found.frame.iloc[0]
    assert (best["answer"], best["start"]) == ("garden", STORY.index("garden"))
    assert STORY[best["start"] : best["end"]] == "garden"
    assert found.frame["probability"].is_monotonic_decreasing
    nobody = answering.predict(model, "Where is Anna?", STORY)
    assert nobody.frame.iloc[0]["answer"] == ""
    for shown in (report, found, nobody):
        assert shown.to_png()[:4] == b"\x89PNG"

    model.save_pretrained(tmp_path)
    theirs = transformers.GPTNeoXForQuestionAnswering.from_pretrained(tmp_path).eval()
    ids = model.to_tokens(STORY)
    with torch.no_grad():
        one, other = model(ids), theirs(ids)
    torch.testing.assert_close(one.start_logits, other.start_logits, rtol=1e-4, atol=1e-4)


def test_windows_cover_a_long_text() -> None:
    model = head("question-answering")
    context = "word " * 300 + "Here lies the treasure. " + "word " * 300
    start = context.index("treasure")
    row = {
        "question": "What lies here?",
        "context": context,
        "answers": [{"text": "treasure", "answer_start": start}],
    }
    examples = answering.prepare(model, [row], max_length=100, stride=30)
    assert all(len(example["input_ids"]) <= 100 for example in examples)
    with_answer = 0
    for example in examples:
        a, b = example["start_positions"], example["end_positions"]
        if b == len(example["input_ids"]) - 1:
            assert a == b
            continue
        with_answer += 1
        assert model.tokenizer.decode(example["input_ids"][a : b + 1]).strip() == "treasure"
    assert with_answer >= 1
    answer = answering.predict(model, "What?", context, max_length=100, stride=30).frame
    assert all(context[s:e] == text for s, e, text in answer[["start", "end", "answer"]].values)
    with pytest.raises(DataError, match="row 0: the question has"):
        answering.prepare(model, [row], max_length=40, stride=39)


def test_squad_files_of_both_versions(tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    asked = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Mary", "answer_start": 0}]},
        {"id": "2", "question": "Why?", "is_impossible": True, "answers": []},
    ]
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": STORY, "qas": asked}]}]}))
    frame = squad.read_squad(file)
    assert frame["answers"].tolist() == [[(0, "Mary")], []]
    hub = {"text": ["Mary"], "answer_start": [0]}
    rows = [{"question": "Who?", "context": STORY, "answers": hub}]
    assert squad.read_squad(rows)["answers"][0] == [(0, "Mary")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": [{"text": "John", "answer_start": 0}]},
            r"'John' is not at character 0.*'Mary'",
        ),
        ({"answers": [{"text": "", "answer_start": 0}]}, "is not at character 0"),
        ({"answers": [{"text": "Mary"}]}, "have no text and answer_start"),
        ({"answers": 3}, "have no text and answer_start"),
        ({"question": " "}, "row 0: no question"),
        ({"context": None}, "row 0: no context"),
    ],
)
def test_questions_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        squad.read_squad([questions()[0] | change])


def test_squad_scores_follow_the_published_rules() -> None:
    assert squad.normalized("The  Cat's, a-hat!") == "cats ahat"
    assert squad.exact_match("the Kitchen.", ["kitchen"]) == 1
    assert squad.f1("the red kitchen", ["red kitchen door", "x"]) == pytest.approx(4 / 5)
    assert squad.f1("", []) == squad.exact_match("", []) == 1
    assert squad.f1("a", ["kitchen"]) == 0
    assert squad.f1("kitchen", []) == 0


# ------------------------------------------------------------------------------------ tagging

TAGS = ["O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE"]


def people() -> list[dict[str, Any]]:
    chance = random.Random(1)
    rows = []
    for _ in range(24):
        name = chance.choice([["Mary", "Stone"], ["John"], ["Anna", "Hill"]])
        place = chance.choice([["Paris"], ["New", "York"]])
        first, second = ["B-PERSON", "I-PERSON"][: len(name)], ["B-PLACE", "I-PLACE"][: len(place)]
        tags = [*first, "O", "O", *second]
        rows.append({"words": [*name, "saw", "old", *place, "."], "tags": [*tags, "O"]})
    return rows


def test_a_tagger_learns_and_finds_characters(tmp_path: Path) -> None:
    model = head("token-classification", labels=TAGS)
    settings = TrainingSettings(steps=60, batch_size=12, learning_rate=3e-3)
    tagging.train(model, people(), people(), settings)
    report = tagging.evaluate(model, people())
    assert report.metrics["f1"] == 1.0
    text = "Mary Stone saw old New York ."
    found = tagging.predict(model, text)
    assert found.frame[["entity", "label"]].values.tolist() == [
        ["Mary Stone", "PERSON"],
        ["New York", "PLACE"],
    ]
    assert all(
        text[s:e] == entity for entity, s, e in found.frame[["entity", "start", "end"]].values
    )
    assert found.to_png()[:4] == report.to_png()[:4] == b"\x89PNG"

    model.save_pretrained(tmp_path)
    theirs = transformers.GPTNeoXForTokenClassification.from_pretrained(tmp_path).eval()
    ids = model.to_tokens(text)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_words_tag_stands_at_its_last_token() -> None:
    model = head("token-classification", labels=TAGS)
    (sentence,) = tagging.read_sentences([{"words": ["Zxqvy", "ran"], "tags": ["B-PERSON", "O"]}])
    (example,) = tagging.prepare(model, [sentence])
    pieces = model.tokenizer.pieces(example["input_ids"])
    assert len(pieces) > 2
    marked = [at for at, label in enumerate(example["labels"]) if label != IGNORED]
    assert "".join(pieces[: marked[0] + 1]) == "Zxqvy"
    assert [example["labels"][at] for at in marked] == [1, 0]


def test_entities_by_their_characters() -> None:
    row = {"text": "Mary Stone ran.", "entities": [{"start": 0, "end": 10, "label": "PERSON"}]}
    (sentence,) = tagging.read_sentences([row])
    assert sentence.tags == ["B-PERSON", "I-PERSON", "O", "O"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "row 0: 2 words and 1 tags"),
        ({"words": ["a"], "tags": ["I-X"]}, "row 0: tag 0 is 'I-X' after 'O'"),
        ({"words": ["a", "b"], "tags": ["B-X", "I-Y"]}, "tag 1 is 'I-Y' after 'B-X'"),
        ({"words": ["a"], "tags": ["X"]}, "tag 0 is 'X'; expected 'O'"),
        (
            {"text": "Mary ran", "entities": [{"start": 1, "end": 4, "label": "P"}]},
            "'ary' .1 to 4.",
        ),
        ({"text": "a b", "entities": [{"start": 0, "end": 3, "label": "P"}] * 2}, "overlaps"),
        ({"sentence": "x"}, "expected words and tags, or text and entities"),
    ],
)
def test_tags_that_cannot_be_used(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tagging.read_sentences([row])


def test_tags_the_model_does_not_have() -> None:
    model = head("token-classification", labels=TAGS)
    row = {"words": ["a"], "tags": ["B-PERSN"]}
    with pytest.raises(DataError, match=r"row 0: 'B-PERSN'. Did you mean 'B-PERSON'"):
        tagging.train(model, [row], settings=FEW)
    with pytest.raises(DataError, match="row 0: has no word"):
        tagging.predict(model, "  ")


def test_conll_files(tmp_path: Path) -> None:
    file = tmp_path / "x.conll"
    file.write_text("-DOCSTART- -X- O O\n\nMary NNP B-NP B-PER\nran VBD B-VP O\n\n\n. . O O\n")
    frame = conll.read_conll(file)
    assert frame["words"].tolist() == [["Mary", "ran"], ["."]]
    assert frame["tags"].tolist() == [["B-PER", "O"], ["O"]]
    file.write_text("Mary\n")
    with pytest.raises(DataError, match=r"line 1 of x\.conll has a word and no tag"):
        tagging.read_sentences(file)


TAG_LISTS = st.lists(
    st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


@given(TAG_LISTS, st.randoms())
def test_entities_are_counted_as_seqeval_counts_them(right: Any, chance: Any) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    predicted = [[chance.choice([tag, "O", "B-A", "I-B"]) for tag in row] for row in right]
    ours = conll.entity_metrics(right, predicted)
    for name, function in (
        ("precision", seqeval.precision_score),
        ("recall", seqeval.recall_score),
        ("f1", seqeval.f1_score),
        ("accuracy", seqeval.accuracy_score),
    ):
        empty = {} if name == "accuracy" else {"zero_division": 0}
        assert ours[name] == pytest.approx(function(right, predicted, **empty))
    report = seqeval.classification_report(right, predicted, output_dict=True, zero_division=0)
    for kind in ("A", "B"):
        if kind in report:
            assert ours[f"f1_{kind}"] == pytest.approx(report[kind]["f1-score"])
