"""Where in which file a matrix lies, and reading it into memory that is there already.

Files are read in large pieces by plain reads: touching a mapped file brings a page at a time, at
a fifth of the disk's rate. A file is opened once and kept open, so it may be replaced or unlinked
meanwhile; one that is written into or cut short is noticed by whatever reads it then. No place in
it is remembered between reads: forked processes would share that, and read each other's weights.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from neox_lab.errors import CheckpointError
from neox_lab.safetensors_files import places

PIECE = 64 * 2**20  # bytes of one read: an interrupt or a closing store waits for no more


@dataclass(frozen=True)
class Place:
    """A tensor in a file.

    Attributes:
        file: which file.
        offset: bytes in front of it.
        shape: of the tensor.
        dtype: as it is stored.
    """

    file: OpenFile
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """How many bytes of the file it takes."""
        return self.numel * self.dtype.itemsize


class OpenFile:
    """A file of weights, open for reading by one thread."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            CheckpointError: it cannot be read.
        """
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        self._stamp = self._now()

    def places(self) -> dict[str, Place]:
        """Where each tensor lies.

        Raises:
            CheckpointError: the header is damaged.
        """
        try:
            found = places(self.path)
        except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{self.path} is damaged: {error}.") from error
        return {name: Place(self, *where) for name, where in found.items()}

    def read(self, place: Place, start: int, into: memoryview) -> None:
        """Read a part of a tensor.

        Args:
            place: a tensor of this file.
            start: bytes of the tensor in front of the part.
            into: bytes to fill.

        Raises:
            CheckpointError: the file was cut short or written into, or the disk fails.
        """
        at = place.offset + start
        try:
            self._check_unchanged()
            while into:
                count = self._read_at(at, into[:PIECE])
                if not count:
                    raise CheckpointError(
                        f"{self.path} ends {len(into)} bytes before the weights that the next "
                        "layer needs: it was cut short, or its disk is gone. Copy or download it "
                        "again, then load the model again."
                    )
                into, at = into[count:], at + count
            self._check_unchanged()
        except (OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path} cannot be read any more: {error}.") from error

    def _read_at(self, at: int, into: memoryview) -> int | None:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [into], at)
        self._file.seek(at)
        return self._file.readinto(into)

    def _check_unchanged(self) -> None:
        if self._now() != self._stamp:
            raise CheckpointError(
                f"{self.path} was changed or cut short while the model was reading its layers "
                "from it: what is computed now would mix two checkpoints. Load the model again."
            )

    def _now(self) -> tuple[int, int]:
        """Size and time of the last change."""
        stat = os.fstat(self._file.fileno())
        return stat.st_size, stat.st_mtime_ns

    def close(self) -> None:
        """Close the file; what was read stays."""
        self._file.close()

    def __del__(self) -> None:
        """Close the file of a model that nobody has any more, without Python's warning of it."""
        if hasattr(self, "_file"):
            self._file.close()
