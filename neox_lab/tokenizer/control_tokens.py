"""Control tokens that people write into messages, read as text.

A template's own marks, such as "<|im_start|>", become one special token each. So would the same
letters in a user's message, which could then pretend to be another message. ``Marks`` sets them
apart before the template is written out, and ``encode`` reads what is set apart as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neox_lab.errors import TokenizerError

if TYPE_CHECKING:
    from neox_lab.tokenizer.encoding import Encoder

# Characters for private use, which no text that is read here keeps.
_OPENING, _CLOSING = "\U000f0000", "\U000f0001"
# How Python and JSON write them in ASCII, from where they cannot be read back.
_ESCAPED = re.compile(r"\\U000f000[01]|\\udb80\\udc0[01]", re.IGNORECASE)


class Marks:
    """Sets control tokens apart wherever they stand in data."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = _any_of(tokens)

    def put(self, value: object) -> Any:
        """``value`` with marks around every control token in its strings; keys stay as they are."""
        if isinstance(value, str):
            text = value.replace(_OPENING, "").replace(_CLOSING, "")
            return self._tokens.sub(f"{_OPENING}\\g<0>{_CLOSING}", text)
        if isinstance(value, Mapping):
            return {key: self.put(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.put(item) for item in value]
        return value


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """A pattern for each of ``tokens``, longer ones first; for nothing where there are none."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def encode(tokenizer: Encoder, text: str) -> list[int]:
    """Ids of a text with marks, ``[pos]``: what is set apart as plain text, the rest as always.

    A mark that lost its partner in the template is dropped and still keeps its two sides apart.

    Raises:
        TokenizerError: plain text cannot spell a control token without becoming it, or the template
            escaped the marks.
    """
    if _ESCAPED.search(text):
        raise TokenizerError(
            "The chat template writes messages as code in ASCII (`{{ messages }}`, or tojson with "
            "ensure_ascii=True), so control tokens in them cannot be set apart."
        )
    tokens = _any_of(list(tokenizer.get_added_vocab())).pattern
    pieces = re.split(f"{_OPENING}({tokens}){_CLOSING}|[{_OPENING}{_CLOSING}]", text)
    ids: list[int] = tokenizer.encode(pieces[0], add_special_tokens=False)
    newline: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    for index, piece in enumerate(pieces[1:], start=1):
        if not piece:
            continue
        set_apart = index % 2 == 1
        read = _plain_ids if set_apart else _ids
        # Behind a line break no space is put before the text, as it may be at the beginning.
        found = read(tokenizer, "\n" + piece)
        broken = found[: len(newline)] == newline
        found = found[len(newline) :] if broken else read(tokenizer, piece)
        if set_apart and tokenizer.convert_tokens_to_ids(piece) in found:
            raise TokenizerError(
                f"The vocabulary makes {piece!r} of plain text, so it stays itself."
            )
        ids += found
    return ids


def _ids(tokenizer: Encoder, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _plain_ids(tokenizer: Encoder, text: str) -> list[int]:
    """Ids of a text in which no added token is looked for."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for word in words for token in backend.model.tokenize(word)]
