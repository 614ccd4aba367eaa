"""One file of rows: written in place through memory, read through memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from neox_lab.activations.manifest import Manifest, Shard
from neox_lab.errors import CheckpointError
from neox_lab.files import reserve
from neox_lab.safetensors_files import DTYPES, layout

_MENDING = "Bring the file back from a copy, or collect into another folder."


def room(temporary: Path, manifest: Manifest, rows: int) -> dict[str, Tensor]:
    """A file for so many rows, as tensors to fill; what is written there is in the file.

    Args:
        temporary: where, as ``files.staged_file`` gives it.
        manifest: what a row is.
        rows: how many.

    Raises:
        OSError: the disk has no room.
    """
    tensors = manifest.tensors(rows)
    plan = layout(tensors, {"format": "pt", "neox_lab": manifest.format})
    reserve(temporary, plan.size)
    whole = torch.from_file(str(temporary), shared=True, size=plan.size, dtype=torch.uint8)
    whole[: len(plan.header)] = torch.frombuffer(bytearray(plan.header), dtype=torch.uint8)
    found = {}
    for name, (shape, dtype) in tensors.items():
        start = plan.offsets[name]
        end = start + math.prod(shape) * dtype.itemsize
        found[name] = whole[start:end].view(dtype).view(shape)
    return found


def check_shard(path: Path, manifest: Manifest, shard: Shard) -> None:
    """See that a file has the size and the tensors that the manifest says; no row is read.

    Raises:
        CheckpointError: it is missing, or another.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{str(path)!r} is missing. {_MENDING}")
    size = path.stat().st_size
    if size != shard.size:
        raise CheckpointError(
            f"{str(path)!r} has {size} bytes and had {shard.size} when it was collected: it was "
            f"changed or cut short. {_MENDING}"
        )
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {
                name: (tuple(each.get_shape()), DTYPES.get(each.get_dtype()))
                for name, each in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}. {_MENDING}") from error
    if found != manifest.tensors(shard.rows):
        raise CheckpointError(
            f"{str(path)!r} holds other tensors than the manifest says. {_MENDING}"
        )


def verify_shard(path: Path, shard: Shard) -> None:
    """Read a file whole and compare its checksum.

    Raises:
        CheckpointError: it has another.
    """
    if checksum(path) != shard.sha256:
        raise CheckpointError(
            f"{str(path)!r} was changed since it was collected: its checksum is another. {_MENDING}"
        )


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mapped(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a file, read from the disk where they are used.

    Raises:
        CheckpointError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}. {_MENDING}") from error
