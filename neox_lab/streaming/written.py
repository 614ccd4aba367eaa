"""Whether somebody wrote into weights that are read from their file for each pass.

PyTorch counts what is written into a tensor, but not what is written through its ``.data`` or
``.numpy()``. So a number of every row and of every column is remembered as well: that shows a row,
a column, a head or a neuron that was set to zero, and takes next to no time.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Seals:
    """What matrices were when they had just been read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Look at them.

        Args:
            tensors: matrices ``[row, column]`` by name.
        """
        self._versions = {name: tensor._version for name, tensor in tensors.items()}
        self._samples = {
            name: _sample(tensor) for name, tensor in tensors.items() if tensor.device.type == "cpu"
        }

    def counted(self, name: str, tensor: Tensor) -> bool:
        """Whether PyTorch counted something that was written into one of them."""
        return tensor._version != self._versions[name]

    def broken(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The name of one of them that is not what it was; None if all seem to be.

        Args:
            tensors: the same matrices.
        """
        for name, tensor in tensors.items():
            if self.counted(name, tensor):
                return name
            if name in self._samples and not torch.equal(_sample(tensor), self._samples[name]):
                return name
        return None


def _sample(tensor: Tensor) -> Tensor:
    """A number of every row and of every column, as bits: NaN is what it was."""
    numbers = tensor.detach().view(-1).view(_INTEGERS[tensor.dtype.itemsize])
    return numbers.index_select(0, _diagonal(*tensor.shape))


@functools.lru_cache(maxsize=16)
def _diagonal(rows: int, columns: int) -> Tensor:
    """Places of a matrix ``[row, column]``, among which every row and every column is."""
    steps = torch.arange(max(rows, columns), device="cpu")
    return (steps % rows) * columns + steps % columns
