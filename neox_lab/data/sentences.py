"""Texts with a tag for each word, from CoNLL files and from tables."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from neox_lab.data import conll
from neox_lab.data.tables import Table, listed, read_table, refuse, whole_number
from neox_lab.errors import DataError

WORD = re.compile(r"\w+|[^\w\s]")
JOINERS = "\u200c\u200d"  # zero-width, inside words of Persian and of Indic scripts, and in emoji


class Sentence(NamedTuple):
    """A text, the characters of its words (last one exclusive), and a tag for each word."""

    text: str
    words: list[tuple[int, int]]
    tags: list[str]


TaggedTexts: TypeAlias = "Table | Sequence[Sentence]"
"""A CoNLL file, a table, or what ``read_sentences`` made of one."""


def read_sentences(data: TaggedTexts) -> list[Sentence]:
    """Texts with tags.

    Args:
        data: a CoNLL file (``.conll``, ``.txt``, ``.bio``); a table with ``words`` and ``tags``
            (or ``tokens`` and ``ner_tags``), a list in each cell; or a table with ``text`` and
            ``entities``, objects with ``start``, ``end`` (characters) and ``label``. A
            ``datasets.Dataset`` may hold tags as numbers if it names them.

    Raises:
        DataError: tags that break BIO, lists of different length, entities that do not begin and
            end with a word; the message names the rows.
    """
    if isinstance(data, list) and data and all(isinstance(row, Sentence) for row in data):
        return data
    if isinstance(data, str | os.PathLike) and Path(data).suffix in (".conll", ".txt", ".bio"):
        data = conll.read_conll(data)
    frame = read_table(data).rename(columns={"tokens": "words", "ner_tags": "tags"})
    by_words = {"words", "tags"} <= set(frame.columns)
    if not by_words and not {"text", "entities"} <= set(frame.columns):
        raise DataError(
            f"the table has the columns {', '.join(map(str, frame.columns))}; expected words and "
            "tags, or text and entities"
        )
    columns = ("words", "tags") if by_words else ("text", "entities")
    read = _from_words if by_words else _from_entities
    numbered = _tag_names(data)
    if by_words and numbered:
        frame["tags"] = [[numbered[tag] for tag in tags] for tags in frame["tags"]]
    sentences, wrong = [], []
    for row, (first, second) in enumerate(zip(*(frame[name] for name in columns), strict=True)):
        try:
            sentences.append(read(first, second))
        except (ValueError, TypeError, KeyError) as error:
            wrong.append((row, str(error)))
    refuse("Texts cannot be used", wrong, "Correct these rows or leave them out.")
    return sentences


def _tag_names(data: object) -> list[str] | None:
    """Names of numbered tags, where ``data`` is a ``datasets.Dataset`` that has some."""
    features: Any = getattr(data, "features", None) or {}
    column = features.get("ner_tags") or features.get("tags")
    return getattr(getattr(column, "feature", None), "names", None)


def words_of(text: str) -> list[tuple[int, int]]:
    """First and last character (exclusive) of each word or punctuation mark.

    Combining marks and zero-width joiners belong to what they stand behind.
    """
    words: list[tuple[int, int]] = []
    for match in WORD.finditer(text):
        start, end = match.span()
        if words and words[-1][1] == start and _goes_on(text, words[-1][0], start):
            words[-1] = words[-1][0], end
        else:
            words.append((start, end))
    return words


def _goes_on(text: str, first: int, at: int) -> bool:
    """Whether what begins at ``at`` belongs to the word before it, which begins at ``first``."""
    if _is_mark(text[at]) or text[at - 1] == JOINERS[1]:
        return True
    both = WORD.match(text[first] + text[at])
    return _is_mark(text[at - 1]) and both is not None and both.end() == 2


def _is_mark(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character)[0] == "M"


def _from_words(word_cell: object, tag_cell: object) -> Sentence:
    words, tags = list(listed(word_cell)), [str(tag) for tag in listed(tag_cell)]
    for at, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise DataError(f"word {at} is {word!r:.60}, which is no text")
    if not words or len(words) != len(tags):
        raise DataError(f"{len(words)} words and {len(tags)} tags; expected as many, at least one")
    problem = conll.broken(tags)
    if problem:
        raise DataError(problem)
    spans, at = [], 0
    for word in words:
        inner = word.strip()
        start = at + word.index(inner)
        spans.append((start, start + len(inner)))
        at += len(word) + 1
    return Sentence(" ".join(words), spans, tags)


def _from_entities(text: object, entity_cell: object) -> Sentence:
    if not isinstance(text, str) or not words_of(text):
        raise DataError("the text has no word")
    words = words_of(text)
    tags = ["O"] * len(words)
    starts = {start: at for at, (start, _) in enumerate(words)}
    ends = {end: at for at, (_, end) in enumerate(words)}
    for entity in listed(entity_cell):
        missing = {"start", "end", "label"} - set(entity)
        if missing:
            raise DataError(f"entity {entity!r:.60} has no {', '.join(sorted(missing))}")
        start, end = whole_number(entity["start"]), whole_number(entity["end"])
        label = entity["label"]
        if not isinstance(label, str) or not label:
            raise DataError(f"entity {text[start:end]!r} has the label {label!r}; expected a name")
        if start not in starts or end not in ends or starts[start] > ends[end]:
            raise DataError(
                f"entity {text[start:end]!r} ({start} to {end}) does not begin and end with a word"
            )
        for at in range(starts[start], ends[end] + 1):
            if tags[at] != "O":
                raise DataError(f"entity {text[start:end]!r} overlaps another one")
            tags[at] = f"{'B' if at == starts[start] else 'I'}-{label}"
    return Sentence(text, words, tags)
