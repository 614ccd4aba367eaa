"""What a tokenizer call returns: a dictionary that also answers questions about positions.

A ``BatchEncoding`` maps names (``input_ids``, ``attention_mask``, ...) to lists or tensors, so it
can be unpacked into a model's ``forward``. Beside that it keeps one Rust ``Encoding`` per row,
which knows the way between three countings of the same text: characters (positions in the Python
string), words (pieces of the pre-tokenizer) and tokens::

    batch = tokenizer("Hello world")
    batch.char_to_token(6)  # 1, the token that holds the "w"
    batch.token_to_chars(1)  # CharSpan(start=6, end=11)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Encoding

from neox_lab.errors import TokenizerError, nearest
from neox_lab.selections import whole_number
from neox_lab.tokenizer.arguments import TENSORS, choose


class CharSpan(NamedTuple):
    """Characters ``start`` to ``end - 1`` of the text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens ``start`` to ``end - 1`` of a row."""

    start: int
    end: int


class BatchEncoding(dict[str, Any]):
    """Token ids, masks and what else was asked for, by name and as attributes.

    ``batch["input_ids"]`` and ``batch.input_ids`` are ids ``[batch, pos]``, or ``[pos]`` for one
    text without ``return_tensors``. ``batch[0]`` is the Rust ``Encoding`` of row 0.

    The position methods take either one index, which then counts in row 0, or a row and an
    index. Negative token indices count from the end. They return None where a position belongs
    to no text (special tokens, padding) or lies outside.
    """

    def __init__(
        self, data: Mapping[str, Any] | None = None, encodings: Sequence[Encoding] | None = None
    ) -> None:
        super().__init__(data or {})
        self._encodings = list(encodings) if encodings is not None else None

    def __getitem__(self, key: str | int | slice) -> Any:
        """A value by name, an ``Encoding`` by row number, or all values of a slice of rows.

        Raises:
            KeyError: there is no value of that name.
            IndexError: there is no such row.
            TokenizerError: a row is asked for, and the batch was not made from text.
        """
        if isinstance(key, int):
            return self._row(key)
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.items()}
        if key not in self:
            raise KeyError(f"{key!r}: this encoding holds {', '.join(self)}.{nearest(key, self)}")
        return super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(
                f"This encoding holds {', '.join(self)}, not {name!r}.{nearest(name, self)}"
            ) from None

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> BatchEncoding:
        """Move every tensor to ``device``, in place.

        Returns:
            The encoding itself.

        Raises:
            TokenizerError: there is no tensor to move.
        """
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in self.items()
            if isinstance(value, torch.Tensor)
        }
        if self and not moved:
            raise TokenizerError(
                "This encoding holds Python lists, which have no device: "
                "call the tokenizer with return_tensors='pt'."
            )
        self.update(moved)
        return self

    def convert_to_tensors(
        self, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> BatchEncoding:
        """Make every column a tensor, in place.

        Args:
            tensor_type: "pt" or "np"; None leaves all as it is.
            prepend_batch_axis: columns are of one text, ``[pos]``, and become ``[1, pos]``.

        Returns:
            The encoding itself.

        Raises:
            TokenizerError: rows differ in length or hold no numbers, or the type is another.
        """
        if tensor_type is None:
            return self
        kind = choose("tensor_type", tensor_type, TENSORS)
        for name, value in self.items():
            if not hasattr(value, "ndim"):
                self[name] = as_tensor(name, [value] if prepend_batch_axis else value, kind)
        return self

    @property
    def data(self) -> dict[str, Any]:
        """The columns as a plain dictionary."""
        return dict(self)

    @property
    def encodings(self) -> list[Encoding] | None:
        """One Rust ``Encoding`` per row; None when the batch was not made from text."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the position methods work."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """2 for text pairs, 1 for single texts, None when not made from text."""
        return self._encodings[0].n_sequences if self._encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row as the vocabulary spells them, ``[pos]``."""
        return self._row(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word, ``[pos]``."""
        return self._row(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row 0 (text) or 1 (text_pair), ``[pos]``."""
        return self._row(batch_index).sequence_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """0 or 1: whether the token comes from text or from text_pair."""
        row, token = self._token(batch_or_token_index, token_index)
        return row.token_to_sequence(token)

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        """Number of the word that holds the token."""
        row, token = self._token(batch_or_token_index, token_index)
        return row.token_to_word(token)

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """Characters of the text that the token stands for."""
        row, token = self._token(batch_or_token_index, token_index)
        found = row.token_to_chars(token)
        return CharSpan(*found) if found else None

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """Tokens that the word was split into."""
        row, word = self._place(batch_or_word_index, word_index)
        found = row.word_to_tokens(word, sequence_index)
        return TokenSpan(*found) if found else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """Characters of the text that the word covers."""
        row, word = self._place(batch_or_word_index, word_index)
        found = row.word_to_chars(word, sequence_index)
        return CharSpan(*found) if found else None

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Index of the token that holds the character."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """Number of the word that holds the character."""
        row, char = self._place(batch_or_char_index, char_index)
        return row.char_to_word(char, sequence_index)

    def _row(self, batch_index: int) -> Encoding:
        if self._encodings is None:
            raise TokenizerError(
                "This batch was not made from text by a tokenizer call, so it cannot tell how "
                "tokens, words and characters correspond."
            )
        number = whole_number("batch_index", batch_index, TokenizerError)
        try:
            return self._encodings[number]
        except IndexError:
            raise IndexError(
                f"There is no row {number}: the batch has {len(self._encodings)} rows."
            ) from None

    def _place(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """(row, index) from the arguments ``(index)`` or ``(row number, index)``."""
        row, index = (0, first) if second is None else (first, second)
        if index < 0:
            raise TokenizerError(
                f"A position in the text cannot be negative, and {index} was given."
            )
        return self._row(row), index

    def _token(self, first: int, second: int | None) -> tuple[Encoding, int]:
        """Like ``_place`` for a token index, which may count from the end."""
        row, index = (0, first) if second is None else (first, second)
        encoding = self._row(row)
        if index < -len(encoding):
            raise TokenizerError(f"There is no token {index}: the row has {len(encoding)} tokens.")
        return encoding, index % len(encoding) if index < 0 else index


def as_tensor(name: str, value: Sequence[object], kind: str) -> Any:
    """``value``, nested lists of numbers, as a torch ("pt") or NumPy ("np") array.

    Integers become int64.

    Raises:
        TokenizerError: rows differ in length or hold no numbers.
    """
    import numpy as np

    try:
        array = np.array(value)
        if array.size == 0:
            array = array.astype(np.int64)
        tensor = torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        lengths = sorted({len(row) for row in value if isinstance(row, list | tuple)})
        if len(lengths) > 1:
            reason = f"its rows have lengths from {lengths[0]} to {lengths[-1]}"
        else:
            reason = "it does not hold numbers only"
        raise TokenizerError(
            f"Unable to create tensor from {name!r}: {reason}. Pass padding=True to bring rows to "
            "the same length (and truncation=True with max_length= to shorten them), or leave "
            "out return_tensors to get lists."
        ) from error
    if kind == "np":
        return array
    return tensor.float() if tensor.dtype == torch.float64 else tensor
