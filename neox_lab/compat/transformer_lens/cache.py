"""Activations of a run, with TransformerLens's calls."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from neox_lab.compat.transformer_lens.names import get_act_name
from neox_lab.hooks.cache import ActivationCache as NativeCache
from neox_lab.hooks.names import ShortForm

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer

_BEHIND_SWITCHES = ("hook_result", "_input", "hook_attn_in")
"""What a run keeps there only if ``set_use_attn_result`` and the like were called."""
_log = logging.getLogger("neox_lab")


class ActivationCache(NativeCache):
    """Activations by hook name; all arithmetic is this package's own, see its base class.

    ``remove_batch_dim`` and ``to`` change this cache, as they do there.
    """

    def __init__(
        self, cache_dict: Mapping[str, Tensor], model: HookedTransformer, has_batch_dim: bool = True
    ) -> None:
        """Activations of a run of ``model``.

        Args:
            cache_dict: tensors by name, such as hooks collected; or a cache of this package.
            model: which ran.
            has_batch_dim: False if the tensors have no axis ``batch``.
        """
        if isinstance(cache_dict, NativeCache):
            self.__dict__ |= cache_dict.__dict__
        else:
            super().__init__(model.native.hook_points, model=model.native)
            self._tensors = cache_dict if isinstance(cache_dict, dict) else dict(cache_dict)
        self._hooked = model
        self.has_batch_dim = self.has_batch_dim and has_batch_dim

    @property
    def model(self) -> HookedTransformer:  # type: ignore[override]  # the same, with its names there
        """Which ran."""
        return self._hooked

    @property
    def cache_dict(self) -> dict[str, Tensor]:
        """Every tensor by full name; what is written here is in the cache."""
        names = [name for name in super().__iter__() if not name.endswith(_BEHIND_SWITCHES)]
        if any(name not in self._tensors for name in names):
            made = {name: self[name] for name in names}
            rest = {name: kept for name, kept in self._tensors.items() if name not in made}
            self._tensors = made | rest
        return self._tensors

    def __getitem__(self, name: str | ShortForm) -> Tensor:
        """The tensor at a name, a short form such as ``("scale", 4, "ln1")``, or ``"k6"``.

        Raises:
            HookNameError: no such hook point, or it was not kept in this run.
        """
        full = self._full(name)
        return self._tensors[full] if full in self._tensors else super().__getitem__(full)

    def __contains__(self, name: object) -> bool:
        """Whether the tensor can be had; short forms count."""
        full = self._full(name) if isinstance(name, str | tuple) else name
        return full in self._tensors or super().__contains__(full)

    def _full(self, name: str | ShortForm) -> str | ShortForm:
        """The full name of a short form, or ``name`` itself where it is none."""
        if isinstance(name, tuple) and len(name) > 1 and isinstance(name[1], int) and name[1] < 0:
            name = (name[0], name[1] + self._layers, *name[2:])
        full = get_act_name(*name) if isinstance(name, tuple) else get_act_name(name)
        return full if full in self._tensors or full in self.points else name

    def __iter__(self) -> Iterator[str]:
        """Full names."""
        return iter(self.cache_dict)

    def __len__(self) -> int:
        """How many activations there are."""
        return len(self.cache_dict)

    def to(self, device: torch.device | str) -> Self:
        """Move all tensors; returns this cache."""
        self._tensors = self.cache_dict
        self.__dict__ = super().to(device).__dict__
        return self

    def remove_batch_dim(self) -> Self:
        """Drop the axis ``batch``, which must have length 1; returns this cache.

        Raises:
            HookError: there are several rows.
        """
        whole = copy.copy(self)  # what is made on access is made of it
        self.__dict__ = super(ActivationCache, whole).remove_batch_dim().__dict__
        return self

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Turn gradients on or off, everywhere: ``torch.set_grad_enabled(mode)``."""
        _log.warning("Gradients are now %s everywhere.", "on" if mode else "off")
        torch.set_grad_enabled(mode)
