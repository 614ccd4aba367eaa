"""Tensors out of weight files, one at a time.

Files are mapped into memory: a tensor read from a mapped file costs nothing until it is used,
and then only pages of the file itself. Pages that were read count towards the process's
memory as long as the mapping lives, so whoever copies tensors out of a file calls
``release`` from time to time, which drops the mapping; it comes back at the next read.

``.bin`` files are pickles, which can run any program. They are read with PyTorch's restricted
unpickler, which knows tensors and containers and refuses everything else.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from neox_lab.checkpoint.files import Format, WeightFiles
from neox_lab.checkpoint.names import NOT_WEIGHTS
from neox_lab.checkpoint.report import Shape
from neox_lab.errors import CheckpointError
from neox_lab.safetensors_files import DTYPES

WEIGHT_DTYPES = {name: DTYPES[name] for name in ("F32", "F16", "BF16", "F64")}
"""The dtypes that weights may have, by the names of the safetensors format."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; one that is not for weights may be a mere name."""

    shape: Shape
    dtype: torch.dtype | str


class TensorSource(ABC):
    """Named tensors that are read one at a time; ``tensors`` says which there are."""

    tensors: dict[str, TensorInfo]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """The tensor of that name, on the CPU, perhaps mapped; each tensor is read only once."""

    @abstractmethod
    def release(self) -> None:
        """Drop the mapping, so that pages read so far stop counting as memory in use."""

    def path(self, _name: str) -> Path | None:
        """The file that the tensor of that name is in; None if it is in memory."""
        return None


class WeightFile(TensorSource):
    """A file of tensors.

    Attributes:
        file_path: where it is.
    """

    file_path: Path

    def path(self, _name: str) -> Path:  # noqa: D102
        return self.file_path


class SafetensorsFile(WeightFile):
    """A ``.safetensors`` file (format: https://github.com/huggingface/safetensors)."""

    def __init__(self, path: Path) -> None:
        """Read the header only.

        Raises:
            CheckpointError: the file is damaged.
        """
        self.file_path = path
        self._file: Any = None
        self.tensors = {}
        file = self._opened()
        for name in file.keys():
            part = file.get_slice(name)
            dtype = part.get_dtype()
            self.tensors[name] = TensorInfo(
                tuple(part.get_shape()), WEIGHT_DTYPES.get(dtype, dtype)
            )

    def read(self, name: str) -> Tensor:  # noqa: D102
        tensor: Tensor = self._opened().get_tensor(name)
        return tensor

    def release(self) -> None:  # noqa: D102
        self._file = None

    def _opened(self) -> Any:
        if self._file is None:
            try:
                self._file = safe_open(self.file_path, framework="pt", device="cpu")
            except (SafetensorError, OSError, ValueError, RuntimeError) as error:
                raise _damaged(self.file_path, error) from error
        return self._file


class TorchFile(WeightFile):
    """A ``.bin`` file written by ``torch.save``: a dict of tensors."""

    def __init__(self, path: Path) -> None:
        """Map the file, or read it if it is of the time before PyTorch 1.6."""
        self.file_path = path
        with open(path, "rb") as file:
            self._mapped = file.read(4) == b"PK\3\4"  # as torch tells; zipfile reads further
        self._tensors: dict[str, Tensor] | None = None
        self.tensors = {name: _info(tensor) for name, tensor in self._opened().items()}

    def read(self, name: str) -> Tensor:  # noqa: D102
        tensors = self._opened()
        tensor = tensors[name] if self._mapped else tensors.pop(name)
        return tensor.detach().contiguous()

    def release(self) -> None:  # noqa: D102
        if self._mapped:
            self._tensors = None

    def _opened(self) -> dict[str, Tensor]:
        if self._tensors is None:
            self._tensors = self._load()
        return self._tensors

    def _load(self) -> dict[str, Tensor]:
        content = unpickled(self.file_path, mapped=self._mapped)
        if not isinstance(content, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided
            for name, tensor in content.items()
        ):
            raise CheckpointError(
                f"{self.file_path} should hold a table of dense tensors (a state dict), and holds "
                f"a {type(content).__name__} of something else."
            )
        return dict(content)


def unpickled(path: Path, *, mapped: bool = False) -> object:
    """What ``torch.save`` wrote: tensors and containers of them, nothing that runs.

    Args:
        path: the file.
        mapped: tensors stay in the file until they are used.

    Raises:
        CheckpointError: it is damaged, or reading it would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch.load fails on garbage in many ways
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path} holds more than tensors: loading it would run {code[1]}, which could "
            "do anything, so it is refused. Use the safetensors file of the checkpoint; if you "
            "trust this one, convert it elsewhere with safetensors.torch.save_file."
        ) from error


class GivenTensors(TensorSource):
    """A state dict that the caller holds; its tensors are copied, never shared."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.tensors = {name: _info(tensor) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:  # noqa: D102
        return self._tensors[name].detach().clone()

    def release(self) -> None:  # noqa: D102
        pass


class Shards(TensorSource):
    """Several files as one."""

    def __init__(self, files: Sequence[WeightFile], index: dict[str, str]) -> None:
        """Read the files' headers.

        Raises:
            CheckpointError: they contradict their index.
        """
        self.tensors = {}
        self._owner: dict[str, WeightFile] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in self._owner:
                    raise CheckpointError(
                        f"Tensor {name!r} is in two shards, {self._owner[name].file_path.name} and "
                        f"{file.file_path.name}."
                    )
                self._owner[name] = file
                self.tensors[name] = info
            file.release()
        self._compare(index)

    def _compare(self, index: dict[str, str]) -> None:
        for name, filename in index.items():
            owner = self._owner.get(name)
            if owner is None or owner.file_path.name != filename:
                raise CheckpointError(
                    f"The index says that tensor {name!r} is in {filename}, and it is not there."
                )
        unlisted = [n for n in self._owner if n not in index and not NOT_WEIGHTS.search(n)]
        if unlisted:
            raise CheckpointError(
                f"The shards hold {len(unlisted)} tensors that their index does not list, such as "
                f"{unlisted[0]!r}: index and shards are of different checkpoints."
            )

    def read(self, name: str) -> Tensor:  # noqa: D102
        return self._owner[name].read(name)

    def path(self, name: str) -> Path:  # noqa: D102
        return self._owner[name].file_path

    def release(self) -> None:  # noqa: D102
        for file in set(self._owner.values()):
            file.release()


def open_weights(files: WeightFiles) -> TensorSource:
    """The tensors of a checkpoint's files.

    Raises:
        CheckpointError: a file is damaged, or shards contradict their index.
    """
    kinds: dict[Format, type[SafetensorsFile] | type[TorchFile]]
    kinds = {"safetensors": SafetensorsFile, "bin": TorchFile}
    opened = [kinds[files.format](path) for path in files.paths]
    return opened[0] if files.index is None else Shards(opened, files.index)


def _info(tensor: Tensor) -> TensorInfo:
    return TensorInfo(tuple(tensor.shape), tensor.dtype)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    """Say what is wrong with a file, with the usual cause where it shows."""
    try:
        with open(path, "rb") as file:
            start = file.read(24)
    except OSError as refusal:
        return CheckpointError(f"{path} cannot be read: {refusal}.")
    if start.startswith(b"version https://git-lfs"):
        return CheckpointError(
            f"{path} is a placeholder of Git LFS, not the weights: run 'git lfs pull' there."
        )
    reason = f"{type(error).__name__}: {error}".split(". ")[0].rstrip(".")
    return CheckpointError(
        f"{path} ({path.stat().st_size} bytes) is damaged or cut short ({reason}). "
        "Copy or download it again (force_download=True)."
    )
