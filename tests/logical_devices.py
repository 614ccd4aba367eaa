"""Devices that are only marks on tensors: what mixes two is refused, as PyTorch would on GPUs.

    with LogicalDevices() as devices:
        devices.put(model.backbone.block(2), AWAY)     # its parameters are there now
        model(...)                                     # RuntimeError where devices are mixed

Numbers are computed on the processor, so they can be compared. Every function of PyTorch that is
called from Python is looked at: its tensors must be on one device, and so are its results; ``to``,
``cpu`` and ``device=`` move. Numbers without axes go anywhere, as on GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

HOME, AWAY = torch.device("cpu"), torch.device("cpu", 1)
_TELLS = Tensor.device.__get__  # type: ignore[attr-defined]
_LOOKS = {  # at a tensor, and not into it
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "is_cuda", "requires_grad", "grad_fn", "_version", "layout")
}


class LogicalDevices(TorchFunctionMode):
    """While entered, tensors have the device that they were put on."""

    def __init__(self) -> None:
        super().__init__()
        self._at = WeakIdKeyDictionary()
        self.moves = 0

    def put(self, module: nn.Module, device: torch.device) -> None:
        """Say that a module's weights are on a device."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._at[tensor] = device

    def of(self, tensor: Tensor) -> torch.device:
        found: torch.device = self._at.get(tensor, HOME)
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _TELLS:  # a wrapper made anew each time
            return self.of(args[0])
        if func in _LOOKS:
            return func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [each for each in leaves if isinstance(each, Tensor)]
        named = [each for each in leaves if isinstance(each, torch.device)]
        if func is Tensor.to:
            named += [self.of(args[1])] if len(args) > 1 and isinstance(args[1], Tensor) else []
            target = named[0] if named else self.of(args[0])
            return self._moved(func, args, kwargs, target)
        if func is torch.autograd.grad:  # goes back over all devices
            found = func(*args, **kwargs)
            inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
            inputs = [inputs] if isinstance(inputs, Tensor) else inputs
            for given, gradient in zip(inputs, found, strict=True):
                self._marked(gradient, self.of(given))
            return found
        if func is Tensor.__deepcopy__:  # what was copied before it lies in its second argument
            return self._marked(func(*args, **kwargs), self.of(args[0]))
        if func is Tensor.cpu:
            return self._moved(Tensor.clone, args, {}, HOME)
        places = {self.of(each) for each in tensors if each.dim()}
        if len(places) > 1 and func is not Tensor.copy_:
            raise RuntimeError(f"{func} mixes devices: {[(self.of(t), t.shape) for t in tensors]}")
        place = named[0] if named else next(iter(places), HOME)
        args, kwargs = tree_map(_real, (args, kwargs))
        return self._marked(func(*args, **kwargs), place)

    def _moved(self, func: Any, args: Any, kwargs: Any, target: torch.device) -> Any:
        moves = self.of(args[0]) != target
        self.moves += moves
        real_args, real_kwargs = tree_map(_real, (args, kwargs))
        found = func(*real_args, **real_kwargs)
        return self._marked(found.clone() if moves and found is args[0] else found, target)

    def _marked(self, found: Any, place: torch.device) -> Any:
        for each in tree_leaves(found):
            if isinstance(each, Tensor) and place != self.of(each):
                self._at[each] = place
        return found


def _real(value: Any) -> Any:
    return HOME if isinstance(value, torch.device) else value
