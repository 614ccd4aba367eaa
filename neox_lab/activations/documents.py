"""From whatever holds texts to chunks of token ids that the model reads one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import holds_names, plain, shown
from neox_lab.data.encoding import token_ids
from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel

Document = str | Sequence[int] | Tensor | Mapping[str, object]
"""A text, its token ids, or a row of a data set that holds one of them as ``text`` or
``input_ids``; of these an ``attention_mask`` in the row says which are padding."""
Documents = str | Tensor | Iterable[Document]
"""Several documents; a string is one, and a tensor ``[batch, pos]`` is a document for each row."""
_TOGETHER = 64  # texts that the tokenizer is given at a time
_EXPECTED = "expected a text, token ids, or a row with 'text' or 'input_ids'"


class Chunk(NamedTuple):
    """A stretch of one document that the model reads from its position 0 on.

    Attributes:
        document: number of the document.
        start: position of the first token in the document.
        ids: the tokens.
        ends: the document ends here; False where it was cut off.
    """

    document: int
    start: int
    ids: list[int]
    ends: bool


def countable(texts: Documents) -> bool:
    """Whether all documents are there, so that they can be counted before they are read.

    What has a length and no entries, such as a progress bar around an iterator, is read once.
    """
    return hasattr(texts, "__len__") and hasattr(texts, "__getitem__")


def documents(model: HookedModel, texts: Documents) -> Iterator[list[int]]:
    """The token ids of every document; texts are read a few at a time.

    Args:
        model: what will read them.
        texts: see ``Documents``.

    Raises:
        InputError: there is something else than texts and ids in it, by number.
        TokenizerError: the model has no tokenizer for texts.
    """
    if isinstance(texts, str):
        texts = [texts]
    number = isinstance(texts, Tensor | np.ndarray) and not texts.ndim
    if number or isinstance(texts, bytes) or holds_names(texts) or not isinstance(texts, Iterable):
        raise InputError(
            f"texts={shown(texts)}; expected a text, several in a list or an iterator, or token "
            "ids [batch, pos]."
        )
    rows, first = iter(texts), 0
    while group := list(islice(rows, _TOGETHER)):
        yield from _encoded(model, group, first)
        first += len(group)


def _encoded(model: HookedModel, group: list[Document], first: int) -> Iterator[list[int]]:
    found = [_content(document, first + at) for at, document in enumerate(group)]
    texts = [text for text in found if isinstance(text, str)]
    encoded = iter(token_ids(model, texts) if texts else [])  # ids need no tokenizer
    for at, content in enumerate(found):
        ids = next(encoded) if isinstance(content, str) else content
        if ids and not 0 <= min(ids) <= max(ids) < model.config.vocab_size:
            raise InputError(
                f"document {first + at} has token ids from {min(ids)} to {max(ids)}; expected 0 to "
                f"{model.config.vocab_size - 1}"
            )
        yield ids


def _content(document: object, number: int) -> str | list[int]:
    """The text of a document, or its ids.

    Raises:
        InputError: it is neither.
    """
    content = document
    if isinstance(document, Mapping):
        content = document.get("text", document.get("input_ids"))
    if isinstance(content, str):
        return content
    ids = plain(list(content) if isinstance(content, tuple | range) else content)
    if isinstance(ids, list) and all(type(token) is int for token in ids):
        mask = document.get("attention_mask") if isinstance(document, Mapping) else None
        return ids if mask is None else _own(ids, mask, number)
    raise InputError(f"document {number} is {shown(document, 80)}; {_EXPECTED}.")


def _own(ids: list[int], mask: object, number: int) -> list[int]:
    """The ids that are not padding.

    Raises:
        InputError: the mask does not fit.
    """
    own = plain(mask)
    if not isinstance(own, list) or len(own) != len(ids) or not all(each in (0, 1) for each in own):
        raise InputError(
            f"document {number} has {len(ids)} token ids and attention_mask={shown(mask, 80)}; "
            "expected a 1 for each token and a 0 for each padding."
        )
    return [token for token, kept in zip(ids, own, strict=True) if kept]


def chunks(rows: Iterable[list[int]], context: int, max_tokens: int | None) -> Iterator[Chunk]:
    """Every token once, in order: documents cut into chunks of at most ``context`` tokens.

    Args:
        rows: token ids of every document.
        context: how long a chunk may be.
        max_tokens: after so many the last document is cut off; None for all.

    Yields:
        The chunks. A document without tokens has one without tokens.
    """
    left = max_tokens
    for document, ids in enumerate(rows):
        length = len(ids)
        if left is not None:
            ids = ids[:left]
            left -= len(ids)
        for start in range(0, max(1, len(ids)), context):
            part = ids[start : start + context]
            yield Chunk(document, start, part, start + len(part) == length)
        if left == 0:
            return


def windows(stream: Iterable[Chunk], tokens: int) -> Iterator[list[Chunk]]:
    """Neighbouring chunks of at most so many tokens together, or a single longer one."""
    window: list[Chunk] = []
    held = 0
    for chunk in stream:
        if window and held + len(chunk.ids) > tokens:
            yield window
            window, held = [], 0
        window.append(chunk)
        held += len(chunk.ids)
    if window:
        yield window


def digest(window: Sequence[Chunk]) -> str:
    """A checksum of documents, positions and tokens."""
    told = hashlib.sha256()
    for chunk in window:
        head = [chunk.document, chunk.start, len(chunk.ids), chunk.ends]
        told.update(np.array(head + chunk.ids, dtype=np.int64).tobytes())
    return told.hexdigest()


def kept(chunk: Chunk, pos: str, skip_first: int) -> range:
    """The positions of a chunk, counted from its start, of which rows are stored."""
    length = len(chunk.ids)
    if pos == "last":
        return range(max(skip_first, length - 1) if chunk.ends else length, length)
    return range(min(skip_first, length), length)


def prefix_checksums(tokens: Tensor, at: Tensor) -> Tensor:
    """For every token a checksum of its chunk up to it ``[token]``, int64.

    A token mixed with its position is a number as good as random; sums of these tell prefixes
    apart, and do not depend on anything after them.

    Args:
        tokens: of several chunks, one after another.
        at: the position of each in its chunk.
    """
    sums = mixed(mixed(tokens) + at).cumsum(0)  # wraps, and so do differences
    before = torch.cat((sums.new_zeros(1), sums))
    return sums - before[torch.arange(len(tokens)) - at]


def mixed(numbers: Tensor) -> Tensor:
    """Numbers as good as random from whole numbers, int64, one from each; arithmetic wraps."""
    found = numbers + 0x1E3779B97F4A7C15
    found = (found ^ (found >> 30)) * -0x40A7B892E31B1A47  # steps of splitmix64
    found = (found ^ (found >> 27)) * -0x6B2FB644ECCEEE15
    return found ^ (found >> 31)
