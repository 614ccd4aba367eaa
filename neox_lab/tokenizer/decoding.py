"""From token ids to text, for programs and for people to read.

A byte-level token is a run of bytes, and may begin or end inside a UTF-8 character. Joined with
its neighbours it is text; decoded alone it would give U+FFFD, which says nothing. ``decode`` joins
tokens; ``pieces`` labels each token by itself and shows such bytes one by one as ``⟨E2⟩``.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from tokenizers import decoders

from neox_lab.tokenizer.arguments import named_arguments
from neox_lab.tokenizer.settings import Checked, flag
from neox_lab.tokenizer.vocabulary import LARGEST_ID, Vocabulary, id_list, row_of_ids

if TYPE_CHECKING:
    from neox_lab.tokenizer.vocabulary import TokenIds

REPLACEMENT = "\ufffd"
# What transformers 4 did to decoded text by default: undo the spaces of tokenised corpora.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _byte_of_letter() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with (Radford et al. 2019, GPT-2).

    Bytes that print in Latin-1 stand for themselves; the others take the code points from 256.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printing]
    letters = {chr(byte): byte for byte in printing}
    return letters | {chr(256 + index): byte for index, byte in enumerate(rest)}


BYTE_OF_LETTER = _byte_of_letter()


class Decoder(Vocabulary):
    """A vocabulary that turns ids back into text."""

    clean_up_tokenization_spaces = Checked(flag)

    @named_arguments
    def decode(
        self,
        token_ids: TokenIds,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """Text of ids.

        Ids above the vocabulary (padding rows of the embedding) decode to nothing; bytes that
        are no complete UTF-8 to U+FFFD.

        Args:
            token_ids: an int, ``[pos]`` or ``[batch, pos]``.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: remove the space before punctuation, which loses
                information; the tokenizer's own setting where None.

        Returns:
            A str for an int or one row, a list of str for a batch.

        Raises:
            TokenizerError: an id is negative or no integer.
        """
        ids = id_list(token_ids)
        if isinstance(ids, list) and any(isinstance(row, list) for row in ids):
            options = (skip_special_tokens, clean_up_tokenization_spaces)
            return [self.decode(row, *options) for row in ids]
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        text = self._text([ids] if isinstance(ids, int) else ids, skip_special_tokens)
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    @staticmethod
    def clean_up_tokenization(text: str) -> str:
        """``text`` without the spaces that tokenised English corpora put before punctuation."""
        for spaced, plain in CLEAN_UP:
            text = text.replace(spaced, plain)
        return text

    def batch_decode(self, sequences: TokenIds, *args: Any, **options: Any) -> list[str]:
        """``decode`` for each row of ``[batch, pos]``; always a list, also for one row ``[pos]``.

        Raises:
            TokenizerError: an id is negative or no integer.
        """
        ids = id_list(sequences)
        if ids == []:
            return []
        text = self.decode(ids, *args, **options)
        return [text] if isinstance(text, str) else list(text)

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        flag("skip_special_tokens", skip_special_tokens)
        ids = [token_id for token_id in ids if token_id <= LARGEST_ID]
        if not self._misread:
            return self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        parts = []
        for misread, run in itertools.groupby(ids, key=self._misread.__contains__):
            if misread:
                tokens = [self._misread[token_id] for token_id in run]
                parts += [t.content for t in tokens if not (skip_special_tokens and t.special)]
            else:
                parts.append(self._backend.decode(list(run), skip_special_tokens))
        return "".join(parts)

    def piece_text(self, token_id: int) -> str:
        """Text of one token for people to read.

        Bytes that are no complete UTF-8 character show as ``⟨E2⟩``, ids that no token has as
        ``⟨50300⟩``; U+FFFD never appears.

        Raises:
            TokenizerError: the id is negative or no integer.
        """
        return self.pieces([token_id])[0]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of text that a token stands for; none for an id that no token has.

        Raises:
            TokenizerError: the id is negative or no integer.
        """
        (token,) = self.convert_ids_to_tokens([token_id])
        if token is None:
            return b""
        added = token_id in self._backend.get_added_tokens_decoder()
        spelled_in_bytes = isinstance(self._backend.decoder, decoders.ByteLevel)
        found = None if added or not spelled_in_bytes else _bytes(token)
        return token.encode("utf-8", "surrogatepass") if found is None else found

    def pieces(self, ids: TokenIds) -> list[str]:
        """``piece_text`` of each id of a list or tensor ``[pos]``.

        Raises:
            TokenizerError: an id is negative or no integer, or there are several rows.
        """
        added = self._backend.get_added_tokens_decoder()
        spelled_in_bytes = isinstance(self._backend.decoder, decoders.ByteLevel)
        row = row_of_ids(ids)
        distinct = list(dict.fromkeys(row))
        texts = {}
        for token_id, token in zip(distinct, self.convert_ids_to_tokens(distinct), strict=True):
            if token is None:
                texts[token_id] = f"⟨{token_id}⟩"
            else:
                plain = token_id in added or not spelled_in_bytes
                texts[token_id] = token if plain else _readable(token)
        return [texts[token_id] for token_id in row]


def _readable(token: str) -> str:
    """Text of a byte-level token: what is valid UTF-8 as itself, other bytes as ``⟨E2⟩``."""
    data = _bytes(token)
    if data is None:
        return token
    # "surrogateescape" turns each undecodable byte b into the code point 0xDC00 + b.
    text = data.decode("utf-8", errors="surrogateescape")
    return "".join(_shown(letter) for letter in text)


def _bytes(token: str) -> bytes | None:
    """The bytes that a token spells; None for one not spelled in bytes, which is its own text."""
    try:
        return bytes(BYTE_OF_LETTER[letter] for letter in token)
    except KeyError:
        return None


def _shown(letter: str) -> str:
    if letter == REPLACEMENT:
        return "".join(f"⟨{byte:02X}⟩" for byte in letter.encode())
    code = ord(letter) - 0xDC00
    return f"⟨{code:02X}⟩" if 0x80 <= code <= 0xFF else letter
