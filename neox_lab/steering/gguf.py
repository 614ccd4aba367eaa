"""GGUF, as far as control vectors need it: a few keys and tensors of float32 or float16.

    "GGUF"  version 3  tensors  keys                        magic, u32, u64, u64, little-endian
    key  type  value                                        for each key; strings are u64 + bytes
    name  dimensions  sizes  type  offset                   for each tensor
    padding to general.alignment (32), then the numbers

repeng and llama.cpp keep a direction as ``direction.<layer>``: what is added to the output of that
block (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neox_lab.errors import CheckpointError
from neox_lab.files import StrPath, staged_file

MAGIC = b"GGUF"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_DTYPES = {0: "<f4", 1: "<f2"}
_ALIGNMENT = 32
_MOST = 2**16  # keys or tensors: a control vector has a few dozen

Value = int | float | bool | str | list[object]


def write(path: StrPath, keys: Mapping[str, int | str], tensors: Mapping[str, Tensor]) -> None:
    """Write a file; one that was there stays until the new one is whole.

    Args:
        path: where.
        keys: whole numbers (uint32) and texts.
        tensors: of float32 numbers.

    Raises:
        CheckpointError: the file cannot be written.
    """
    head = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        head += _string(key)
        if isinstance(value, str):
            head += struct.pack("<I", _STRING) + _string(value)
        else:
            head += struct.pack("<II", _UINT32, value)
    data = b""
    for name, tensor in tensors.items():
        sizes = list(reversed(tensor.shape))
        head += _string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, len(data))
        numbers = tensor.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes()
        data += numbers + bytes(-len(numbers) % _ALIGNMENT)
    head += bytes(-len(head) % _ALIGNMENT)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as temporary:
            temporary.write_bytes(head + data)
    except OSError as error:
        raise CheckpointError(f"Cannot write {str(path)!r}: {error}") from error


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def read(path: StrPath) -> tuple[dict[str, Value], dict[str, Tensor]]:
    """Keys and tensors of a file, float32.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is damaged, or holds what no control vector holds.
    """
    try:
        with open(path, "rb") as file:
            size = Path(path).stat().st_size
            return _Reader(file, size).whole()
    except (OSError, struct.error, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"Cannot read GGUF from {str(path)!r}: {error}") from error


class _Place(NamedTuple):
    """What a file says of a tensor: its shape, its type, and where it begins."""

    name: str
    sizes: list[int]
    kind: int
    offset: int


class _Reader:
    """One file, read from its start."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def whole(self) -> tuple[dict[str, Value], dict[str, Tensor]]:
        if self.file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, keys = self._unpack("IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}; expected 2 or 3, little-endian")
        if max(tensors, keys) > _MOST:
            raise ValueError(f"{tensors} tensors and {keys} keys are no control vector")
        found = {}
        for _ in range(keys):
            name = self._string()
            found[name] = self._value(self._unpack("I")[0])
        places = [self._place() for _ in range(tensors)]
        step = found.get("general.alignment", _ALIGNMENT)
        if not isinstance(step, int) or not 1 <= step <= 2**20:
            raise ValueError(f"general.alignment is {step}")
        start = math.ceil(self.file.tell() / step) * step
        if sum(math.prod(place.sizes) for place in places) > self.size:
            raise ValueError("its tensors are larger than the file")
        return found, {place.name: self._tensor(start, place) for place in places}

    def _bytes(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("it ends too early")
        return self.file.read(count)

    def _unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(f"<{layout}", self._bytes(struct.calcsize(f"<{layout}")))

    def _string(self) -> str:
        return self._bytes(self._unpack("Q")[0]).decode()

    def _value(self, kind: int, depth: int = 0) -> Value:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY and depth < 4:
            inner, count = self._unpack("IQ")
            if count > self.size:
                raise ValueError("an array is longer than the file")
            return [self._value(inner, depth + 1) for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"a value of the unknown type {kind}")
        return self._unpack(_NUMBERS[kind])[0]

    def _place(self) -> _Place:
        name = self._string()
        (count,) = self._unpack("I")
        if count > 4:
            raise ValueError(f"{name!r} has {count} axes")
        sizes = list(self._unpack(f"{count}Q"))[::-1]
        kind, offset = self._unpack("IQ")
        return _Place(name, sizes, kind, offset)

    def _tensor(self, start: int, place: _Place) -> Tensor:
        _, sizes, kind, offset = place
        if kind not in _DTYPES:
            raise ValueError(f"a tensor of type {kind}; expected float32 or float16")
        dtype = np.dtype(_DTYPES[kind])
        if start + offset > self.size:
            raise ValueError("it ends too early")
        self.file.seek(start + offset)
        numbers = self._bytes(math.prod(sizes) * dtype.itemsize)
        return torch.from_numpy(np.frombuffer(numbers, dtype).astype(np.float32)).reshape(sizes)
