"""Which entries of an axis, read in one way wherever positions, layers or neurons are chosen.

    entries("pos_slice", [0, -1], 5, HookError)              # [0, 4]
    entries("pos_slice", [True, False, True], 3, HookError)  # [0, 2]: a mask
    entry("layer", -1, 6, InputError)                        # 5

One entry is a whole number; several are a slice, a list, a range or an array of whole numbers, or a
mask with True or False for every entry of the axis. A tuple is a slice, as in TransformerLens:
``(1, 3)`` means ``1:3``. Numbers of NumPy and PyTorch count as Python's. Whatever could mean two
things is refused: True is not entry 1, and 1.5 is not entry 1.

One number takes the axis away, as in NumPy, and as in TransformerLens's cache methods. A cache
keeps the axes of what it keeps (``kept_axis``): there one number is a list of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from neox_lab.checks import plain, shown, whole
from neox_lab.errors import NeoxLabError

if TYPE_CHECKING:
    from torch import Tensor

Selection: TypeAlias = "int | slice | Sequence[int] | Sequence[bool] | Tensor | None"
"""A part of an axis: one entry (the axis goes), a slice or the tuple of its ends, a list of
entries, a mask, or None for all."""
Read: TypeAlias = "int | slice | list[int] | list[bool]"
"""A selection whose form is right; whether the axis has these entries is not known yet."""

_EXPECTED = (
    "expected a whole number, a slice or the tuple of its ends, a list of whole numbers, or a mask "
    "with True or False for every entry"
)


def read(name: str, which: object, error: type[NeoxLabError]) -> Read:
    """A selection of an axis whose length is not known yet.

    Args:
        name: what the user calls it.
        which: what the user gave; not None.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it is no selection, or could mean two.
    """
    if isinstance(which, tuple) and 1 <= len(which) <= 3:
        which = slice(*which)
    if isinstance(which, slice):
        return _slice(name, which, error)
    found = plain(list(which) if isinstance(which, range) else which)
    if _is_whole(found):
        return found  # type: ignore[return-value]
    if isinstance(found, list):
        if all(map(_is_whole, found)) or all(isinstance(one, bool) for one in found):
            return found
    raise error(f"{name}={shown(which, 80)}; {_EXPECTED}.")


def kept_axis(name: str, which: object, error: type[NeoxLabError]) -> Read:
    """``read``, with one number as the list of it: what is taken keeps the axis.

    Raises:
        NeoxLabError: ``error``, if it is no selection, or could mean two.
    """
    found = read(name, which, error)
    return [found] if isinstance(found, int) else found


def entries(
    name: str, which: object, size: int, error: type[NeoxLabError]
) -> int | slice | list[int]:
    """The entries of an axis that a selection chooses, counted from 0.

    Args:
        name: what the user calls it.
        which: what the user gave, or ``read`` returned; not None.
        size: entries of the axis.
        error: what to raise.

    Returns:
        One number, a slice that steps forward, or a list of numbers.

    Raises:
        NeoxLabError: ``error``, if it is no selection, or the axis has no such entry.
    """
    found = read(name, which, error)
    if isinstance(found, int):
        return entry(name, found, size, error)
    if isinstance(found, slice):
        backward = found.step is not None and found.step < 0
        return list(range(*found.indices(size))) if backward else found
    if found and isinstance(found[0], bool):
        if len(found) != size:
            raise error(
                f"{name} is a mask of {len(found)} entries for an axis of {size}; expected "
                f"{size} of them."
            )
        return [at for at, chosen in enumerate(found) if chosen]
    for farthest in (min(found), max(found)) if found else ():
        entry(name, farthest, size, error)
    return [at % size for at in found]


def entry(name: str, which: object, size: int, error: type[NeoxLabError]) -> int:
    """One entry of an axis, counted from 0; negative numbers count from the end.

    Args:
        name: what the user calls it.
        which: what the user gave.
        size: entries of the axis.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it is no whole number, or the axis has no such entry.
    """
    at = whole_number(name, which, error)
    if not -size <= at < size:
        raise error(f"{name}={at}; expected 0 to {size - 1}, or {-size} to -1 from the end.")
    return at % size


def whole_number(name: str, which: object, error: type[NeoxLabError]) -> int:
    """A whole number as Python's own; True and 1.0 are none.

    Raises:
        NeoxLabError: ``error``, if it is something else.
    """
    found = which if type(which) is int else plain(which)
    if not _is_whole(found):
        raise error(f"{name}={shown(which, 80)}; expected a whole number.")
    return found  # type: ignore[return-value]


def one_each(name: str, which: object, count: int, error: type[NeoxLabError]) -> list[int]:
    """One whole number for each of ``count`` things, or the same for all of them.

    Args:
        name: what the user calls it.
        which: a number, or as many as there are things, in a list, tuple, range or array.
        count: how many things there are.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if these are no whole numbers, or another number of them.
    """
    found = plain(list(which) if isinstance(which, range | tuple) else which)
    if _is_whole(found):
        return [found] * count  # type: ignore[list-item]
    if not isinstance(found, list) or not all(map(_is_whole, found)):
        raise error(
            f"{name}={shown(which, 80)}; expected a whole number, or one for each of {count}."
        )
    if len(found) != count:
        raise error(f"{name} has {len(found)} entries; expected one, or {count}.")
    return found


def take(tensor: Tensor, axis: int, which: object, name: str, error: type[NeoxLabError]) -> Tensor:
    """Part of ``tensor`` along ``axis``; a view where that is possible.

    Args:
        tensor: any.
        axis: which of its axes.
        which: see ``Selection``.
        name: what the user calls ``which``.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it is no selection, or the axis has no such entry.
    """
    import torch

    if which is None:
        return tensor
    found = entries(name, which, tensor.shape[axis], error)
    if isinstance(found, int):
        return tensor.select(axis, found)
    if isinstance(found, slice):
        return tensor[(slice(None),) * (axis % tensor.dim()) + (found,)]
    return tensor.index_select(axis, torch.tensor(found, dtype=torch.long, device=tensor.device))


_WHOLE = whole()


def _is_whole(value: object) -> bool:
    return _WHOLE.accepts(value)


def _slice(name: str, which: slice, error: type[NeoxLabError]) -> slice:
    """The slice with Python's own numbers."""
    ends = []
    for end in (which.start, which.stop, which.step):
        if end is not None:
            end = plain(end)
            if not _is_whole(end):
                raise error(f"{name}={which!r}; a slice takes whole numbers.")
        ends.append(end)
    if ends[2] == 0:
        raise error(f"{name}={which!r}; a slice cannot step by 0.")
    return slice(*ends)
