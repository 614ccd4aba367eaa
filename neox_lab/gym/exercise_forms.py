"""What answers to exercises look like, and the forms in which people write them.

Pictures and tables name a head ``L1H2``, a feature ``f81``, an edge ``MLP0 → L1H2.v`` and a
revision ``step1250``: whoever copies what stands there is right as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from neox_lab.checks import FINITE, TEXT, Kind, plain, whole
from neox_lab.errors import NeoxLabError
from neox_lab.gym import exercise_answers as right
from neox_lab.head_names import head_name

_PLACE = re.compile(r"\W*(?:layer|l)?\s*(\d+)\W*(?:head|h|[.,])\s*(\d+)\W*", re.IGNORECASE)
_NUMBERED = re.compile(r"[a-z]*\s*(\d+)", re.IGNORECASE)
_LONGEST = 100  # characters of a name; longer texts are no answers, and would take long to read
_ARROW = re.compile(r"\s*(?:→|->|,)\s*")


@dataclasses.dataclass(frozen=True)
class Form:
    """What an answer looks like.

    Attributes:
        kind: the values that are judged.
        read: makes one of a value that says the same otherwise; whatever it does not know it
            hands on as it is.
    """

    kind: Kind[Any]
    read: Callable[[object], object] = plain


def _is_place(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(whole(least=0).accepts(part) for part in value)
    )


def _is_edge(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(TEXT.accepts, value))


def _is_hooks(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(hook, tuple) and len(hook) == 2 and callable(hook[1]) for hook in value
    )


def _is_direction(value: object) -> bool:
    if isinstance(value, Iterator):  # its numbers are gone once they were looked at
        return False
    try:
        row = right.as_row(value)
    except (NeoxLabError, TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return row.dim() == 1 and bool(row.isfinite().all())


def _is_short(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= _LONGEST


def _whole(value: object) -> object:
    """81 of 81.0; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _place(value: object) -> object:
    value = plain(value)
    if _is_short(value) and (found := _PLACE.fullmatch(value)):
        return int(found[1]), int(found[2])
    return tuple(map(_whole, value)) if isinstance(value, tuple | list) else value


def _count(value: object) -> object:
    value = plain(value)
    if _is_short(value) and (found := _NUMBERED.fullmatch(value.strip())):
        return int(found[1])
    return _whole(value)


def _number(value: object) -> object:
    value = plain(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # no number, which is told
            return float(value.replace("−", "-"))
    return value


def _edge(value: object) -> object:
    if _is_short(value) and len(ends := _ARROW.split(value.strip())) == 2:
        return tuple(ends)
    return value


def _part(value: object) -> object:
    value = plain(value)
    if isinstance(value, tuple | list) and _is_place(value):
        return head_name(*value)
    return value.strip().upper() if isinstance(value, str) else value


def _is_hook(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and callable(value[1])


def _hooks(value: object) -> object:
    """Hooks as a list of pairs, also where there is one without a list around it."""
    if not isinstance(value, tuple | list):
        return value
    hooks = [value] if _is_hook(value) else value
    return [tuple(hook) if isinstance(hook, list) else hook for hook in hooks]


def _digit(value: object) -> object:
    value = plain(value)
    if whole().accepts(value):  # Python writes out no number of thousands of digits
        return f"<{value}>"
    return f"<{value}>" if isinstance(value, str) and value.isdecimal() else value


WORDS = Form(TEXT)
PLACE = Form(Kind("a layer and a head such as (1, 2)", _is_place), _place)
EDGE = Form(Kind('who writes and who reads, such as ("L0H1", "L1H2.k")', _is_edge), _edge)
HOOKS = Form(Kind("a list of hooks (name, function)", _is_hooks), _hooks)
DIRECTION = Form(Kind("a row of d_model finite numbers", _is_direction), lambda value: value)
TOKEN = Form(
    Kind(
        "a token, its text or its number",
        lambda value: TEXT.accepts(value) or whole(least=0).accepts(value),
    )
)
COUNT = Form(whole(least=0), _count)
NEARLY = Form(Kind("a number, right to within 1 %", FINITE.accepts), _number)
PART = Form(TEXT, _part)
"""The name of a head, MLP or feature, in capital letters or small ones."""
DIGIT = Form(TEXT, _digit)
"""A token of the planted model, ``<19>``, or its number."""
