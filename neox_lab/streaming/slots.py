"""Memory that is filled again and again, and never while somebody looks at it.

A weight that was read from a file may be kept by others: by autograd for the backward pass, by a
list that is to be stacked, by a closure. Filling its memory with the next layer would change it
under their hands, and nobody would notice. So a slot knows whether a tensor over it is still
there, and is passed over until it is not.
"""

from __future__ import annotations

import mmap
import sys
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor


class Slot:
    """Bytes that tensors are views of, aligned to pages."""

    def __init__(self, nbytes: int) -> None:
        """Memory of ``nbytes`` bytes; its pages come when it is first filled."""
        private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANON}
        self.nbytes = nbytes
        self._memory = mmap.mmap(-1, nbytes, **private)
        self._references = sys.getrefcount(self._memory)

    def bytes(self) -> memoryview:
        """The memory, to be filled and let go of."""
        return memoryview(self._memory)

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor over this memory, which keeps the slot from being free."""
        return torch.frombuffer(self._memory, dtype=dtype).view(shape)

    @property
    def is_free(self) -> bool:
        """Whether no tensor over this memory is left, whoever made it of whichever."""
        return sys.getrefcount(self._memory) == self._references


class Slots:
    """Slots by size; one is handed out only if it is free."""

    def __init__(self, usual: Mapping[int, int]) -> None:
        """No slots yet.

        Args:
            usual: how many of a size are kept when they are free.
        """
        self._usual = usual
        self._slots: defaultdict[int, list[Slot]] = defaultdict(list)

    def take(self, nbytes: int) -> Slot:
        """A free slot of a size, to be seen through a tensor before the next is taken.

        Where all are in use, one more is made; what is free beyond the usual number goes back to
        the system.
        """
        held = [slot for slot in self._slots[nbytes] if not slot.is_free]
        free = [slot for slot in self._slots[nbytes] if slot not in held] or [Slot(nbytes)]
        spare = max(1, self._usual.get(nbytes, 1) - len(held))
        self._slots[nbytes] = held + free[:spare]
        return free[0]

    @property
    def nbytes(self) -> int:
        """Memory of all slots, the free ones too."""
        return sum(slot.nbytes for same in list(self._slots.values()) for slot in same)

    def clear(self) -> None:
        """Let go of all; those in use live as long as the tensors over them."""
        self._slots.clear()
