"""Blocks on other devices, used as if they were here.

Where the layers of a model are on several devices, questions stay on one of them. What they have a
block compute goes there and comes back, and what they look at of its weights is brought:

    block = Elsewhere(block, its device, home)
    block.attention.dense(z)      z moves there, is multiplied, and the product comes back
    block.mlp.dense_h_to_4h.weight     a copy at home, through which gradients flow

That makes room and not speed. The questions need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from neox_lab.model.masking import AttentionMask


class Elsewhere:
    """A module whose weights are on another device: what goes in moves there, and comes back.

    Its modules are of this kind too, its tensors are shown at home, and its methods take and give
    tensors at home.
    """

    def __init__(self, of: Any, device: torch.device, home: torch.device) -> None:
        """Nothing moves yet.

        Args:
            of: the module, or one of its methods.
            device: where its weights are.
            home: where tensors come from and go to.
        """
        self._of, self._device, self._home = of, device, home

    def __getattr__(self, name: str) -> Any:
        """What the module has under a name."""
        return self._seen(getattr(self._of, name))

    def __call__(self, *arguments: Any) -> Any:
        """Compute there."""
        return self._seen(self._of(*(_moved(each, self._device) for each in arguments)))

    def through(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function finds of the module itself."""
        return self._seen(function(self._of, *arguments))

    def __iter__(self) -> Iterator[Any]:
        """What it is made of, such as a weight and a bias."""
        return map(self._seen, self._of)

    def _seen(self, found: Any) -> Any:
        """What was found there, as it is seen at home: what may hold tensors is of this kind."""
        plain = found is None or isinstance(
            found, Tensor | AttentionMask | tuple | int | float | str
        )
        if plain and (not isinstance(found, tuple) or type(found) is tuple):
            return _moved(found, self._home)
        return Elsewhere(found, self._device, self._home)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor | AttentionMask):
        return value.to(device)
    if type(value) is tuple:
        return tuple(_moved(each, device) for each in value)
    return value
