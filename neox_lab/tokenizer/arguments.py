"""What a tokenizer call may ask for, checked before any text is touched.

Padding makes short rows longer, truncation makes long ones shorter. Their arguments interact, so
``Lengths.resolve`` settles them once into plain values. ``arrange`` turns the many accepted forms
of text into one list of rows.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

from neox_lab.errors import TokenizerError, nearest

PADDING = ("longest", "max_length", "do_not_pad")
TRUNCATION = ("longest_first", "only_first", "only_second", "do_not_truncate")
SIDES = ("right", "left")
_LONGEST_LIMIT = 2**32 - 1  # the Rust library counts in 32 bits

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Row = Any  # a text, a pair of texts, a list of words, or a pair of lists of words


def reject_unknown(given: Collection[str], known: Collection[str], where: str) -> None:
    """Raise TokenizerError naming the first unknown keyword argument and its nearest neighbour."""
    for name in given:
        if name not in known:
            raise TokenizerError(f"{where} takes no argument {name!r}.{nearest(name, known)}")


def named_arguments(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a wrong keyword argument a TokenizerError that names the nearest right one."""
    names = list(inspect.signature(function).parameters)
    where = function.__name__.replace("__call__", "The tokenizer")

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        reject_unknown(kwargs, names, where)
        return function(*args, **kwargs)

    return checked


def choose(name: str, value: Any, options: Collection[str]) -> str:
    """``value`` if it is one of ``options``, else TokenizerError."""
    if value not in options:
        raise TokenizerError(
            f"{name}={value!r} is not one of {', '.join(map(repr, options))}."
            f"{nearest(str(value), options)}"
        )
    return str(getattr(value, "value", value))  # members of string enumerations are welcome


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long rows may and must be.

    Attributes:
        padding: one of ``PADDING``.
        truncation: one of ``TRUNCATION``.
        max_length: the length truncated and padded to, in tokens; None where none applies.
        stride: tokens that an overflowing piece repeats from the piece before it.
        multiple: padded lengths are rounded up to a multiple of this.
    """

    padding: str
    truncation: str
    max_length: int | None
    stride: int = 0
    multiple: int = 1

    @classmethod
    def resolve(
        cls,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        stride: int,
        pad_to_multiple_of: int | None,
        model_max_length: int,
    ) -> Lengths:
        """Settle the arguments of a call; raises TokenizerError where they contradict."""
        if truncation is None and max_length is not None and padding is False:
            truncation = True  # a length that is not for padding can only be for truncation
        if isinstance(padding, bool):
            padding = "longest" if padding else "do_not_pad"
        if truncation is None or isinstance(truncation, bool):
            truncation = "longest_first" if truncation else "do_not_truncate"
        padding = choose("padding", padding, PADDING)
        truncation = choose("truncation", truncation, TRUNCATION)
        _check_count("max_length", max_length, 0)
        _check_count("stride", stride, 0)
        _check_count("pad_to_multiple_of", pad_to_multiple_of, 1)
        if pad_to_multiple_of is not None and padding == "do_not_pad":
            raise TokenizerError("pad_to_multiple_of works on padding: pass padding=True as well.")
        if max_length is not None and padding == "longest" and truncation == "do_not_truncate":
            warnings.warn(
                "max_length does nothing here: add truncation=True to shorten rows to it, or "
                "padding='max_length' to pad rows to it.",
                stacklevel=5,
            )
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            if model_max_length <= _LONGEST_LIMIT:
                max_length = model_max_length
            else:
                warnings.warn(
                    "No max_length was given and the tokenizer knows no model_max_length: "
                    "nothing is truncated, or padded to it.",
                    stacklevel=5,
                )
                padding = "do_not_pad" if padding == "max_length" else padding
                truncation = "do_not_truncate"
        if truncation != "do_not_truncate" and (max_length or 0) % (pad_to_multiple_of or 1):
            raise TokenizerError(
                f"Rows are truncated to max_length={max_length}, which is not a multiple of "
                f"pad_to_multiple_of={pad_to_multiple_of}: make it one."
            )
        return cls(padding, truncation, max_length, stride, pad_to_multiple_of or 1)

    def padded(self, lengths: list[int]) -> int:
        """The length that rows of ``lengths`` are padded to."""
        target = self.max_length if self.padding == "max_length" else max(lengths, default=0)
        return -(-(target or 0) // self.multiple) * self.multiple

    def truncation_state(self, side: str, special: int) -> dict[str, Any] | None:
        """The Rust library's truncation for rows that also get ``special`` special tokens.

        Raises TokenizerError when special tokens or the stride leave no room for text.
        """
        if self.truncation == "do_not_truncate" or self.max_length is None:
            return None
        room = self.max_length - special
        if room < 0 or (self.stride and self.stride >= room):
            raise TokenizerError(
                f"max_length={self.max_length} leaves {room} tokens for text beside {special} "
                f"special tokens, which must be more than stride={self.stride}."
            )
        return {
            "max_length": self.max_length,
            "stride": self.stride,
            "strategy": self.truncation,
            "direction": side,
        }


def _check_count(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and least <= value <= _LONGEST_LIMIT):
        raise TokenizerError(f"{name} must be an integer of at least {least}, and is {value!r}.")


def arrange(text: Any, text_pair: Any, split_into_words: bool) -> tuple[list[Row], bool]:
    """Rows for the Rust library, and whether ``text`` was a batch rather than one text.

    Accepts a text or a list of texts, where a text is a ``str`` (a list of words if
    ``split_into_words``); ``text_pair`` has the same form; a batch may hold pairs instead.
    Raises TokenizerError for anything else, naming the place.
    """
    if isinstance(text, list | tuple):
        batched = not split_into_words or (bool(text) and isinstance(text[0], list | tuple))
    else:
        batched = False
    if not batched:
        pairs = [(text, text_pair)]
    elif text_pair is None:
        pairs = [(row, None) for row in text]
    else:
        if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
            count = len(text_pair) if isinstance(text_pair, list | tuple) else "not a list"
            raise TokenizerError(
                f"text is a batch of {len(text)}, so text_pair must be a list of {len(text)} too, "
                f"and is {count}."
            )
        pairs = list(zip(text, text_pair, strict=True))
    rows = []
    for index, (first, second) in enumerate(pairs):
        place = f"[{index}]" if batched else ""
        if second is None and batched and _is_pair(first, split_into_words):
            first, second = first
        _check_text(f"text{place}", first, split_into_words)
        if second is not None:
            _check_text(f"text_pair{place}", second, split_into_words)
        if split_into_words:  # so that only a pair is a tuple
            first, second = list(first), None if second is None else list(second)
        rows.append(first if second is None else (first, second))
    return rows, batched


def _is_pair(row: Any, split_into_words: bool) -> bool:
    """Whether a row of a batch is itself (text, text_pair)."""
    if not isinstance(row, list | tuple) or len(row) != 2:
        return False
    return not split_into_words or all(isinstance(words, list | tuple) for words in row)


def _check_text(place: str, text: Any, split_into_words: bool) -> None:
    words = text if split_into_words else [text]
    if not isinstance(words, list | tuple):
        raise TokenizerError(
            f"With is_split_into_words=True {place} must be a list of words, and is "
            f"{type(text).__name__}."
        )
    for word in words:
        if not isinstance(word, str):
            hint = " Decode the bytes first." if isinstance(word, bytes) else ""
            raise TokenizerError(
                f"{place} must be str, or a list of str for a batch, and holds "
                f"{type(word).__name__} ({word!r:.60}).{hint}"
            )
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"{place} holds half a surrogate pair ({word[error.start]!r}) at character "
                f"{error.start}, which is no text. Read the source with errors='replace'."
            ) from error
