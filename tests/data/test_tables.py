"""Examples from wherever people keep them: tables, SQuAD and CoNLL files, datasets."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from neox_lab.data.conll import read_conll
from neox_lab.data.sentences import read_sentences
from neox_lab.data.squad import read_squad
from neox_lab.data.tables import listed, read_table, texts_of
from neox_lab.errors import DataError

REVIEWS = [{"text": "A great day.", "label": "good"}, {"text": "A poor day.", "label": "bad"}]
STORY = "Mary went to the kitchen. John went to the garden."
QUESTIONS: list[dict[str, Any]] = [
    *(
        {
            "question": f"Where is {who}?",
            "context": STORY,
            "answers": [{"text": place, "answer_start": STORY.index(place)}],
        }
        for who, place in (("Mary", "kitchen"), ("John", "garden"))
    ),
    {"question": "Where is Anna?", "context": STORY, "answers": []},
]


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
        found = read_table(source, ("text", "label"))
        pd.testing.assert_frame_equal(found, frame, check_dtype=False)  # pyarrow has its own


def test_cells_stay_what_they_are(tmp_path: Path) -> None:
    """Words that look like missing values, numbers or dates are still words."""
    words = ["None", "null", "NA", "nan"]
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"{w},{w}\n" for w in words))
    frame = read_table(tmp_path / "t.csv")
    assert frame["text"].tolist() == frame["label"].tolist() == words
    (tmp_path / "t.jsonl").write_text('{"text": "007", "date": "2020-01-01"}\n')
    assert read_table(tmp_path / "t.jsonl").values.tolist() == [["007", "2020-01-01"]]
    (tmp_path / "t.csv").write_text("text,label\n,a\nb,a\n")
    with pytest.raises(DataError, match="row 0: is empty"):
        texts_of(read_table(tmp_path / "t.csv"), "text")


def test_lists_in_a_csv_file(tmp_path: Path) -> None:
    """As pandas and JSON write them."""
    file = tmp_path / "t.csv"
    pd.DataFrame(QUESTIONS).to_csv(file)
    assert read_squad(file)["answers"][0] == [(STORY.index("kitchen"), "kitchen")]
    pd.DataFrame([{"words": ["Mary", "ran"], "tags": ["B-X", "O"]}]).to_csv(file)
    assert read_sentences(file)[0].tags == ["B-X", "O"]
    entity = {"start": 0, "end": 4, "label": "X"}
    pd.DataFrame([{"text": "Mary ran", "entities": json.dumps([entity])}]).to_csv(file)
    assert read_sentences(file)[0].tags == ["B-X", "O"]


def test_datasets_of_the_hub() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    names = datasets.ClassLabel(names=["O", "B-X", "I-X"])
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")), ner_tags=datasets.Sequence(names)
    )
    tagged = {"tokens": [["Mary", "Stone", "ran"]], "ner_tags": [[1, 2, 0]]}
    found = read_sentences(datasets.Dataset.from_dict(tagged, features=features))
    assert found[0].tags == ["B-X", "I-X", "O"]
    asked = [{**row, "answers": {"text": [], "answer_start": []}} for row in QUESTIONS[2:]]
    assert read_squad(datasets.Dataset.from_list(asked))["answers"].tolist() == [[]]
    rows = datasets.Dataset.from_list(REVIEWS)
    assert read_table(rows)["label"].tolist() == [row["label"] for row in REVIEWS]
    with pytest.raises(DataError, match="choose one of its parts: train, test"):
        read_table(datasets.DatasetDict(train=rows, test=rows))


def test_a_dataset_is_whatever_gives_a_frame_and_names_its_tags() -> None:
    class Dataset:
        features: ClassVar[Any] = {
            "ner_tags": SimpleNamespace(feature=SimpleNamespace(names=["O", "B-X"]))
        }

        def to_pandas(self) -> pd.DataFrame:
            return pd.DataFrame({"tokens": [["Mary", "ran"]], "ner_tags": [np.array([1, 0])]})

    assert read_sentences(Dataset())[0].tags == ["B-X", "O"]
    with pytest.raises(DataError, match="choose one of its parts: train"):
        read_table({"train": Dataset()})


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
            read_table(source, ("text",))


def test_squad_files_of_both_versions(tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    asked = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Mary", "answer_start": 0}]},
        {"id": "2", "question": "Why?", "is_impossible": True, "answers": []},
    ]
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": STORY, "qas": asked}]}]}))
    frame = read_squad(file)
    assert frame["answers"].tolist() == [[(0, "Mary")], []]
    for wrong in ({"data": [{}]}, {"data": ["x"]}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match="this is not SQuAD's format"):
            read_squad(file)
    hub = {"text": ["Mary"], "answer_start": [0]}
    rows = [{"question": "Who?", "context": STORY, "answers": hub}]
    assert read_squad(rows)["answers"][0] == [(0, "Mary")]


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
        read_squad([QUESTIONS[0] | change])


def test_entities_by_their_characters() -> None:
    row = {"text": "Mary Stone ran.", "entities": [{"start": 0, "end": 10, "label": "PERSON"}]}
    (sentence,) = read_sentences([row])
    assert sentence.tags == ["B-PERSON", "I-PERSON", "O", "O"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "entities": [{"start": 0, "end": 1}]}, "row 0: entity .* has no label"),
        (
            {"text": "a", "entities": [{"start": 0, "end": 1, "label": ""}]},
            "row 0: entity .* expected a name",
        ),
        (
            {"text": "a", "entities": [{"start": 0, "end": 1, "label": None}]},
            "row 0: entity .* expected a name",
        ),
        ({"text": None, "entities": []}, "row 0: the text has no word"),
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
        read_sentences([row])


def test_conll_files(tmp_path: Path) -> None:
    file = tmp_path / "x.conll"
    file.write_text("-DOCSTART- -X- O O\n\nMary NNP B-NP B-PER\nran VBD B-VP O\n\n\n. . O O\n")
    frame = read_conll(file)
    assert frame["words"].tolist() == [["Mary", "ran"], ["."]]
    assert frame["tags"].tolist() == [["B-PER", "O"], ["O"]]
    file.write_text("Mary\n")
    with pytest.raises(DataError, match=r"line 1 of x\.conll has a word and no tag"):
        read_sentences(file)


@pytest.mark.parametrize("words", [["I", "\U0001f600"], ["a/b"], ["\u00e9", "x"], []])
@pytest.mark.parametrize("plain", [True, False])
def test_lists_of_json_and_of_python_read_alike(words: list[str], plain: bool) -> None:
    assert listed(json.dumps(words, ensure_ascii=plain)) == words
    assert listed(json.dumps(words).replace("/", "\\/")) == words
    assert listed(repr(words)) == words
    assert listed('[{"a": true, "b": null}]') == [{"a": True, "b": None}]


@pytest.mark.parametrize("cell", ["[" * 3000, "['a' 'b']", "x", "1" * 5000, "{"])
def test_a_cell_that_is_no_list_is_told_shortly(cell: str) -> None:
    with pytest.raises(ValueError, match="is no list") as told:
        listed(cell)
    assert len(str(told.value)) < 300
