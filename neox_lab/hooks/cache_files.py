"""Caches in files: safetensors, written whole or while the model runs.

Everything about a cache that is not a tensor (axis names, token strings, which entries share
memory) is the description in the file's header.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from neox_lab.errors import CheckpointError, HookError
from neox_lab.files import reserve, staged_file
from neox_lab.hooks.storage import bytes_of
from neox_lab.model.hook_points import HookPoint
from neox_lab.safetensors_files import FileFormat, layout

_CACHE = FileFormat("cache", "neox_lab activation cache 1")


def write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
    """Write tensors and a JSON-able description to ``path``, replacing it only when complete.

    Tensors that share memory are written once.

    Raises:
        CheckpointError: the file cannot be written.
    """
    first_with: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place in first_with:
            aliases[name] = first_with[place]
        else:
            first_with[place] = name
            kept[name] = tensor
    _CACHE.write(path, kept, {**description, "aliases": aliases, "order": list(tensors)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors (memory-mapped) and description that ``write`` put into ``path``.

    Raises:
        CheckpointError: there is no such file, or it is not a cache.
    """
    stored, description = _CACHE.read(path)
    aliases, order = description.pop("aliases", None), description.pop("order", None)
    if isinstance(aliases, dict) and _is_texts(order):
        places = {name: str(aliases.get(name, name)) for name in order}
        if set(places.values()) <= stored.keys():
            return {name: stored[place] for name, place in places.items()}, description
    raise CheckpointError(f"Cannot read a cache from {str(path)!r}: it does not list its tensors.")


@contextmanager
def spilled(
    path: Path,
    plan: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    description: Mapping[str, object],
) -> Iterator[SpillFile]:
    """A file to fill while the model runs, which takes its name when the block is left.

    If the block raises, there is no file.

    Args:
        path: where; directories are made if need be.
        plan: shape and dtype of every tensor, by name.
        description: something that JSON can hold.

    Raises:
        CheckpointError: the file exists already or cannot be made, or the disk has no room.
    """
    _refuse_taken(path)
    inside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as temporary:
            file = SpillFile(temporary, plan, description)
            try:
                yield file
                _refuse_taken(path)  # somebody may have made it meanwhile
            except OSError as error:
                inside = error
                raise
    except OSError as error:
        if error is inside:
            raise
        raise CheckpointError(f"Cannot spill the cache to {str(path)!r}: {error}") from error


def _refuse_taken(path: Path) -> None:
    if os.path.lexists(path):
        raise CheckpointError(f"{str(path)!r} exists; a cache is not spilled over it.")


def described_points(path: Path, description: Mapping[str, object]) -> dict[str, HookPoint]:
    """The hook points of a cache's description, by name.

    Raises:
        CheckpointError: it does not describe them; nor does it name tokens and what is derived.
    """
    points, pieces = description.get("points"), description.get("pieces")
    if (
        not {"points", "pieces", "derived"} <= description.keys()
        or not isinstance(points, list)
        or not all(map(_is_point, points))
        or not (pieces is None or _is_texts(pieces))
        or not _is_texts(description.get("derived"))
    ):
        raise CheckpointError(
            f"Cannot read a cache from {str(path)!r}: its description is damaged."
        )
    return {
        name: HookPoint(name, layer, tuple(axes.split()), meaning, tuple(aliases))
        for name, layer, axes, meaning, aliases in points
    }


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_point(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 5:
        return False
    name, layer, axes, meaning, aliases = value
    numbered = layer is None or (type(layer) is int and 0 <= layer < 2**31)
    return numbered and _is_texts([name, axes, meaning]) and _is_texts(aliases)


class SpillFile:
    """Room for tensors of known size in a memory-mapped safetensors file.

    The operating system moves pages between memory and disk as needed. All room is taken on the
    disk before anything is written, for a disk that is full later would end the process.
    """

    def __init__(
        self,
        temporary: Path,
        plan: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        description: Mapping[str, object],
    ) -> None:
        """Create the file with room for the tensors of ``plan``: name to shape and dtype.

        Raises:
            OSError: the file cannot be made.
        """
        listed = {**description, "aliases": {}, "order": list(plan)}
        file_layout = layout(plan, _CACHE.metadata(listed))
        reserve(temporary, file_layout.size)
        with temporary.open("rb+") as file:
            file.write(file_layout.header)
        storage = torch.UntypedStorage.from_file(
            str(temporary), shared=True, nbytes=file_layout.size
        )
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
        self.tensors: dict[str, Tensor] = {}
        for name, (shape, dtype) in plan.items():
            place = file_layout.offsets[name]
            part = whole[place : place + bytes_of(shape, dtype)]
            self.tensors[name] = part.view(dtype).view(shape)

    def put(self, name: str, tensor: Tensor) -> Tensor:
        """Copy ``tensor`` into the place of ``name``; return the tensor that lives in the file.

        Raises:
            HookError: it has another shape or dtype than was planned for.
        """
        place = self.tensors[name]
        if place.shape != tensor.shape:
            raise HookError(
                f"{name!r} has shape {list(tensor.shape)} in this run; the file has room for "
                f"{list(place.shape)}. A run that is spilled computes all positions: leave out "
                "logits_to_keep, or leave this hook point out with names_filter."
            )
        if place.dtype != tensor.dtype:
            raise HookError(
                f"{name!r} is {tensor.dtype} in this run; the file has room for {place.dtype}. "
                "Give dtype= to keep all in one, or let a spliced function pass what its points "
                "say (in_float32)."
            )
        return place.copy_(tensor)
