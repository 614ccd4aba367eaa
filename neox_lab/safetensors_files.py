"""The one place that knows how a safetensors file is made.

Such a file is eight bytes with the length of a header (little-endian); the header, which is JSON
with each tensor's dtype, shape and place, and a table ``__metadata__`` of strings; and the
tensors' bytes in row-major order, without gaps (https://github.com/huggingface/safetensors#format).
Checkpoints, caches of activations and results of experiments are such files. The latter two carry
what is not a tensor as JSON in the metadata, see ``FileFormat``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neox_lab.errors import CheckpointError
from neox_lab.files import StrPath, parse_json, staged_file

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes that are written, by their names in the format."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 64  # bytes; mapped tensors then start where vector instructions like them
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Layout:
    """Where everything lies in a file.

    Attributes:
        header: the bytes before the first tensor.
        offsets: where each tensor starts, from the beginning of the file.
        size: bytes of the whole file.
    """

    header: bytes
    offsets: dict[str, int]
    size: int


def layout(
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]], metadata: Mapping[str, str]
) -> Layout:
    """The layout of a file that holds tensors of these shapes and dtypes.

    Raises:
        CheckpointError: the format has no such dtype or no room for the name.
    """
    entries: dict[str, object] = {_METADATA: dict(metadata)}
    places: dict[str, int] = {}
    end = 0
    # Largest element first keeps every tensor aligned to its own element size.
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
        if dtype not in _DTYPE_NAMES or name == _METADATA:
            raise CheckpointError(f"A tensor {name!r} of {dtype} cannot be stored as safetensors.")
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
        places[name] = start
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + places[name] for name in tensors}
    return Layout(header, offsets, len(header) + end)


def places(path: Path) -> dict[str, tuple[int, tuple[int, ...], torch.dtype]]:
    """Where each tensor of a file starts, from its beginning, with its shape and dtype.

    Tensors of dtypes that are never written here are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no such header.
        KeyError: an entry of the header lacks something.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    header.pop(_METADATA, None)
    return {
        name: (8 + length + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
        for name, entry in header.items()
        if entry["dtype"] in DTYPES
    }


def write(temporary: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one file in place, making one tensor contiguous at a time.

    Args:
        temporary: where, as ``files.staged_file`` gives it.
        tensors: by name.
        metadata: texts for the header.

    Raises:
        CheckpointError: the format has no such dtype or no room for the name.
        OSError: the file cannot be written.
    """
    specs = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    plan = layout(specs, metadata)
    with open(temporary, "wb") as file:
        file.write(plan.header)
        for name in sorted(tensors, key=lambda name: plan.offsets[name]):
            rows = tensors[name].detach().to("cpu").contiguous()
            # Its numbers lie in a row, whatever stride a tensor of one number or none may say.
            flat = rows.as_strided((rows.numel(),), (1,))
            file.write(flat.view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class FileFormat:
    """Files that hold tensors and a description of everything about them that is not a tensor.

    The description stands as JSON in the metadata, so other programs read the tensors as they read
    any safetensors file.

    Attributes:
        noun: what such a file holds, in messages.
        name: the format with its version: ``"neox_lab activation cache 1"``. A file of another
            format is refused.
    """

    noun: str
    name: str

    def metadata(self, description: Mapping[str, object]) -> dict[str, str]:
        """What the header says beside the tensors.

        Args:
            description: something that JSON can hold.
        """
        text = json.dumps(description)
        return {"format": "pt", "neox_lab": self.name, "description": text}

    def write(
        self, path: StrPath, tensors: Mapping[str, Tensor], description: Mapping[str, object]
    ) -> None:
        """Write a file; one that was there stays until the new one is whole.

        Args:
            path: where; directories are made if need be.
            tensors: by name.
            description: something that JSON can hold.

        Raises:
            CheckpointError: the file cannot be written.
        """
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with staged_file(path) as temporary:
                write(temporary, tensors, self.metadata(description))
        except OSError as error:
            message = f"Cannot write the {self.noun} to {os.fspath(path)!r}: {error}"
            raise CheckpointError(message) from error

    def read(self, path: StrPath) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Tensors, mapped from the file, and description of a file that ``write`` wrote.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it is of another format.
        """
        from safetensors import SafetensorError, safe_open

        place = repr(os.fspath(path))
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("neox_lab") != self.name:
                    raise CheckpointError(
                        f"{place} is a safetensors file, but not a saved {self.noun}: its format "
                        f"is {metadata.get('neox_lab')!r}; this version reads {self.name!r}."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                description = parse_json(metadata["description"])
        except CheckpointError:
            raise
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            message = f"Cannot read a {self.noun} from {place}: {error}"
            raise CheckpointError(message) from error
        if not isinstance(description, dict):
            raise CheckpointError(f"Cannot read a {self.noun} from {place}: no description.")
        return tensors, description
