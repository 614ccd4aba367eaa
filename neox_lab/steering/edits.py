"""What steering does to a vector, and the hooks that do it.

With ``v`` the direction, ``u = v / |v|``, ``x`` an activation and ``s`` the scale:

    add               x + s v
    norm-preserving   (x + s v) |x| / |x + s v|
    ablate            x - s (x · u) u                   s = 1 leaves nothing along v
    clamp             x + (a + s |v| - x · u) u         a: where the negative examples are along u

Numbers are made in float32 at least and returned in the tensor's dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.model.hook_points import HookPoint, LocatedWatcher, Tap
from neox_lab.steering.places import Where

MODES = ("add", "ablate", "clamp", "norm-preserving")


class Edit(NamedTuple):
    """What is done to activations at one site.

    Attributes:
        vector: the direction ``[d]``, float32.
        mode: one of ``MODES``.
        scale: how much.
        origin: component of the negative examples along the direction; 0 where there are none.
    """

    vector: Tensor
    mode: str
    scale: float
    origin: float

    def __call__(self, x: Tensor) -> Tensor:
        """Edited activations, like ``x`` ``[..., d]``."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        vector = self.vector.to(wide)
        if self.mode == "add":
            return (wide + self.scale * vector).to(x.dtype)
        if self.mode == "norm-preserving":
            moved = wide + self.scale * vector
            length = moved.norm(dim=-1, keepdim=True)
            kept = wide.norm(dim=-1, keepdim=True) / length
            return torch.where(length > 0, moved * kept, wide).to(x.dtype)
        size = vector.norm()
        unit = vector / size
        along = (wide @ unit)[..., None]
        if self.mode == "ablate":
            return (wide - self.scale * along * unit).to(x.dtype)
        level = self.origin + self.scale * size
        return (wide + (level - along) * unit).to(x.dtype)


class Steering(LocatedWatcher):
    """One edit at one site, at some positions; at all, padding too, if ``where`` is None."""

    def __init__(self, point: HookPoint, edit: Edit, where: Where | None) -> None:
        """Place ``edit`` at ``point``."""
        super().__init__(point, lambda tensor, _point: tensor)  # is called through ``call``
        self.edit, self.where = edit, where

    def call(self, tensor: Tensor, _tap: Tap) -> Tensor:
        """The tensor ``[batch, pos, ...]`` with the chosen positions edited."""
        chosen = None if self.where is None else self.where.chosen(self, tensor.shape[1])
        self.positions = None  # of this run; the next one tells its own
        flat = tensor.flatten(2)
        edited = self.edit(flat)
        if chosen is not None:
            edited = torch.where(chosen[..., None].to(flat.device), edited, flat)
        return edited.view(tensor.shape)
