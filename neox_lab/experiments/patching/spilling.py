"""Room for residual streams that wait for their next block: memory, and then a file.

The file has no name once it is mapped, so nothing of it is left however the process ends. All of
its room is taken on the disk before anything is written, for a disk that is full later would end
the process.
"""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.files import reserve
from neox_lab.interrupts import held
from neox_lab.memory import free_memory
from neox_lab.sizes import size_in_words

SHARE = 4
"""Residual streams may take one part in so many of the memory that is free at the beginning."""


class Room:
    """Keeps tensors, the later ones in files."""

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        """Nothing is kept yet.

        Args:
            device: where tensors are made.
            limit: bytes that may stay there; None for a share of what is free.
        """
        free = free_memory(device) if limit is None else None
        self.limit = limit if free is None else free // SHARE
        self.taken = 0
        self.places: dict[object, Tensor | None] = {}

    def put(self, owner: object, x: Tensor) -> Tensor:
        """``x``, or a copy of it that lives in a file.

        Args:
            owner: whose tensor it is. The next one of the same owner goes where this one is.
            x: the tensor.

        Raises:
            InputError: the disk has no room either.
        """
        if owner not in self.places:
            fits = self.limit is None or self.taken + x.nbytes <= self.limit
            self.taken += x.nbytes * fits
            self.places[owner] = None if fits else _mapped(x)
        place = self.places[owner]
        return x if place is None else place.copy_(x)


def _mapped(x: Tensor) -> Tensor:
    """A tensor like ``x`` in a file without a name.

    Raises:
        InputError: the disk has no room.
    """
    try:
        with held(), tempfile.NamedTemporaryFile(prefix="neox_lab-") as file:
            reserve(file.name, x.nbytes)
            storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=x.nbytes)
    except (OSError, RuntimeError) as error:  # PyTorch says by the latter that it cannot map
        raise InputError(
            "The variants of this sweep take more memory than there is, and the folder for "
            f"temporary files has no room for {size_in_words(x.nbytes)} ({error}). Sweep fewer "
            "positions at once, or set TMPDIR to a folder on a larger disk."
        ) from error
    flat = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
    return flat.view(x.dtype).view(x.shape)
