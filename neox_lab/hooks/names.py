"""From what a user writes to hook points.

A hook point can be asked for by its name (``blocks.3.attn.hook_pattern``), a Hugging Face module
path (``gpt_neox.layers.3.attention``), a short form (``("pattern", 3)``), a glob
(``blocks.*.hook_resid_post``) or a predicate on names. Whatever matches nothing is an error that
says which names come near, because a hook that is nowhere is a result that is silently wrong.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from neox_lab.checks import several, shown
from neox_lab.errors import HookNameError, nearest
from neox_lab.model.hook_points import HookPoint

ShortForm = tuple[str, int] | tuple[str, int, str]
Name = str | ShortForm | Callable[[str], bool]
"""What stands for one or more hook points."""

_PARALLEL_HAS_NO_MIDDLE = (
    "This model's blocks are parallel (use_parallel_residual=True): attention and MLP both read "
    "hook_resid_pre, so there is no residual stream between them and no hook_resid_mid. What "
    "attention alone would leave is cache['resid_pre', l] + cache['attn_out', l]."
)


def find(name: Name, points: Mapping[str, HookPoint]) -> list[HookPoint]:
    """The hook points ``name`` stands for, in the order of the forward pass.

    Raises:
        HookNameError: nothing matches; the message says what comes near.
    """
    if callable(name):
        found = [point for point in points.values() if name(point.name)]
        if not found:
            raise HookNameError(
                f"The predicate {getattr(name, '__name__', name)!r} matches none of the "
                f"{len(points)} hook points; it is called with names such as "
                f"{next(iter(points))!r}."
            )
        return found
    if isinstance(name, tuple):
        return [points[_from_short_form(name, points)]]
    if not isinstance(name, str):
        raise HookNameError(
            f"{shown(name)} names no hook point: give a name such as {next(iter(points))!r}, a "
            "short form such as ('resid_pre', 0), or a function of names."
        )
    if any(character in name for character in "*?["):
        return _glob(name, points)
    return [points[exact(name, points)]]


def find_all(names: Name | Iterable[Name], points: Mapping[str, HookPoint]) -> list[HookPoint]:
    """The hook points one name or several stand for, each once, in forward order."""
    one = isinstance(names, str | tuple) or callable(names) or not isinstance(names, Iterable)
    wanted: set[str] = set()
    words = "a hook name, several, or a function of names"
    asked: list[Any] = [names] if one else several("names_filter", names, words, HookNameError)
    for name in asked:
        wanted.update(point.name for point in find(name, points))
    return [point for point in points.values() if point.name in wanted]


def exact(name: str | ShortForm, points: Mapping[str, HookPoint]) -> str:
    """The full hook name for one name, alias or short form.

    Raises:
        HookNameError: there is no such hook point.
    """
    if isinstance(name, tuple):
        return _from_short_form(name, points)
    if not isinstance(name, str):
        raise HookNameError(
            f"{shown(name)} names no hook point; expected a string or a short form."
        )
    if name in points:
        return name
    for point in points.values():
        if name in point.aliases:
            return point.name
    raise _unknown(name, points)


def _glob(pattern: str, points: Mapping[str, HookPoint]) -> list[HookPoint]:
    found = [
        point
        for point in points.values()
        if any(fnmatchcase(name, pattern) for name in (point.name, *point.aliases))
    ]
    if not found:
        raise _unknown(pattern, points)
    return found


def _from_short_form(name: ShortForm, points: Mapping[str, HookPoint]) -> str:
    """From ``("pattern", 0)`` or ``("scale", 4, "ln1")`` to the name; -1 is the last block."""
    named = len(name) in (2, 3) and isinstance(name[0], str)
    if not named or isinstance(name[1], bool) or not isinstance(name[1], numbers.Integral):
        raise HookNameError(
            f"{name!r} is not a short form; write (name, layer), such as ('pattern', 0), or "
            "(name, layer, part), such as ('scale', 0, 'ln1')."
        )
    layers = 1 + max(point.layer for point in points.values() if point.layer is not None)
    layer = name[1] + layers if name[1] < 0 else name[1]
    if not 0 <= layer < layers:
        raise HookNameError(
            f"{name!r} asks for layer {name[1]}; this model has layers 0 to {layers - 1}."
        )
    hook = name[0] if name[0].startswith("hook_") else f"hook_{name[0]}"
    part = f".{name[2]}" if len(name) == 3 else ""
    prefix = f"blocks.{layer}{part}."
    found = [full for full in points if full.startswith(prefix) and full.endswith(f".{hook}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise HookNameError(
            f"{name!r} could be {' or '.join(found)}. Name the part too, as in "
            f"({name[0]!r}, {name[1]}, 'ln1')."
        )
    raise _unknown(f"{prefix}{hook}", points, asked=repr(name))


def _unknown(name: str, points: Mapping[str, HookPoint], asked: str | None = None) -> HookNameError:
    asked = asked or shown(name)
    if name.endswith("hook_resid_mid") and not any(n.endswith("hook_resid_mid") for n in points):
        return HookNameError(f"No hook point {asked}. {_PARALLEL_HAS_NO_MIDDLE}")
    known = [*points, *(alias for point in points.values() for alias in point.aliases)]
    near = nearest(name, known)
    return HookNameError(f"No hook point {asked} in this model.{near} See model.hook_table().")
