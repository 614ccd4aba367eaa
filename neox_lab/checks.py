"""Settings and arguments: what values they take, said once and checked in one way.

    SIZE = whole(above=0)
    check("batch_size", batch_size, SIZE, InputError)
    # InputError: batch_size=0; expected a whole number above 0.

    check("measure", measure, one_of("share", "mul"), InputError)
    # InputError: measure='shar'; expected one of share, mul. Did you mean 'share'?

A ``Kind`` is a set of values with words for it. Where no function below makes the one that is
needed, ``Kind(words, accepts)`` does. True and False are no numbers here; numbers of NumPy and
PyTorch are, and become Python's, because settings end in JSON. Whole numbers of more than the 64
bits of a tensor's are refused, and so is what floats cannot hold.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from neox_lab.errors import DeviceError, InputError, NeoxLabError, NeoxLabWarning, nearest

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
_NAMED = 5  # places in a warning


class Kind(NamedTuple, Generic[Value_co]):
    """What values a setting takes.

    Attributes:
        words: the same for people, to be read after "expected".
        accepts: whether a value will do.
        choices: all values, where they are a few names.
    """

    words: str
    accepts: Callable[[object], bool]
    choices: tuple[str, ...] = ()


def name_not_finite(what: str, places: Iterable[str]) -> None:
    """Warn of computed numbers that are NaN or infinite; silent without any.

    The rule of the package: such a number stays what it is in every mean and sum over it, and is
    named. A number that was not computed is told apart by other means than NaN.

    Args:
        what: such as ``"The loss"``.
        places: where it is: texts, pairs, cells, heads.
    """
    if listed := list(places):
        warnings.warn(
            f"{what} is NaN or infinite at {some_of(listed)}; so is what is "
            "computed from it. model.check() names weights that are not finite.",
            NeoxLabWarning,
            stacklevel=3,
        )


def some_of(places: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return f"{', '.join(places[:_NAMED])}{more}"


def check(name: str, value: object, kind: Kind[Value], error: type[NeoxLabError]) -> Value:
    """``value`` if it is one of ``kind``, numbers as Python's own.

    Args:
        name: what the user calls it.
        value: what the user gave.
        kind: what is expected.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it is not; the message names both.
    """
    value = plain(value)
    if not kind.accepts(value):
        close = nearest(value, kind.choices)
        raise error(f"{name}={shown(value)}; expected {kind.words}.{close}")
    return cast(Value, value)


def several(name: str, values: object, words: str, error: type[NeoxLabError]) -> list[Any]:
    """What a list, a tuple, an array or whatever else has several entries holds; a text has none.

    Mappings and frames are refused: they would be lists of their names.

    Args:
        name: what the user calls it.
        values: what the user gave.
        words: what is expected, to be read after "expected".
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it has no entries.
    """
    try:
        if not isinstance(values, str | bytes) and not holds_names(values):
            return list(cast(Iterable[Any], values))
    except (TypeError, RuntimeError):  # no entries, or those of a tensor without data
        pass
    raise error(f"{name}={shown(values)}; expected {words}.")


def holds_names(value: object) -> bool:
    """Whether a value's entries are names of what it holds: a mapping, or a frame of columns.

    A row, a column or a data set may have something of the name ``columns``; only frames have rows
    and columns.
    """
    shape = getattr(value, "shape", None) if hasattr(value, "columns") else None
    return isinstance(value, Mapping) or (isinstance(shape, tuple) and len(shape) == 2)


def one_or_several_texts(name: str, texts: object) -> list[str]:
    """The texts of an argument that takes one or several.

    Args:
        name: what the user calls it.
        texts: what the user gave.

    Raises:
        InputError: something else, or a list that holds something else.
    """
    if isinstance(texts, str):
        return [texts]
    listed = several(name, texts, "a text or a list of texts", InputError)
    for at, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(f"{name}[{at}]={shown(text)}; expected a text.")
    return listed


def listed_texts(value: object) -> object:
    """A column of texts (pandas, polars, NumPy) as the list it stands for; all else as it is.

    Frames, tensors, columns of other things and empty ones stay what they are, and a list may hold
    what is no text, such as the NaN of an empty cell: whoever asks refuses these in its words.
    """
    if isinstance(value, str | type):
        return value
    try:
        if hasattr(value, "requires_grad"):  # no tensor is texts
            return value
        as_list = getattr(value, "tolist", None) or getattr(value, "to_list", None)
        texts = as_list() if callable(as_list) else None
    except Exception:  # its method of that name means something else, or it is broken
        return value
    known = isinstance(texts, list) and any(isinstance(text, str) for text in texts)
    return texts if known else value


def ids_to_tensor(value: object) -> str:
    """What to do where token ids came as a list or an array: a sentence; empty for all else."""
    ids = plain(value)
    nested = isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)
    row = ids[0] if isinstance(ids, list) and nested else ids
    if not isinstance(row, list) or not row or not all(type(one) is int for one in row):
        return ""
    return f" Make token ids a tensor: torch.tensor({'ids' if nested else '[ids]'})."


def shown(value: object, most: int = 200) -> str:
    """A value as messages show it: whatever it is, in not too many characters.

    Args:
        value: anything.
        most: how many characters.
    """
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:  # numbers of thousands of digits in lists, classes that cannot be shown
        return f"a {type(value).__name__}"
    first = text.partition("\n")[0][:most]  # answers and models show themselves in many lines
    return text if first == text else f"{first}..."


def require_model(model: object) -> None:
    """Refuse what is asked as a model and is none.

    Raises:
        InputError: it is not one of the five classes, nor what has hook points as they have.
    """
    if isinstance(model, type) or not hasattr(model, "hook_stack"):
        raise InputError(
            f"model={shown(model)}; expected a model of this package, such as nl.load() returns."
        )


def require_data(device: torch.device) -> None:
    """Refuse a model whose weights are nowhere.

    Args:
        device: where they are: ``model.device``.

    Raises:
        DeviceError: they are on the device ``meta``, which keeps shapes and no numbers.
    """
    if device.type == "meta":
        raise DeviceError(
            "The weights of this model are on the device 'meta': shapes without numbers, "
            "which an answer needs. Load it again, nl.load(name), outside of torch.device('meta'). "
            "What makes do with shapes is model(ids) with ids on 'meta', and model.hook_table()."
        )


def plain(value: object) -> object:
    """Numbers as Python's own, whose ever they were, also within lists, tuples and dicts.

    ``np.int64(3)``, ``torch.tensor(3)`` and 3 are 3; ``torch.tensor([3, 4])`` is ``[3, 4]``. What
    is nested without end, or nearly, stays as it is.
    """
    try:
        return _plain(value)
    except RecursionError:
        return value


def _plain(value: object) -> object:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        items: Sequence[object] = value  # type: ignore[assignment]
        made = [_plain(item) for item in items]
        same = all(one is other for one, other in zip(made, items, strict=True))
        return value if same else type(value)(made)  # type: ignore[call-arg]
    if type(value) is dict:
        return {_key(name): _plain(item) for name, item in value.items()}
    to_list = getattr(value, "tolist", None)
    if callable(to_list) and not isinstance(value, type):
        try:
            return to_list()
        except (RuntimeError, NotImplementedError, TypeError):  # a tensor without data, or sparse
            return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _key(name: object) -> object:
    """A key of a dict, which a list cannot be."""
    made = _plain(name)
    return tuple(made) if isinstance(made, list) else made


def number(
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Kind[float]:
    """Numbers within bounds, of which ``above`` and ``below`` themselves are outside.

    ``below=math.inf`` asks for a finite number; NaN is none.
    """

    def accepts(value: object) -> bool:
        return (
            isinstance(value, numbers.Real)
            and not isinstance(value, bool)
            and _is_float(value)
            and _inside(cast(float, value), above, least, most, below)
        )

    if below == math.inf:
        return Kind("a finite number" + _bounds(above, least, most, None), accepts)
    return Kind("a number" + _bounds(above, least, most, below), accepts)


def whole(
    *, above: int | None = None, least: int | None = None, most: int | None = None
) -> Kind[int]:
    """Whole numbers within bounds; 2.0 is none."""

    def accepts(value: object) -> bool:
        return (
            isinstance(value, numbers.Integral)
            and not isinstance(value, bool)
            and -(2**63) <= int(value) < 2**63
            and _inside(int(value), above, least, most, None)
        )

    return Kind("a whole number" + _bounds(above, least, most, None), accepts)


def one_of(*choices: str) -> Kind[str]:
    """Some names."""
    words = f"one of {', '.join(choices)}"
    return Kind(words, lambda value: isinstance(value, str) and value in choices, choices)


def or_none(kind: Kind[Value]) -> Kind[Value | None]:
    """``kind``, or None."""
    words = f"{kind.words}{',' if ',' in kind.words else ''} or None"
    return Kind(words, lambda value: value is None or kind.accepts(value), kind.choices)


def list_of(kind: Kind[Value], words: str) -> Kind[list[Value]]:
    """Lists, empty ones too, of values of ``kind``; ``words`` name several of them."""
    return Kind(
        f"a list of {words}",
        lambda value: isinstance(value, list) and all(map(kind.accepts, value)),
    )


def _is_float(value: numbers.Real) -> bool:
    """Whether a float can hold it; NaN is no number."""
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def _inside(
    value: float,
    above: float | None,
    least: float | None,
    most: float | None,
    below: float | None,
) -> bool:
    return (
        (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def _bounds(
    above: float | None, least: float | None, most: float | None, below: float | None
) -> str:
    """The bounds in words: " above 0", " from 0 to 1", " of at least 1 and below 2"."""
    if least is not None and most is not None:
        return f" from {least} to {most}"
    low = f" above {above}" if above is not None else ""
    low = f" of at least {least}" if least is not None else low
    high = f" up to {most}" if most is not None else ""
    high = f" below {below}" if below is not None else high
    return f"{low} and{high}" if low and high else low + high


SWITCH: Kind[bool] = Kind("True or False", lambda value: isinstance(value, bool))
TEXT: Kind[str] = Kind("a string", lambda value: isinstance(value, str))
FINITE: Kind[float] = number(below=math.inf)
COUNT: Kind[int] = whole(least=1, most=2**31 - 1)
SEED: Kind[int] = whole(least=0)
