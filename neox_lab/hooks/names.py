"""From what a user writes to hook points.

A hook point can be asked for by its name (``blocks.3.attn.hook_pattern``), a Hugging Face module
path (``gpt_neox.layers.3.attention``), a short form (``("pattern", 3)``, ``"pattern3"``), a glob
(``blocks.*.hook_resid_post``) or a predicate on names. A short name alone (``"pattern"``) is every
point of that name where several may be asked for. Whatever matches nothing is an error that says
which names come near, because a hook that is nowhere is a result that is silently wrong.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from neox_lab.checks import several, shown
from neox_lab.errors import HookNameError, nearest
from neox_lab.model.hook_points import HookPoint

ShortForm = tuple[str, int] | tuple[str, int, str]
Name = str | ShortForm | Callable[[str], bool]
"""What stands for one or more hook points."""

_SHORT_NAMES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "key": "k",
    "query": "q",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
_PARTS = {"a": "attn", "attention": "attn", "m": "mlp", "b": "", "block": "", "blocks": ""}
"""What TransformerLens's short forms may call things besides their names."""
_IN_ONE_WORD = re.compile(r"([a-z_]+?)([0-9]+)([a-z][a-z0-9]*)?")

_QUERIES_KEYS_VALUES = (
    "That module's output is three tensors here: attn.hook_q, attn.hook_k and attn.hook_v of the "
    "block, [batch, pos, head, d_head] each; torch.cat([q, k, v], dim=-1).flatten(2) is the "
    "module's own."
)
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
    full = _full_name(name, points)
    return [points[full]] if full else _called(name, points) or [points[exact(name, points)]]


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
    if full := _full_name(name, points):
        return full
    called = _called(name, points)
    outside = [point for point in called if point.layer is None]
    for found in (called, outside):
        if len(found) == 1:
            return found[0].name
    if called:
        raise HookNameError(
            f"{name!r} is at {len(called)} hook points, {called[0].name!r} first; one is asked for "
            f"here. Name the layer, as in ({name!r}, {called[0].layer})."
        )
    if word := _IN_ONE_WORD.fullmatch(name):
        short, layer, part = word.groups()
        asked = (short, int(layer)) if part is None else (short, int(layer), part)
        if _called(short, points):
            return _from_short_form(asked, points)
    raise _unknown(name, points)


def _full_name(name: str, points: Mapping[str, HookPoint]) -> str | None:
    """The name that ``name`` is, or is an alias of."""
    if name in points:
        return name
    return next((point.name for point in points.values() if name in point.aliases), None)


def _called(name: str, points: Mapping[str, HookPoint]) -> list[HookPoint]:
    """The hook points whose name ends in ``.hook_<name>``, in whatever block."""
    hook = f"hook_{_SHORT_NAMES.get(name, name)}"
    return [point for point in points.values() if point.name.rpartition(".")[2] == hook]


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
    short = _SHORT_NAMES.get(name[0], name[0])
    hook = short if short.startswith("hook_") else f"hook_{short}"
    part = _PARTS.get(name[2], name[2]) if len(name) == 3 else ""
    part = f".{part}" if part else ""
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
    if "query_key_value" in name:
        return HookNameError(f"No hook point {asked}. {_QUERIES_KEYS_VALUES}")
    if name.endswith("final_layer_norm"):
        return HookNameError(
            f"No hook point {asked}: without a head its output is output.last_hidden_state."
        )
    known = [*points, *(alias for point in points.values() for alias in point.aliases)]
    near = nearest(name, known)
    return HookNameError(f"No hook point {asked} in this model.{near} See model.hook_table().")
