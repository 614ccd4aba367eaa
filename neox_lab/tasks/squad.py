"""SQuAD: its file format, and how its answers are compared.

Rajpurkar et al. 2016, arXiv:1606.05250 (version 1.1); 2018, arXiv:1806.03822 (2.0, with questions
that the text does not answer). An answer is a stretch of the text, given by its first character.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neox_lab.data.tables import listed, read_table, refuse
from neox_lab.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("question", "context", "answers")
Span = tuple[int, str]
"""First character of an answer in its context, and its text."""


def read_squad(source: Any) -> pd.DataFrame:
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

    content = _squad_content(source)
    try:
        rows = source if content is None else _flattened(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"this is not SQuAD's format ({error!r}); expected articles with paragraphs, each with "
            "a context and qas, each of these with a question and answers"
        ) from error
    frame = read_table(rows, COLUMNS)
    frame = frame.copy()
    if "id" not in frame.columns:
        frame.insert(0, "id", [str(row) for row in range(len(frame))])
    wrong: list[tuple[int, str]] = []
    spans: list[list[Span]] = []
    for row, (context, given) in enumerate(zip(frame["context"], frame["answers"], strict=True)):
        try:
            spans.append(_spans(given))
        except (KeyError, TypeError, ValueError):
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


def _squad_content(source: Any) -> list[dict[str, Any]] | None:
    """The articles of a SQuAD file, or None if ``source`` is a table."""
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".json":
        try:
            source = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{str(source)!r} cannot be read as JSON: {error}") from error
    if isinstance(source, dict) and isinstance(source.get("data"), list):
        return list(source["data"])
    return None


def _flattened(articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question."""
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


def _spans(given: Any) -> list[Span]:
    given = listed(given)
    if isinstance(given, dict):
        pairs = zip(given["answer_start"], given["text"], strict=True)
        return [(int(start), str(text)) for start, text in pairs]
    return [
        (int(answer["answer_start"]), str(answer["text"]))
        if isinstance(answer, dict)
        else (int(answer[0]), str(answer[1]))
        for answer in given
    ]


def _misplaced(context: Any, spans: Sequence[Span]) -> list[str]:
    return [
        f"answer {text!r:.40} is not at character {start}: there is "
        f"{context[start : start + len(text)]!r:.40}"
        for start, text in spans
        if isinstance(context, str)
        and (not text or start < 0 or context[start : start + len(text)] != text)
    ]


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles (a, an, the) and extra spaces."""
    lowered = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of those given, after ``normalized``; "" is no answer."""
    return float(normalized(predicted) in {normalized(text) for text in answers or [""]})


def f1(predicted: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, for the answer where it is highest.

    If either side has no word left after ``normalized``, 1 if both have none and 0 otherwise.
    """
    return max(_f1(normalized(predicted).split(), normalized(a).split()) for a in answers or [""])


def _f1(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))
