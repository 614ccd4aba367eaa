"""Tokens as bytes.

A token of a byte-level vocabulary is a few bytes, and not always whole characters: "é" may be
spread over two tokens. Whoever compares or shows text while it is being written has to work with
bytes, and wait until a character is complete.
"""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def byte_of_letter() -> dict[str, int]:
    """The alphabet of byte-level vocabularies: one printable letter for each of the 256 bytes.

    Bytes that are printable Latin-1 stand for themselves; the others are, in order, the letters
    from U+0100 on (Radford et al., GPT-2, 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """From a token id to the bytes it stands for."""

    def __init__(self, tokenizer: Any) -> None:
        """Any tokenizer with ``convert_ids_to_tokens`` and ``get_added_vocab`` will do."""
        self._tokenizer = tokenizer
        self._added = set(tokenizer.get_added_vocab())
        self._known: dict[int, bytes] = {}

    def __call__(self, token: int) -> bytes:
        """The bytes of ``token``; none for an id that stands for nothing."""
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _look_up(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        letters = byte_of_letter()
        if piece in self._added or any(letter not in letters for letter in piece):
            return str(piece).encode()
        return bytes(letters[letter] for letter in piece)
