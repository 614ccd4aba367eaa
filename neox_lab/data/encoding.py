"""From texts to token ids, with the model's own tokenizer.

``token_ids`` is for texts whose length the caller looks after (``tables.check_lengths`` refuses
those that are too long, by row); ``token_spans`` says as well where each token stands in its text.
What makes one tensor of several rows is ``pad_rows``, from the room of the tokenizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel
from neox_lab.family.text import tokenizer_of
from neox_lab.padding import pad_rows

__all__ = [
    "TokenSpans",
    "end_of_text",
    "pad_rows",
    "pad_token",
    "start_of_text",
    "token_ids",
    "token_spans",
    "tokenizer_of",
]


class TokenSpans(NamedTuple):
    """The tokens of a text and where they stand.

    Attributes:
        ids: token ids.
        spans: first and last character (exclusive) of each; together they hold every character
            but blanks.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


def token_ids(model: HookedModel, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """Token ids of each text, without padding and however long.

    Args:
        model: whose tokenizer it is.
        texts: what it reads.
        special: with the special tokens that the tokenizer puts around texts, if it does.

    Raises:
        TokenizerError: the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    if not texts:
        return []
    with _any_length():
        return [list(row) for row in tokenizer(list(texts), add_special_tokens=special).input_ids]


def token_spans(model: HookedModel, text: str) -> TokenSpans:
    """Token ids of a text, however long, and the characters of each.

    Raises:
        TokenizerError: the model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    with _any_length():
        read = tokenizer(text, return_offsets_mapping=True)
    spans = [(int(low), int(high)) for low, high in read.offset_mapping]
    return TokenSpans(list(read.input_ids), _with_merged(text, spans))


def _with_merged(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that go on over the characters that were merged into the one before.

    A tokenizer that composes characters (e and an accent to é) names the first of them only.
    """
    held = {at for low, high in spans for at in range(low, high)}
    end = 0
    ends = [0] * (len(text) + 1)  # where a span that ends here ends with what was merged into it
    for at in range(len(text), -1, -1):
        merged = at < len(text) and at not in held and not text[at].isspace()
        end = end if merged else at
        ends[at] = end
    return [(low, ends[high] if low < high else high) for low, high in spans]


def end_of_text(model: HookedModel) -> int:
    """The token that ends a text.

    Raises:
        InputError: the tokenizer has none.
        TokenizerError: the model has no tokenizer.
    """
    found = tokenizer_of(model).eos_token_id
    if found is None:
        raise InputError("the tokenizer has no end-of-text token to close a text with")
    return found


def start_of_text(model: HookedModel) -> int:
    """The token before a text: the one that begins texts, or else the one that ends them.

    Raises:
        InputError: the tokenizer has neither.
        TokenizerError: the model has no tokenizer.
    """
    found = tokenizer_of(model).bos_token_id
    return end_of_text(model) if found is None else int(found)


def pad_token(model: HookedModel) -> int:
    """The token that fills up short texts; the configuration gets the tokenizer's if it has none.

    Heads that read the last token of a text find it by ``config.pad_token_id``.

    Raises:
        InputError: there is none.
        TokenizerError: the model has no tokenizer to ask.
    """
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer_of(model).pad_token_id
    if model.config.pad_token_id is None:
        raise InputError("Neither the model nor its tokenizer has a padding token.")
    return int(model.config.pad_token_id)


@contextmanager
def _any_length() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A text has .* tokens")
        yield
