"""Nothing is guessed from how a cell looks, and what is written reads back."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neox_lab.data.conll import read_conll
from neox_lab.data.sentences import read_sentences
from neox_lab.data.squad import read_squad
from neox_lab.data.tables import listed, read_table, texts_of, whole_number
from neox_lab.errors import DataError
from neox_lab.frames import csv_text, make_frame
from neox_lab.results import GridResult
from neox_lab.views import BarsView

ODD = [
    "",
    "NA",
    "None",
    "nan",
    "01",
    "True",
    "1.5",
    "1e5",
    '"',
    "'",
    ",",
    "\t",
    " x ",
    "\0",
    "\ufeff",
]
ODD += [
    "a\r\nb",
    "a\rb",
    "a\nb",
    "\n",
    '"a',
    'a"b"',
    '""',
    "#",
    "\x1a",
    "\x85",
    "\u2028",
    "e\u0301",
]
CELLS = st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8"), max_size=8))
FAST = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def rows_of(width: int = 3) -> Any:
    return st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5)


@FAST
@given(rows=rows_of(), narrow=rows_of(1))
def test_a_csv_file_reads_back(tmp_path: Path, rows: Any, narrow: Any) -> None:
    for given_rows, names in ((rows, ["text", "label", "a b"]), (narrow, ["text"])):
        file = tmp_path / "t.csv"
        file.write_bytes(csv_text(make_frame(given_rows, names)).encode())
        frame = read_table(file)
        assert frame.columns.tolist() == names
        assert frame.to_numpy().tolist() == given_rows
        with file.open(newline="", encoding="utf-8") as opened:  # and with Python's own reader
            assert list(csv.reader(opened))[1:] == given_rows


@FAST
@given(rows=rows_of())
def test_json_files_read_back(tmp_path: Path, rows: Any) -> None:
    records = [dict(zip(("text", "label", "created_at"), row, strict=True)) for row in rows]
    (tmp_path / "t.json").write_text(json.dumps(records), encoding="utf-8")
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in records)
    (tmp_path / "t.jsonl").write_bytes(lines.encode())
    for name in ("t.json", "t.jsonl"):
        assert read_table(tmp_path / name).to_dict("records") == records


@FAST
@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters='\t\r\n"')),
            min_size=2,
            max_size=2,
        ),
        min_size=1,
    ),
    quote=st.sampled_from(['"{}', '{}"', 'say "{}" now', '"{}" he said', 'x{}""', '"{}']),
)
def test_a_quote_in_a_tsv_file_swallows_nothing(tmp_path: Path, rows: Any, quote: str) -> None:
    told = [[quote.format(text), label] for text, label in rows]
    lines = ["text\tlabel", *("\t".join(row) for row in told)]
    (tmp_path / "t.tsv").write_bytes("\n".join(lines).encode())
    assert read_table(tmp_path / "t.tsv").to_numpy().tolist() == told


def test_a_tsv_file_of_pandas_reads_back(tmp_path: Path) -> None:
    frame = make_frame([['a "b"', "x\ty"], ['"', "01"], ["", "NA"]], ["text", "label"])
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    assert read_table(tmp_path / "t.tsv").to_numpy().tolist() == frame.to_numpy().tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "text,label\na\n", "line 2 has 1 cells; expected 2"),
        ("t.csv", "text,label\na,b,c\n", "line 2 has 3 cells; expected 2"),
        ("t.csv", 'text,label\n"a,b\nc,d\n', "line 3: unexpected end of data"),
        ("t.csv", 'text,label\n"a"b,c\n', "line 2: .* expected after"),
        ("t.csv", "text,text\na,b\n", "two columns are called 'text'"),
        ("t.csv", "", "no rows"),
        ("t.csv", "text,label\n", "no rows"),
        ("t.tsv", 'text\tlabel\n"a\nb"\tc\n', "line 2 has 1 cells"),
        ("t.csv", b"text\n\xff\n", "cannot be read: .*utf-8"),
        ("t.jsonl", '{"text": "a"}\n{"text"\n', "line 2: "),
        ("t.jsonl", "[1]\n", "expected a list of objects"),
        ("t.json", '{"text": {"0": "a"}}', "expected a list of objects"),
        ("t.json", "[" * 100_000, "not a readable json file"),
        ("t.json", "[]", "no rows"),
    ],
)
def test_files_that_are_not_what_they_say(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / name)


def test_a_long_cell_and_a_byte_order_mark(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftext\r\n" + b"x" * 300_000 + b"\r\n")
    assert len(read_table(tmp_path / "t.csv", ("text",))["text"][0]) == 300_000
    assert csv.field_size_limit() == before


def test_texts_of_digits_are_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text\n2019\n2020\n")
    assert texts_of(read_table(tmp_path / "t.csv"), "text") == ["2019", "2020"]


@pytest.mark.parametrize("cell", [3, 3.0, "3", torch.tensor(3).numpy()[()]])
def test_whole_numbers(cell: object) -> None:
    assert whole_number(cell) == 3


@pytest.mark.parametrize(
    "cell", ["03", "3.0", " 3", "-0", "", 3.5, True, "True", None, float("nan"), float("inf"), "٣"]
)
def test_what_is_no_whole_number(cell: object) -> None:
    with pytest.raises(ValueError, match=f"{re.escape(str(cell))}$"):
        whole_number(cell)


def test_lists_as_arrays_are_printed_are_refused() -> None:
    """Python would read them as one word."""
    assert listed("['a', 'b']") == listed('["a", "b"]') == ["a", "b"]
    assert listed("[\"it's '\", ' x']") == ["it's '", " x"]
    for cell in ("['a' 'b']", "['a'\n 'b']", "[1 2]", "[", "(" * 5000, "a b"):
        with pytest.raises(ValueError, match="is no list and no object"):
            listed(cell)
    with pytest.raises(DataError, match="row 0"):
        read_sentences([{"words": "['Mary' 'ran']", "tags": "['B-X' 'O']"}])


@pytest.mark.parametrize("start", [1.5, "01", True, None])
def test_places_are_whole_numbers(start: object) -> None:
    row = {"question": "Q?", "context": "abc", "answers": [{"text": "b", "answer_start": start}]}
    with pytest.raises(DataError, match="row 0: answers"):
        read_squad([row])
    entity = {"start": start, "end": 3, "label": "X"}
    with pytest.raises(DataError, match="Texts cannot be used in 1 rows"):
        read_sentences([{"text": "abc", "entities": [entity]}])


def test_words_of_a_conll_file(tmp_path: Path) -> None:
    file = tmp_path / "t.conll"
    text = "\ufeffNew\u00a0York\tO B-X\r\nran  O\r\n\r\nA\u2028b O\rc\x85 O"
    file.write_bytes(text.encode())
    frame = read_conll(file)
    assert frame["words"].tolist() == [["New\u00a0York", "ran"], ["A\u2028b", "c\x85"]]
    assert frame["tags"].tolist() == [["B-X", "O"], ["O", "O"]]


@pytest.mark.parametrize("word", ["", " ", "\u00a0\t", None, 5])
def test_words_that_are_none(word: object) -> None:
    with pytest.raises(DataError, match=r"row 0: word 1 is .* no text"):
        read_sentences([{"words": ["a", word], "tags": ["O", "O"]}])


@FAST
@given(names=st.lists(CELLS, min_size=1, max_size=4))
def test_results_and_views_read_back(tmp_path: Path, names: list[str]) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Grid(GridResult):
        def view(self) -> BarsView:
            return BarsView(names, list(range(len(names))))

    grid = Grid(values=torch.rand(len(names)), axes=("name",), labels={"name": names})
    for made in (grid, grid.view()):
        made.to_csv(tmp_path / "t.csv")
        frame = read_table(tmp_path / "t.csv", ("name", "value"))
        assert frame["name"].tolist() == names
        assert frame["value"].astype(float).tolist() == pytest.approx(made.frame["value"].tolist())


def test_half_a_character_is_spelled_out(tmp_path: Path) -> None:
    BarsView(["\ud83d"], [1.0]).to_csv(tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv")["name"].tolist() == ["\\ud83d"]


def test_frames_of_polars(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.DataFrame({"words": [["Mary", "ran"]], "tags": [["B-X", "O"]]})
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match="this DataFrame cannot be turned into a pandas frame"):
            read_table(frame)
        return
    assert read_sentences(frame)[0].tags == ["B-X", "O"]
    with pytest.raises(DataError, match="this Series is one column"):
        read_table(frame["words"])


def test_what_cannot_turn_itself_into_a_frame() -> None:
    class Needy:
        def to_pandas(self) -> pd.DataFrame:
            raise ModuleNotFoundError("pyarrow is required")

    with pytest.raises(DataError, match=r"this Needy cannot be turned .* pyarrow is required"):
        read_table(Needy())
