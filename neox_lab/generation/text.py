"""Tokens as bytes, and text while it is being written.

A token of a byte-level vocabulary is a few bytes, and not always whole characters: an emoji may be
spread over three tokens. Whoever compares or shows text while it is being written has to work with
bytes, and to wait until a character is complete.
"""

from __future__ import annotations

import codecs
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neox_lab.tokenizer import GPTNeoXTokenizerFast


@cache
def byte_of_letter() -> dict[str, int]:
    """The alphabet of byte-level vocabularies: one printable letter for each of the 256 bytes.

    Bytes that are printable Latin-1 stand for themselves; the others are, in order, the letters
    from U+0100 on (Radford et al., GPT-2, 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class TokenBytes:
    """From a token id to the bytes it stands for."""

    def __init__(self, tokenizer: GPTNeoXTokenizerFast, skip_special_tokens: bool = False) -> None:
        """Any tokenizer with ``convert_ids_to_tokens`` and ``get_added_vocab`` will do."""
        self._tokenizer = tokenizer
        self._added = set(tokenizer.get_added_vocab())
        self._skipped = set(tokenizer.all_special_tokens) if skip_special_tokens else set()
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        """The bytes of ``token``; none for an id that stands for nothing."""
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _look_up(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None or piece in self._skipped:
            return b""
        letters = byte_of_letter()
        if piece in self._added or any(letter not in letters for letter in piece):
            return str(piece).encode()
        return bytes(letters[letter] for letter in piece)


class GrowingText:
    """Token ids in, as many whole characters as are complete out."""

    def __init__(self, tokenizer: GPTNeoXTokenizerFast, skip_special_tokens: bool = False) -> None:
        """Nothing written yet."""
        self._bytes_of = TokenBytes(tokenizer, skip_special_tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The characters that ``token`` completes; empty while one is unfinished."""
        return self._decoder.decode(self._bytes_of(token))

    def end(self) -> str:
        """What was unfinished, as a replacement character; the next text starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
