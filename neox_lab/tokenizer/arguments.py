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
from collections.abc import Callable, Collection, Sequence
from typing import Any, ParamSpec, TypeVar

from neox_lab.checks import Kind, check, one_of, or_none, shown, whole
from neox_lab.errors import TokenizerError, nearest

PADDING = one_of("longest", "max_length", "do_not_pad")
TRUNCATION = one_of("longest_first", "only_first", "only_second", "do_not_truncate")
SIDE = one_of("right", "left")
TENSORS = one_of("pt", "np")
_LONGEST_LIMIT = 2**32 - 1  # the Rust library counts in 32 bits
_COUNT = or_none(whole(least=0, most=_LONGEST_LIMIT))
_MULTIPLE = or_none(whole(least=1, most=_LONGEST_LIMIT))

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Texts = str | Sequence[str | Sequence[str | Sequence[str]]]
"""A text, a list of texts, a list of pairs of texts; and the same with lists of words for texts."""

Text = str | list[str]
Row = Text | tuple[Text, Text]
"""A text (or its words), or a pair of texts: what the Rust library encodes at once."""


# Settings and arguments of other tokenizers and of older versions of transformers, which mean
# nothing to a byte-level vocabulary. transformers ignores them; here that is said.
OF_OTHERS = frozenset(
    {
        *("add_dummy_prefix_space", "backend", "clean_text", "config", "device_map"),
        *("do_basic_tokenize", "do_lower_case", "errors", "fix_mistral_regex", "from_slow"),
        *("handle_chinese_chars", "keep_accents", "language", "legacy", "legacy_format", "mirror"),
        *("never_split", "normalization", "predict_timestamps", "processor_class", "proxies"),
        *("remove_space", "resume_download", "slow_tokenizer_class", "sp_model_kwargs"),
        *("spaces_between_special_tokens", "src_lang", "strip_accents", "task", "tgt_lang"),
        *("tokenize_chinese_chars", "tokenizer_type", "torch_dtype", "trust_remote_code"),
        *("use_auth_token", "use_default_system_prompt", "use_fast", "use_source_tokenizer"),
        *("verbose", "wordpieces_prefix"),
    }
)
# Of these the default, or the only value there is, asks for nothing and needs no word.
_SILENT = frozenset({"legacy_format", "trust_remote_code", "use_fast", "verbose"})


def drop_of_others(given: dict[str, Any], known: Collection[str], where: str) -> None:
    """Remove keyword arguments that only other tokenizers know, with one warning.

    Args:
        given: arguments by name; changed in place.
        known: names that mean something here.
        where: what takes them, for the message.

    Raises:
        TokenizerError: a name is unknown to everybody.
    """
    foreign = [name for name in given if name in OF_OTHERS and name not in known]
    for name in foreign:
        del given[name]
    if told := sorted(set(foreign) - _SILENT):
        warnings.warn(
            f"{where} ignores {', '.join(told)}: other tokenizers have such a setting, and this "
            "one does not.",
            stacklevel=3,
        )
    reject_unknown(given, known, where)


def reject_unknown(given: Collection[str], known: Collection[str], where: str) -> None:
    """Refuse keyword arguments that there are not.

    Args:
        given: names that were given.
        known: names that there are.
        where: what takes them, for the message.

    Raises:
        TokenizerError: one is unknown; the message names its nearest neighbour.
    """
    for name in given:
        if name not in known:
            raise TokenizerError(f"{where} takes no argument {name!r}.{nearest(name, known)}")


def named_arguments(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a wrong keyword argument a TokenizerError that names the nearest right one.

    ``tokenizer_kwargs=``, where the function has it, is a dictionary of further arguments.
    """
    names = list(inspect.signature(function).parameters)
    known = frozenset(names)
    where = function.__name__.replace("__call__", "The tokenizer")

    @functools.wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if "tokenizer_kwargs" in kwargs and "tokenizer_kwargs" in known:
            further: Any = kwargs.pop("tokenizer_kwargs")
            kwargs.update(further or {})
        if not known.issuperset(kwargs):
            drop_of_others(kwargs, names, where)
        return function(*args, **kwargs)

    return checked


def choose(name: str, value: object, kind: Kind[str]) -> str:
    """``value`` if it is one of the names of ``kind``.

    Raises:
        TokenizerError: it is not.
    """
    chosen = check(name, value, kind, TokenizerError)
    return str(getattr(chosen, "value", chosen))  # members of string enumerations are welcome


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long rows may and must be.

    Attributes:
        padding: "longest", "max_length" or "do_not_pad".
        truncation: "longest_first", "only_first", "only_second" or "do_not_truncate".
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
        verbose: bool = True,
    ) -> Lengths:
        """Settle the arguments of a call; ``verbose`` is whether to warn of those that do nothing.

        Raises:
            TokenizerError: one is out of range, or they contradict.
        """
        if truncation is None and max_length is not None and padding is False:
            truncation = True  # a length that is not for padding can only be for truncation
        if isinstance(padding, bool):
            padding = "longest" if padding else "do_not_pad"
        if truncation is None or isinstance(truncation, bool):
            truncation = "longest_first" if truncation else "do_not_truncate"
        padding = choose("padding", padding, PADDING)
        truncation = choose("truncation", truncation, TRUNCATION)
        check("max_length", max_length, _COUNT, TokenizerError)
        check("stride", stride, _COUNT, TokenizerError)
        check("pad_to_multiple_of", pad_to_multiple_of, _MULTIPLE, TokenizerError)
        if pad_to_multiple_of is not None and padding == "do_not_pad":
            pad_to_multiple_of = None
            if verbose:
                warnings.warn(
                    "pad_to_multiple_of does nothing here: it works on padding, so pass "
                    "padding=True as well.",
                    stacklevel=5,
                )
        padded_to_longest = padding == "longest" and truncation == "do_not_truncate"
        if verbose and max_length is not None and padded_to_longest:
            warnings.warn(
                "max_length does nothing here: add truncation=True to shorten rows to it, or "
                "padding='max_length' to pad rows to it.",
                stacklevel=5,
            )
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            if model_max_length <= _LONGEST_LIMIT:
                max_length = model_max_length
            else:
                if verbose:
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

    def to(self, max_length: int) -> Lengths:
        """The same with another ``max_length``.

        Raises:
            TokenizerError: it is no length.
        """
        check("max_target_length", max_length, _COUNT, TokenizerError)
        return dataclasses.replace(self, max_length=max_length)

    def padded(self, lengths: list[int]) -> int:
        """The length that rows of ``lengths`` are padded to."""
        target = self.max_length if self.padding == "max_length" else max(lengths, default=0)
        return -(-(target or 0) // self.multiple) * self.multiple

    def truncation_state(self, side: str, special: int) -> dict[str, Any] | None:
        """The Rust library's truncation for rows that also get ``special`` special tokens.

        Raises:
            TokenizerError: special tokens or the stride leave no room for text.
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


def arrange(text: Texts, text_pair: Texts | None, words: bool) -> tuple[list[Row], bool]:
    """Rows for the Rust library, and whether ``text`` was a batch rather than one text.

    Args:
        text: a text or a list of texts, where a text is a ``str``; a list may hold pairs.
        text_pair: the second texts, in the same form.
        words: texts are lists of words.

    Raises:
        TokenizerError: it is something else; the message names the place.
    """
    batched = isinstance(text, list | tuple)
    if words:
        batched = batched and bool(text) and isinstance(text[0], list | tuple)
    if not batched:
        pairs: list[tuple[object, object]] = [(text, text_pair)]
    elif text_pair is None:
        pairs = [_as_pair(row, words) for row in text]
    else:
        if not isinstance(text_pair, list | tuple) or len(text_pair) != len(text):
            count = len(text_pair) if isinstance(text_pair, list | tuple) else "not a list"
            raise TokenizerError(
                f"text is a batch of {len(text)}, so text_pair must be a list of {len(text)} too, "
                f"and is {count}."
            )
        pairs = [
            _as_pair(first, words) if second is None else (first, second)
            for first, second in zip(text, text_pair, strict=True)
        ]
    rows: list[Row] = []
    for index, (first, second) in enumerate(pairs):
        place = f"[{index}]" if batched else ""
        row = _checked_text(f"text{place}", first, words)
        if second is None:
            rows.append(row)
        else:
            rows.append((row, _checked_text(f"text_pair{place}", second, words)))
    return rows, batched


def _as_pair(row: object, words: bool) -> tuple[object, object]:
    """The two texts of a row of a batch, of which the second may be None."""
    if isinstance(row, list | tuple) and len(row) == 2:
        if not words or all(isinstance(text, list | tuple) for text in row):
            return row[0], row[1]
    return row, None


def _checked_text(place: str, text: object, split_into_words: bool) -> Text:
    """A text, or the list of its words; only a pair is a tuple."""
    if not split_into_words:
        return _checked_string(place, text)
    if not isinstance(text, list | tuple):
        raise TokenizerError(
            f"With is_split_into_words=True {place} must be a list of words, and is "
            f"{type(text).__name__}."
        )
    return [_checked_string(place, word) for word in text]


def _checked_string(place: str, text: object) -> str:
    if not isinstance(text, str):
        hint = " Decode the bytes first." if isinstance(text, bytes) else ""
        raise TokenizerError(
            f"{place} must be str, or a list of str for a batch, and holds "
            f"{type(text).__name__} ({shown(text, 60)}).{hint}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{place} holds half a surrogate pair ({text[error.start]!r}) at character "
            f"{error.start}, which is no text. Read the source with errors='replace'."
        ) from error
    return text
