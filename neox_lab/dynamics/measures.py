"""What a measure is, and what its answer becomes: rows that can be kept as JSON.

Everything an answer says goes through JSON before it is used, in the first run as in one that goes
on after it was killed, so both give the same frame.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neox_lab.checks import plain, shown
from neox_lab.errors import InputError
from neox_lab.model.identity import numbers_of, weights_print
from neox_lab.results import GridResult, Result

Measure = Callable[[Any], object]
"""What is asked of each model."""

OWN_COLUMNS = ("revision", "step", "tokens", "weights", "fault", "error")
Seen = dict[int, object]
"""What was looked at, by its ``id``; held on to, since the id of what is gone is given again."""

_SIMPLE = (str, bytes, int, float, complex, bool, types.NoneType)


def recorded(answer: object) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """An answer as rows, and as a map if it is one.

    Args:
        answer: a number, a mapping of names to numbers or texts, a frame or a result.

    Returns:
        Rows of what JSON can hold; and of a result whose cells are shown as a map, that map.

    Raises:
        InputError: it is something else.
    """
    rows = [_row(row) for row in _rows(answer)]
    return rows, _map(answer) if isinstance(answer, GridResult) else None


def _rows(answer: object) -> list[Mapping[Any, object]]:
    """One mapping a row.

    Raises:
        InputError: the answer has no rows.
    """
    metrics = getattr(answer, "metrics", None)
    if isinstance(answer, Result) and isinstance(metrics, Mapping):
        return [metrics]
    if isinstance(answer, Result):
        answer = answer.frame
    if hasattr(answer, "to_dict") and hasattr(answer, "columns"):
        found: list[Mapping[Any, object]] = answer.to_dict("records")
        return found
    if isinstance(answer, tuple) and hasattr(answer, "_asdict"):
        answer = answer._asdict()
    if isinstance(answer, Mapping):
        return [answer]
    number = plain(answer)
    if isinstance(number, int | float):
        return [{"value": number}]
    raise InputError(
        f"The measure returned {shown(answer)}; expected a number, a mapping of names to numbers, "
        "a frame, or a result of this package."
    )


def _row(row: Mapping[Any, object]) -> dict[str, Any]:
    """A row as JSON gives it back.

    Raises:
        InputError: a name is no text, or a value is nothing that JSON holds.
    """
    made = {}
    for name, value in row.items():
        if not isinstance(name, str):
            raise InputError(f"The measure's answer has a column {shown(name)}; expected a text.")
        name = f"measured_{name}" if name in OWN_COLUMNS else name
        made[name] = None if type(value).__name__ in ("NAType", "NaTType") else plain(value)
    try:
        return dict(json.loads(json.dumps(made)))
    except (TypeError, ValueError) as error:
        raise InputError(f"The measure's answer cannot be kept: {error} ({shown(made)}).") from None


def _map(result: GridResult) -> dict[str, Any] | None:
    """What a heat map of a result shows; None where its picture is another."""
    from neox_lab.views import HeatmapView

    view = result.view()
    if not isinstance(view, HeatmapView):
        return None
    return {
        "values": view.values.tolist(),
        "measured": view.measured.tolist(),
        "row_labels": view.row_labels,
        "column_labels": view.column_labels,
        "row_axis": view.row_axis,
        "column_axis": view.column_axis,
        "value_name": view.value_name,
        "centre": view.centre,
        "title": view.title,
    }


def name_of(measure: Measure) -> str:
    """What a measure is called.

    Args:
        measure: the function.
    """
    if isinstance(measure, functools.partial):
        return name_of(measure.func)
    name = str(getattr(measure, "__name__", type(measure).__name__))
    return "measure" if name == "<lambda>" else name


def fingerprint(measure: Measure) -> str:
    """What tells one measure from another, so that their answers are not mixed in one folder.

    It holds the function's code, the values and the functions of its module that it uses, and the
    arguments that are bound to it: simple ones, containers and dataclasses, numbers in tensors,
    arrays, tables and modules (of very large ones samples), attributes of other objects. Of those
    of the standard library only the type counts.

    Args:
        measure: the function.
    """
    text = "\n".join(_parts(measure, {}))
    return f"{name_of(measure)} {hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"


def _parts(value: object, seen: Seen) -> Iterator[str]:
    """All that a value consists of, in one order."""
    if isinstance(value, _SIMPLE):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], seen)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _parts([key, each], seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(" ".join(_parts(each, dict(seen))) for each in value)
    elif isinstance(value, list | tuple):
        yield f"{len(value)} values"
        for each in value:
            yield from _parts(each, seen)
    elif isinstance(value, types.CodeType):
        yield f"{value.co_code.hex()} {value.co_names}"
        yield from _parts(value.co_consts, seen)
    elif isinstance(value, Tensor | np.ndarray | nn.Module | Path) or _is_frame(value):
        yield _printed(value)
    elif isinstance(value, types.MethodType):
        yield from _parts([value.__func__, value.__self__], seen)
    elif isinstance(value, types.FunctionType):
        yield from _function(value, seen)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__
        yield from _parts([getattr(value, f.name) for f in dataclasses.fields(value)], seen)
    elif isinstance(value, type):
        yield value.__qualname__
    else:
        yield from _object(value, seen)


def _object(value: object, seen: Seen) -> Iterator[str]:
    """Any other object: by its attributes, if it is none of the standard library."""
    kind = type(value)
    yield str(getattr(value, "__qualname__", kind.__qualname__))
    if kind.__module__.partition(".")[0] not in sys.stdlib_module_names:
        yield from _parts(_attributes(value), seen)
        called = next((vars(c)["__call__"] for c in kind.__mro__ if "__call__" in vars(c)), None)
        if isinstance(called, types.FunctionType):
            yield from _parts(called, seen)


def _attributes(value: object) -> object:
    """What an object holds, as it would be sent elsewhere, without what it computed for itself."""
    make: Callable[[], object] | None = getattr(value, "__getstate__", None)
    state = getattr(value, "__dict__", {}) if make is None else make()
    if not isinstance(state, dict):
        return state
    computed = functools.cached_property
    return {k: v for k, v in state.items() if not isinstance(getattr(type(value), k, 0), computed)}


def _is_frame(value: object) -> bool:
    return hasattr(value, "to_csv") and hasattr(value, "dtypes")


def _printed(value: Any) -> str:
    """A value of many numbers, or a path, as a short text."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, nn.Module):
        named = [*value.named_parameters(), *value.named_buffers()]
        numbers = functools.partial(numbers_of, value)
        return f"{type(value).__qualname__} {weights_print(named, numbers)}"
    if isinstance(value, Tensor):
        dense = value.detach().to_dense()
        dense = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
        return f"{value.dtype} {list(value.shape)} {weights_print([('', dense)])}"
    told = value.to_csv() if _is_frame(value) else repr((value.dtype, value.shape, value.tolist()))
    return hashlib.sha256(str(told).encode("utf-8", "replace")).hexdigest()


def _function(function: types.FunctionType, seen: Seen) -> Iterator[str]:
    """A function: its code, its defaults, what it closes over, what it uses of its module."""
    yield f"{function.__module__}.{function.__qualname__}"
    if (function.__module__ or "").startswith("neox_lab."):  # none where code was run by exec
        return
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    yield from _parts([function.__code__, function.__defaults__, function.__kwdefaults__], seen)
    yield from _parts(cells, seen)
    for name in _names(function.__code__):
        if name in function.__globals__:
            used = function.__globals__[name]
            if not isinstance(used, types.ModuleType | type):
                yield name
                yield from _parts(used, seen)


def _names(code: types.CodeType) -> list[str]:
    """Names of the module that a code and those inside it use."""
    inside = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return sorted({*code.co_names, *(name for each in inside for name in _names(each))})
