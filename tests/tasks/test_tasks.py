"""Classify, answer, tag: from tables to trained heads, predictions and metrics."""

from __future__ import annotations

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
from neox_lab.family.heads import CLASSES
from neox_lab.family.losses import IGNORED
from neox_lab.tasks import (
    TrainingSettings,
    answering,
    classification,
    metrics,
    tagging,
)
from neox_lab.tasks.labels import Labels

FEW = TrainingSettings(steps=2, batch_size=4)


def head(kind: str, labels: list[str] | None = None) -> Any:
    """A small model with random weights and the built-in tokenizer: quick to train."""
    torch.manual_seed(0)
    tokenizer = nl.GPTNeoXTokenizerFast.from_pretrained(nl.gym.weights_directory())
    config = nl.GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        **({} if labels is None else {"id2label": dict(enumerate(labels))}),
    )
    model = CLASSES[kind](config).eval()
    model.tokenizer = tokenizer
    return model


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


@pytest.mark.parametrize("texts", ["", [""], ["The man", ""]])
def test_an_empty_text_is_not_classified(texts: str | list[str]) -> None:
    model = nl.load(head="sequence-classification")
    row = 1 if len(texts) == 2 else 0
    with pytest.raises(DataError, match=f"nothing to classify in 1 rows\\.\n  row {row}: has no"):
        nl.tasks.classification.predict(model, texts)


def test_a_prediction_says_which_tokens_it_rests_on() -> None:
    torch.manual_seed(0)
    model = head("sequence-classification", labels=["bad", "good", "so so"])
    found = classification.predict(model, ["It was a great day.", "A fine day"])
    told: list[tuple[int, int]] = []
    why = found.explain(1, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3)]
    ids = model.to_tokens("A fine day")
    with torch.no_grad():
        whole = model(ids).logits[0]
        embeddings = model.backbone.embed_in.weight
        for pos in range(ids.shape[1]):
            embeds = embeddings[ids].clone()
            embeds[0, pos] = embeddings.mean(dim=0)
            lost = whole - model(inputs_embeds=embeds).logits[0]
            rows = why.frame[why.frame["pos"] == pos]
            assert rows["label"].tolist() == ["bad", "good", "so so"]
            torch.testing.assert_close(
                torch.tensor(rows["attribution"].to_numpy()).float(), lost, rtol=1e-4, atol=1e-5
            )
    view = why.view()
    assert view.values == pytest.approx(found.values[1]) and view.title == "A fine day"
    assert why.to_png()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="expected 0 to 1"):
        found.explain(2)


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
    several = classification.predict(model, ["Woe", "A fine long day"])
    assert [piece.note for piece in several.view().pieces] == ["sad, short", "", "none"]
    assert report.view().frame is not None

    model = head("sequence-classification", labels=["length"])
    numbers = [{"text": "word " * n, "label": float(n)} for n in range(1, 13)]
    settings = TrainingSettings(steps=80, batch_size=12, learning_rate=3e-3)
    classification.train(model, numbers, settings=settings)
    report = classification.evaluate(model, numbers)
    assert report.metrics["r2"] > 0.8
    assert "prediction" in report.frame
    several = classification.predict(model, ["word", "word word"])
    assert several.view().frame["value"].tolist() == pytest.approx(several.frame["prediction"])
    assert report.view().frame is not None


def test_lists_of_labels_in_a_csv_file(tmp_path: Path) -> None:
    """As pandas and JSON write them."""
    file = tmp_path / "t.csv"
    model = head("sequence-classification", labels=["sad", "short"])
    model.config.problem_type = "multi_label_classification"
    pd.DataFrame([{"text": "Woe", "label": ["sad"]}, {"text": "Hm", "label": []}]).to_csv(file)
    rows = classification.prepare(model, file, text="text", label="label", truncate=False)
    assert [row["labels"] for row in rows] == [[1.0, 0.0], [0.0, 0.0]]
    file.write_text("text,label\nWoe,sad\n")
    with pytest.raises(DataError, match="row 0: 'sad'"):
        classification.prepare(model, file, text="text", label="label", truncate=False)


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
    with pytest.raises(InputError, match="labels include 'NOUN'; expected 'O' and tags"):
        tagging.predict(head("token-classification", labels=["O", "NOUN"]), "Mary ran.")


def test_a_number_that_is_a_name_is_that_name() -> None:
    """Stars from 1 to 3 are not classes 0 to 2 counted from 0."""
    model = head("sequence-classification", labels=["1", "2", "3"])
    rows = [{"text": "a", "label": label} for label in (1, 3, "2", 2.0)]
    found = classification.prepare(model, rows, text="text", label="label", truncate=False)
    assert [row["labels"] for row in found] == [0, 2, 1, 1]
    report = classification.evaluate(model, rows)
    assert report.frame["label"].tolist() == ["1", "3", "2", "2"]


def test_long_texts_keep_their_ends() -> None:
    model = head("sequence-classification", labels=["a", "b"])
    long = "word " * 600 + "end"
    with pytest.raises(DataError, match=r"row 0: \d+ tokens"):
        classification.predict(model, long)
    cut = classification.predict(model, long, truncate=True).frame
    ids = model.tokenizer(long).input_ids[-512:]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.softmax(dim=-1)[0]
    assert cut[["p(a)", "p(b)"]].values[0] == pytest.approx(expected.tolist(), abs=1e-6)
    several = classification.predict(model, ["Good.", "Bad."])
    assert several.to_png()[:4] == b"\x89PNG"
    assert several.view().frame["prediction"].tolist() == several.frame["prediction"].tolist()
    assert several.view().pieces[0].text == "Good."
    for kind, function in (("sequence", classification), ("token", tagging)):
        with pytest.raises(DataError, match="there is no text"):
            function.predict(head(f"{kind}-classification", labels=["O", "B-X"]), [])


@pytest.mark.parametrize(
    "texts",
    [
        *(None, 3, b"a", {"a": "b"}, Path("a"), [1], ["a", None], [["a"]]),
        pd.DataFrame({"text": ["The king is good."]}),  # a list of it is one of its columns' names
    ],
)
def test_what_is_no_text_is_named(texts: Any) -> None:
    asked = {
        "sequence-classification": classification.predict,
        "token-classification": tagging.predict,
        "causal-lm": nl.tasks.likelihood.perplexity,
    }
    for name, ask in asked.items():
        with pytest.raises(InputError, match=r"(?s)^texts(\[[01]\])?=.*; expected a text"):
            ask(nl.load(head=name), texts)


def test_calibration_of_an_evaluation() -> None:
    model = head("sequence-classification", labels=["bad", "good"])
    report = classification.evaluate(model, reviews())
    curve = classification.calibration(report, bins=4).frame.query("line == 'accuracy'")
    chances = report.frame[["p(bad)", "p(good)"]].to_numpy()
    right = np.array([["bad", "good"].index(name) for name in report.frame["label"]])
    table = metrics.calibration(right, chances, 4)
    np.testing.assert_allclose(curve["confidence"], table["confidence"], atol=1e-6)
    np.testing.assert_allclose(curve["accuracy"], table["accuracy"], atol=1e-6)
    with pytest.raises(InputError, match="one label out of several"):
        classification.calibration(classification.predict(model, "Good."))


@given(st.integers(2, 4), st.integers(2, 30), st.randoms(use_true_random=False))
def test_metrics_are_scikit_learns(count: int, rows: int, chance: random.Random) -> None:
    from sklearn import metrics as theirs

    numpy = np.random.default_rng(chance.randrange(2**32))
    labels, chances = numpy.integers(0, count, rows), numpy.dirichlet(np.ones(count), rows)
    said, ours = chances.argmax(axis=1), metrics.classification(labels, chances)
    assert ours["accuracy"] == pytest.approx(theirs.accuracy_score(labels, said), abs=1e-6)
    f1 = theirs.f1_score(labels, said, average="macro", zero_division=0)
    assert ours["macro_f1"] == pytest.approx(f1, abs=1e-6)
    loss = theirs.log_loss(labels, chances, labels=range(count))
    assert ours["loss"] == pytest.approx(loss, abs=1e-6)

    sets, singly = numpy.integers(0, 2, (rows, count)), numpy.random((rows, count))
    ours = metrics.multi_label(sets, singly)
    both = [(sets[:, at], singly[:, at]) for at in range(count)]
    loss = np.mean([theirs.log_loss(*pair, labels=[0, 1]) for pair in both])
    assert ours["loss"] == pytest.approx(loss, abs=1e-6)
    f1 = theirs.f1_score(sets, singly > 0.5, average="micro", zero_division=0)
    assert ours["micro_f1"] == pytest.approx(f1, abs=1e-6)

    wanted, found = numpy.normal(size=rows), numpy.normal(size=rows)
    ours = metrics.regression(wanted, found)
    assert ours["r2"] == pytest.approx(theirs.r2_score(wanted, found), abs=1e-6)
    error = theirs.mean_absolute_error(wanted, found)
    assert ours["mean_absolute_error"] == pytest.approx(error, abs=1e-6)
    assert ours["loss"] == pytest.approx(theirs.mean_squared_error(wanted, found), abs=1e-6)
    assert ours["pearson"] == pytest.approx(np.corrcoef(wanted, found)[0, 1], abs=1e-6)


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
    alike = metrics.regression(np.full(3, 0.1), np.array([0.2, 0.1, 0.3]))  # their mean is rounded
    assert np.isnan([alike["r2"], alike["pearson"]]).all() and alike["loss"] > 0


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


def test_squad_scores_follow_the_published_rules() -> None:
    assert metrics.normalized("The  Cat's, a-hat!") == "cats ahat"
    assert metrics.exact_match("the Kitchen.", ["kitchen"]) == 1
    assert metrics.answer_f1("the red kitchen", ["red kitchen door", "x"]) == pytest.approx(4 / 5)
    assert metrics.answer_f1("", []) == metrics.exact_match("", []) == 1
    assert metrics.answer_f1("a", ["kitchen"]) == 0
    assert metrics.answer_f1("kitchen", []) == 0


WORDS = st.lists(st.sampled_from(["a", "The", "cat.", "sat", "SAT", "an", "-", "cat"]), max_size=5)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=3))
def test_squad_scores_are_those_of_a_slow_count(said: list[str], given: list[list[str]]) -> None:
    """The rules once more, word by word, with another normalisation."""

    def words(text: str) -> list[str]:
        bare = text.lower().replace(".", "").replace("-", "")
        return [word for word in bare.split() if word not in ("a", "an", "the")]

    def overlap(one: list[str], other: list[str]) -> float:
        if not one or not other:
            return float(one == other)
        left, hits = list(other), 0
        for word in one:
            if word in left:
                left.remove(word)
                hits += 1
        precision, recall = hits / len(one), hits / len(other)
        return 0.0 if not hits else 2 * precision * recall / (precision + recall)

    predicted, answers = " ".join(said), [" ".join(one) for one in given]
    expected = max(overlap(words(predicted), words(answer)) for answer in answers)
    assert metrics.answer_f1(predicted, answers) == pytest.approx(expected, abs=1e-6)
    same = any(words(predicted) == words(answer) for answer in answers)
    assert metrics.exact_match(predicted, answers) == float(same)


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


def test_tags_the_model_does_not_have() -> None:
    model = head("token-classification", labels=TAGS)
    row = {"words": ["a"], "tags": ["B-PERSN"]}
    with pytest.raises(DataError, match=r"row 0: 'B-PERSN'. Did you mean 'B-PERSON'"):
        tagging.train(model, [row], settings=FEW)
    with pytest.raises(DataError, match="row 0: has no word"):
        tagging.predict(model, "  ")
    row = {"words": ["word"] * 600, "tags": ["O"] * 600}
    with pytest.raises(DataError, match=r"row 0: \d+ tokens\nSplit these texts"):
        tagging.train(model, [row], settings=FEW)


def test_the_picture_of_several_texts_holds_them_all() -> None:
    model = head("token-classification", labels=["O", "B-X"])
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([-90.0, 90.0]))  # every word is an entity
    found = tagging.predict(model, ["Mary ran.", "He left."])
    assert found.frame["text"].tolist() == [0, 0, 0, 1, 1, 1]
    assert "".join(piece.text for piece in found.view().pieces) == "Mary ran.\nHe left."


TAG_LISTS = st.lists(
    st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
)


@given(TAG_LISTS, st.randoms())
def test_entities_are_counted_as_seqeval_counts_them(right: Any, chance: Any) -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    predicted = [[chance.choice([tag, "O", "B-A", "I-B"]) for tag in row] for row in right]
    ours = metrics.entity_metrics(right, predicted)
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


@pytest.mark.parametrize("cell", ["[1,0,1]", "[0,0,0]", "'ab'", "{'a': 0}", "5", ["a", "a"], "a"])
def test_what_is_no_list_of_labels_is_refused(cell: object) -> None:
    labels = Labels(["a", "b", "c"], "multi_label_classification")
    with pytest.raises(DataError, match="each once"):
        labels.targets([cell])
    assert labels.targets(["['a', 'c']", [], '["b"]', [2]]) == [
        [1.0, 0.0, 1.0],
        [0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 0.0, 1.0],
    ]


@pytest.mark.parametrize("name", ["epochs", "learning_rate", "weight_decay"])
def test_settings_are_finite(name: str) -> None:
    with pytest.raises(InputError, match=name):
        TrainingSettings(**{name: float("inf")})
