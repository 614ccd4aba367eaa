"""Gradients through layers that do not stay in memory.

Autograd would keep every layer's weights for the backward pass, that is the whole model. Instead
of a weight it is given a note where it came from, and the backward pass, which goes down the
layers, has them read again. So gradients are bit for bit those of a model in memory. (Weights that
autograd kept all the same are right too: what is held is never written over, see ``slots``.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Weights(Protocol):
    """What has the weights, and knows them again."""

    def take(self, layer: int, name: str) -> Tensor:
        """A matrix of a layer."""

    def owner(self, storage: int) -> tuple[int, str] | None:
        """Layer and name of the matrix whose memory begins at ``storage``."""


class _Note(NamedTuple):
    """Which view of which matrix autograd wanted to keep."""

    weights: Weights
    owner: tuple[int, str]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Kept(NamedTuple):
    """Another tensor that autograd keeps, and how often it had been written to."""

    tensor: Tensor
    version: int


@contextmanager
def noting(weights: Weights) -> Iterator[None]:
    """Inside, autograd keeps notes instead of ``weights``."""
    # Transformations of functions know no such hooks; there weights are simply held.
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        yield
        return

    def note(tensor: Tensor) -> _Note | _Kept:
        owner = weights.owner(tensor.untyped_storage().data_ptr())
        if owner is not None:
            offset = int(tensor.storage_offset())
            return _Note(weights, owner, tensor.size(), tensor.stride(), offset)
        # Without its history: an operation that kept its own result would keep itself alive.
        return _Kept(tensor.detach(), 0 if tensor.is_inference() else tensor._version)

    with torch.autograd.graph.saved_tensors_hooks(note, _found_again):
        yield


def _found_again(kept: _Note | _Kept) -> Tensor:
    """The tensor, for the backward pass."""
    if isinstance(kept, _Note):
        return kept.weights.take(*kept.owner).as_strided(kept.size, kept.stride, kept.offset)
    tensor, version = kept
    # PyTorch leaves this to the hooks, where there are some.
    if not tensor.is_inference() and tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor {list(tensor.shape)} is at version {tensor._version}; expected "
            f"version {version} instead."
        )
    return tensor
