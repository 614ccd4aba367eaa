"""How activations are kept, how large they are, and where they go when memory is short.

Sizes are known before anything runs: they follow from the axis names in the table of hook points
(see ``table``). So a cache that would not fit is refused, or written to a file, before it kills
the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.errors import HookError
from neox_lab.model.hook_points import HookPoint
from neox_lab.selections import kept_axis, take

PosSlice = int | slice | Sequence[int] | Sequence[bool] | Tensor
"""Which positions to keep: one, a slice or the tuple of its ends, a list, or a mask; see
``selections``."""


@dataclass(frozen=True)
class Keeping:
    """How a tensor is kept.

    Attributes:
        device: move there; None leaves it where it is.
        dtype: convert floating-point tensors; None leaves them.
        pos_slice: positions to keep along ``pos`` (``query_pos`` for scores and patterns); the
            axis stays, also with one of them.
        everything: all hook points are kept, so a part of a larger tensor need not be copied:
            the other parts are kept too.
    """

    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    pos_slice: PosSlice | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        """Read the positions once; how many there are is known when tensors come.

        Raises:
            HookError: ``pos_slice`` is no selection.
        """
        if self.pos_slice is not None:
            chosen = kept_axis("pos_slice", self.pos_slice, HookError)
            object.__setattr__(self, "pos_slice", chosen)

    @property
    def as_it_is(self) -> bool:
        """True if tensors are kept without cutting, moving or converting."""
        return self.device is None and self.dtype is None and self.pos_slice is None

    def __call__(self, tensor: Tensor, point: HookPoint) -> Tensor:
        """The tensor to keep: detached, cut, moved, converted.

        A tensor that is a part of a larger one (queries are a third of one product) is copied,
        so that keeping it does not hold on to the rest.
        """
        kept = tensor.detach()
        axis = pos_axis(point)
        if self.pos_slice is not None and axis is not None:
            kept = take(kept, axis, self.pos_slice, "pos_slice", HookError)
        kept = kept.to(device=self.device, dtype=self.dtype)
        if self.as_it_is and 0 in kept.stride():
            return kept  # one tensor seen once per head; it takes no memory of its own
        if self.everything and self.pos_slice is None:
            return kept
        alone = kept.numel() * kept.element_size() == kept.untyped_storage().nbytes()
        # One position seen once per head may be as many bytes as all positions.
        return kept if alone and 0 not in kept.stride() else kept.clone()

    def shape(self, shape: tuple[int, ...], point: HookPoint) -> tuple[int, ...]:
        """Shape of what is kept of a tensor of ``shape``."""
        axis = pos_axis(point)
        if self.pos_slice is None or axis is None:
            return shape
        empty = torch.empty(shape, device="meta", dtype=torch.float32)
        return tuple(take(empty, axis, self.pos_slice, "pos_slice", HookError).shape)


def pos_axis(point: HookPoint) -> int | None:
    """Which axis of the tensor runs over the positions read by the network, if any."""
    names = [name for name in ("pos", "query_pos") if name in point.axes]
    return point.axes.index(names[0]) if names else None


def bytes_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Memory of a tensor."""
    return math.prod(shape) * dtype.itemsize
