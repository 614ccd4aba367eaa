"""Entities as tags: the CoNLL file format, and what BIO tags mean.

``B-X`` begins an entity of kind X, ``I-X`` goes on with it, ``O`` is outside. An ``I-X`` that
follows nothing it could go on with begins an entity of its own, as in conlleval and seqeval (Tjong
Kim Sang and De Meulder 2003, arXiv:cs/0306050).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neox_lab.data.table_files import read_text
from neox_lab.errors import DataError
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

Entity = tuple[str, int, int]
"""Kind, first word and last word (exclusive)."""


def read_conll(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Sentences of a CoNLL file: columns ``words`` and ``tags``, a list in each cell.

    A line is a word and, last on the line, its tag, with spaces or tabs between; an empty line ends
    a sentence; lines that begin with ``-DOCSTART-`` are left out.

    Args:
        path: where it is.

    Raises:
        DataError: the file cannot be read, or a line has a word and no tag.
    """
    lines = re.split(r"\r\n|\r|\n", read_text(Path(path)))
    sentences: list[dict[str, list[str]]] = [{"words": [], "tags": []}]
    for number, line in enumerate([*lines, ""], 1):
        parts = re.findall(r"[^ \t]+", line)  # other blanks may belong to a word
        if not parts or parts[0] == "-DOCSTART-":
            if sentences[-1]["words"]:
                sentences.append({"words": [], "tags": []})
        elif len(parts) < 2:
            raise DataError(f"line {number} of {Path(path).name} has a word and no tag: {line!r}")
        else:
            sentences[-1]["words"].append(parts[0])
            sentences[-1]["tags"].append(parts[-1])
    return make_frame(sentences[:-1])


def is_tag(tag: str) -> bool:
    """Whether ``tag`` is ``O``, ``B-KIND`` or ``I-KIND``."""
    return tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def broken(tags: Sequence[str]) -> str | None:
    """What breaks the rules of BIO in ``tags``, or None."""
    before = "O"
    for at, tag in enumerate(tags):
        kind = tag[2:]
        if not is_tag(tag):
            return f"tag {at} is {tag!r}; expected 'O', 'B-...' or 'I-...'"
        if tag.startswith("I-") and before[2:] != kind:
            return f"tag {at} is {tag!r} after {before!r}; an entity begins with 'B-{kind}'"
        before = tag
    return None


def entities(tags: Sequence[str]) -> list[Entity]:
    """The entities that BIO tags stand for, in order."""
    found: list[Entity] = []
    before = "O"
    for at, tag in enumerate(tags):
        kind = tag[2:]
        if tag != "O" and (tag.startswith("B-") or before[2:] != kind):
            found.append((kind, at, at + 1))
        elif tag != "O":
            found[-1] = (kind, found[-1][1], at + 1)
        before = tag
    return found
