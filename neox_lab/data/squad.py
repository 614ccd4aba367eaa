"""SQuAD's file format: questions with texts and answers.

Rajpurkar et al. 2016, arXiv:1606.05250 (version 1.1); 2018, arXiv:1806.03822 (2.0, with questions
that the text does not answer). An answer is a stretch of the text, given by its first character.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from neox_lab.data.table_files import read_text
from neox_lab.data.tables import Table, listed, read_table, refuse, whole_number
from neox_lab.errors import DataError
from neox_lab.files import parse_json

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("question", "context", "answers")
Span = tuple[int, str]
"""First character of an answer in its context, and its text."""
Questions: TypeAlias = "Table | Mapping[str, object]"
"""A table of questions, or the content of a SQuAD file."""


def read_squad(source: Questions) -> pd.DataFrame:
    """Questions with their texts and answers: columns ``id, question, context, answers``.

    ``answers`` is a list of ``(first character, text)``; empty where the text has no answer.

    Args:
        source: a SQuAD JSON file or its content; or a table (see ``tables.read_table``) with
            ``question``, ``context`` and ``answers`` (a list of objects with ``text`` and
            ``answer_start``, or one object with a list of each, as the hub's datasets have it).

    Raises:
        DataError: columns are missing, or answers do not stand where they should; by row.
    """
    import pandas as pd

    frame = read_table(_flattened(source), COLUMNS)
    frame = frame.copy()
    if "id" not in frame.columns:
        frame.insert(0, "id", [str(row) for row in range(len(frame))])
    wrong: list[tuple[int, str]] = []
    spans: list[list[Span]] = []
    for row, (context, given) in enumerate(zip(frame["context"], frame["answers"], strict=True)):
        try:
            spans.append(_spans(given))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            spans.append([])
            wrong.append((row, f"answers={given!r:.60} have no text and answer_start"))
        wrong += [(row, problem) for problem in _misplaced(context, spans[-1])]
    for column in ("question", "context"):
        texts = enumerate(frame[column])
        wrong += [(r, f"no {column}") for r, t in texts if not isinstance(t, str) or not t.strip()]
    refuse(
        "Questions cannot be used",
        sorted(wrong),
        "An answer must stand in its context exactly, from its answer_start on (in characters).",
    )
    frame = frame.assign(answers=pd.Series(spans, dtype=object))
    return frame[["id", *COLUMNS]]


def _flattened(source: Questions) -> object:
    """One row for each question of a SQuAD file or its content; a table as it is."""
    content: object = source
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".json":
        try:
            content = parse_json(read_text(Path(source)))
        except ValueError as error:
            raise DataError(f"{str(source)!r} cannot be read as JSON: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        return _questions(content["data"])
    return source  # read_table refuses what is no table


def _questions(articles: list[Any]) -> list[dict[str, object]]:
    try:
        return [
            {
                "id": question.get("id", ""),
                "question": question["question"],
                "context": paragraph["context"],
                "answers": [] if question.get("is_impossible") else question.get("answers", []),
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"this is not SQuAD's format ({error!r}); expected articles with paragraphs, each with "
            "a context and qas, each of these with a question and answers"
        ) from error


def _spans(cell: object) -> list[Span]:
    given = listed(cell)
    if isinstance(given, dict):
        pairs = list(zip(given["answer_start"], given["text"], strict=True))
    else:
        pairs = [(a["answer_start"], a["text"]) if isinstance(a, dict) else a for a in given]
    for _, text in pairs:
        if not isinstance(text, str):
            raise TypeError(text)
    return [(whole_number(start), text) for start, text in pairs]


def _misplaced(context: object, spans: Sequence[Span]) -> list[str]:
    return [
        f"answer {text!r:.40} is not at character {start}: there is "
        f"{context[start : start + len(text)]!r:.40}"
        for start, text in spans
        if isinstance(context, str)
        and (not text.strip() or start < 0 or context[start : start + len(text)] != text)
    ]
