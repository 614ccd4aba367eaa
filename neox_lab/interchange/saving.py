"""Results of interchange interventions in files: what was found, where, and in which model.

A file is safetensors: ``subspace`` ``[width, rank]`` (where one was asked about) and ``losses``,
and in the header the site, the table, and the model's identity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neox_lab.checks import plain, require_model
from neox_lab.errors import HookNameError, InputError
from neox_lab.files import StrPath, path_of, taken_apart
from neox_lab.frames import make_frame
from neox_lab.hooks.table import axis_sizes, shape_at
from neox_lab.interchange.sites import Site, find_point
from neox_lab.model.identity import Identity, identity, refuse_another
from neox_lab.safetensors_files import FileFormat

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.interchange.outcomes import InterchangeResult

FORMAT = FileFormat("result of an interchange", "neox_lab interchange 1")
COLUMNS = ("run", "accuracy", "low", "high", "kept_base", "other")
_NUMBERS = ("variable", "pairs", "unchanged", "chance", "base_accuracy")


def save(result: InterchangeResult, path: StrPath) -> Path:
    """See ``InterchangeResult.save``."""
    place, site = path_of("path", path), result.site
    tensors = {"losses": result.losses}
    if site.subspace is not None:
        tensors["subspace"] = site.subspace
    said = {name: getattr(result, name) for name in _NUMBERS}
    said["frame"] = {str(name): column.tolist() for name, column in result.frame.items()}
    said["site"] = {"hook": _said(site.hook), "pos": _said(site.pos), "heads": _said(site.heads)}
    said |= {"rank": result.rank, "identity": result.identity}
    FORMAT.write(place, tensors, said)
    return place


def load(path: StrPath, model: HookedModel | None, same: bool) -> dict[str, Any]:
    """The fields of a result; see ``InterchangeResult.load``."""
    place = path_of("path", path)
    tensors, said = FORMAT.read(place)
    with taken_apart(f"the result of an interchange from {str(place)!r}"):
        subspace = tensors["subspace"].clone() if "subspace" in tensors else None
        where: Any = said["site"]
        named = {name: _read(where[name]) for name in ("hook", "pos", "heads")}
        known, frame = said["identity"], said["frame"]
        if not isinstance(frame, Mapping) or not frame["run"]:
            raise ValueError("it has no table")
        found: dict[str, Any] = {name: said[name] for name in _NUMBERS}
        found |= {"frame": make_frame(frame), "losses": tensors["losses"].clone()}
        found["site"] = site = Site(**named, subspace=subspace)
        found["identity"] = Identity(*known) if isinstance(known, list) else None
        rank = 0 if subspace is None else subspace.shape[1]
        if rank != said["rank"]:
            raise ValueError(f"its subspace has {rank} directions, not {said['rank']}")
        _check_numbers(found, frame)
    if model is not None:
        require_model(model)
        if same:
            refuse_another(found["identity"], identity(model), "This subspace")
        _check_width(site, model)
    return found


def _check_numbers(found: Mapping[str, Any], frame: Mapping[str, Any]) -> None:
    """See that counts are counts, shares are shares, and the table is one of shares.

    Raises:
        ValueError: they are not.
    """
    counts = [found["unchanged"], found["pairs"] - 1]
    columns = {name: frame[name] for name in COLUMNS}
    runs = columns.pop(COLUMNS[0])
    if not all(isinstance(each, list) and len(each) == len(runs) for each in columns.values()):
        raise ValueError("the columns of its table are of different lengths")
    shares = [found["chance"], found["base_accuracy"], *chain(*columns.values())]
    right = (
        all(type(count) is int and 0 <= count < 2**53 for count in counts)
        and all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
        and all(isinstance(text, str) for text in (found["variable"], *runs))
    )
    if not right or set(frame) != set(COLUMNS):
        raise ValueError("a count, a share or a name is none")


def _check_width(site: Site, model: HookedModel) -> None:
    """Refuse a site that a model has not, or has with other numbers.

    Raises:
        InputError: it lacks the hook point, or its width is another.
    """
    try:
        point = find_point(site, model)
    except HookNameError as error:
        raise InputError(f"This model has no such site: {error}") from error
    if site.subspace is None or "key_pos" in point.axes:
        return
    rest = list(shape_at(point, axis_sizes(model.config, 1, 1))[2:])
    if site.heads is not None:
        rest[0] = 1
    width = len(site.subspace)
    if width % math.prod(rest):
        raise InputError(
            f"The subspace is of {width} numbers; in this model each place at {point.name!r} has "
            f"{math.prod(rest)}."
        )


def _said(value: object) -> object:
    """A hook, positions or heads as JSON can hold them; tuples and places by name are marked."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {"places": {name: _said(one) for name, one in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_said(one) for one in value]}
    if isinstance(value, list | range):
        return [_said(one) for one in value]
    return plain(value)


def _read(value: object) -> Any:
    """What ``_said`` wrote."""
    if isinstance(value, Mapping):
        if "tuple" in value:
            return tuple(_read(one) for one in value["tuple"])
        return {name: _read(one) for name, one in value["places"].items()}
    return [_read(one) for one in value] if isinstance(value, list) else value
