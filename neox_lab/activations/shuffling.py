"""Orders of many rows that need no memory: the number of any place is computed when asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from neox_lab.activations.documents import mixed

_ROUNDS = 6


class Order:
    """A permutation of the numbers below ``size``, as good as random.

    A Feistel network (Luby and Rackoff 1988, doi:10.1137/0217022) permutes the numbers of an even
    number of bits; what falls on or above ``size`` is permuted again until it does not.

    Args:
        size: how many numbers.
        seed: which permutation.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._half = max(1, ((max(size, 2) - 1).bit_length() + 1) // 2)
        generator = torch.Generator().manual_seed(seed)
        self._keys = torch.randint(-(2**62), 2**62, (_ROUNDS,), generator=generator).tolist()

    def __getitem__(self, places: slice) -> Tensor:
        """The numbers that stand at a stretch of places ``[place]``."""
        numbers = self._permuted(torch.arange(*places.indices(self.size)))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._permuted(numbers[outside])
        return numbers

    def _permuted(self, numbers: Tensor) -> Tensor:
        mask = (1 << self._half) - 1
        left, right = numbers >> self._half, numbers & mask
        for key in self._keys:
            left, right = right, left ^ (mixed(right + key) & mask)
        return (left << self._half) | right
