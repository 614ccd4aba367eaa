"""The tokens of a corpus as they were read, in two bytes each, so that examples can be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neox_lab.activations.documents import Chunk


class Spot(NamedTuple):
    """A token of the corpus and what the model had read with it.

    Attributes:
        document: number of the document.
        position: of the token in its document.
        ids: the chunk the model read, from its first token on.
        at: position of the token therein.
    """

    document: int
    position: int
    ids: list[int]
    at: int


class Corpus:
    """Chunks of documents one after another.

    Attributes:
        tokens: all tokens, ``[token]``; two bytes each where the vocabulary allows.
        first: number of the first token of each chunk, ``[chunk]``.
        document: of each chunk, ``[chunk]``.
        start: position of its first token in the document, ``[chunk]``.
    """

    def __init__(self, vocab: int) -> None:
        """An empty corpus.

        Args:
            vocab: how many different tokens there can be.
        """
        self._dtype = np.uint16 if vocab <= 2**16 else np.int32
        self._parts: list[NDArray[Any]] = []
        self._table: list[NDArray[np.int64]] = []
        self.count = 0

    def add(self, chunks: Sequence[Chunk]) -> list[int]:
        """Take in chunks.

        Returns:
            The number that the first token of each now has.
        """
        lengths = np.array([len(chunk.ids) for chunk in chunks], dtype=np.int64)
        first = self.count + np.cumsum(lengths) - lengths
        self._parts.append(np.concatenate([np.array(c.ids, dtype=self._dtype) for c in chunks]))
        places = [(chunk.document, chunk.start) for chunk in chunks]
        self._table.append(np.column_stack((first, np.array(places, dtype=np.int64))))
        self.count += int(lengths.sum())
        return [int(number) for number in first]

    def close(self) -> None:
        """No more are coming."""
        self.tokens: NDArray[Any] = np.concatenate(self._parts)
        table = np.concatenate(self._table)
        self.first, self.document, self.start = table.T
        self._parts, self._table = [], []

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(array.nbytes for array in (self.tokens, self.first, self.document, self.start))

    @property
    def documents(self) -> int:
        """How many documents have a token."""
        return len(np.unique(self.document))

    def spot(self, place: int) -> Spot:
        """Where a token stands, by its number in the corpus."""
        chunk = int(np.searchsorted(self.first, place, side="right")) - 1
        first = int(self.first[chunk])
        end = int(self.first[chunk + 1]) if chunk + 1 < len(self.first) else len(self.tokens)
        at = place - first
        ids: list[int] = self.tokens[first:end].tolist()
        return Spot(int(self.document[chunk]), int(self.start[chunk]) + at, ids, at)

    def __eq__(self, other: object) -> bool:
        """Whether the other has the same chunks."""
        if not isinstance(other, Corpus):
            return NotImplemented
        names = ("tokens", "first", "document", "start")
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)

    __hash__ = None  # type: ignore[assignment]
