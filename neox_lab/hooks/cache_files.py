"""Caches in files: safetensors, written whole or while the model runs.

A safetensors file is eight bytes with the length of a JSON header, the header with each tensor's
dtype, shape and place, and then the numbers. Everything about a cache that is not a tensor (axis
names, token strings, which entries share memory) stands in the header's metadata as JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from neox_lab.errors import CheckpointError, HookError
from neox_lab.hooks.storage import bytes_of

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.bool: "BOOL",
}
_FORMAT = "neox_lab activation cache 1"


def write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
    """Write tensors and a JSON-able description to ``path``, replacing it only when complete.

    Tensors that share memory are written once.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from safetensors.torch import save_file

    first_with: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if place in first_with:
            aliases[name] = first_with[place]
        else:
            first_with[place] = name
            kept[name] = tensor.contiguous()
    text = json.dumps({**description, "aliases": aliases, "order": list(tensors)})
    metadata = {"format": "pt", "neox_lab": _FORMAT, "description": text}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(kept, temporary, metadata=metadata)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CheckpointError(f"Cannot write the cache to {str(path)!r}: {error}") from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Tensors (memory-mapped) and description that ``write`` put into ``path``.

    Raises:
        CheckpointError: there is no such file, or it is not a cache.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("neox_lab") != _FORMAT:
                raise CheckpointError(
                    f"{str(path)!r} is a safetensors file, but not a saved cache."
                )
            stored = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"Cannot read a cache from {str(path)!r}: {error}") from error
    description = json.loads(metadata["description"])
    aliases = description.pop("aliases")
    order = description.pop("order")
    return {name: stored[aliases.get(name, name)] for name in order}, description


class SpillFile:
    """Room for tensors of known size in a memory-mapped safetensors file.

    The operating system moves pages between memory and disk as needed. The file is a valid
    safetensors file from the start and can be read by anything that reads those.
    """

    def __init__(
        self,
        path: Path,
        plan: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        description: Mapping[str, object],
    ) -> None:
        """Create ``path`` with room for the tensors of ``plan``: name to shape and dtype.

        Raises:
            CheckpointError: the file exists already or cannot be made.
        """
        self.path = path
        header, places, start = _layout(plan, description)
        size = start + sum(bytes_of(shape, dtype) for shape, dtype in plan.values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(header)
                file.truncate(size)
        except FileExistsError:
            raise CheckpointError(
                f"{str(path)!r} exists; a cache is not spilled over it."
            ) from None
        except OSError as error:
            raise CheckpointError(f"Cannot spill the cache to {str(path)!r}: {error}") from error
        storage = torch.UntypedStorage.from_file(str(path), shared=True, nbytes=size)
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
        self.tensors: dict[str, Tensor] = {}
        for name, (shape, dtype) in plan.items():
            place = start + places[name]
            part = whole[place : place + bytes_of(shape, dtype)]
            self.tensors[name] = part.view(dtype).view(shape)

    def put(self, name: str, tensor: Tensor) -> Tensor:
        """Copy ``tensor`` into the place of ``name``; return the tensor that lives in the file.

        Raises:
            HookError: it has another shape than was planned for.
        """
        place = self.tensors[name]
        if place.shape != tensor.shape:
            raise HookError(
                f"{name!r} has shape {list(tensor.shape)} in this run; the file has room for "
                f"{list(place.shape)}. A run that is spilled computes all positions: leave out "
                "logits_to_keep, or leave this hook point out with names_filter."
            )
        return place.copy_(tensor)


def _layout(
    plan: Mapping[str, tuple[tuple[int, ...], torch.dtype]], description: Mapping[str, object]
) -> tuple[bytes, dict[str, int], int]:
    """Header bytes, each tensor's offset behind the header, and the header's length."""
    text = json.dumps({**description, "aliases": {}, "order": list(plan)})
    entries: dict[str, object] = {
        "__metadata__": {"format": "pt", "neox_lab": _FORMAT, "description": text}
    }
    places: dict[str, int] = {}
    offset = 0
    # Largest element first keeps every tensor aligned to its own element size.
    for name, (shape, dtype) in sorted(plan.items(), key=lambda item: -item[1][1].itemsize):
        end = offset + bytes_of(shape, dtype)
        entries[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        places[name], offset = offset, end
    body = json.dumps(entries).encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body, places, 8 + len(body)
