"""Activations of a run, with TransformerLens's calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.hooks.cache import ActivationCache as NativeCache

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer
    from neox_lab.hooks.names import ShortForm


class ActivationCache(Mapping[str, Tensor]):
    """Activations by hook name."""

    def __init__(
        self, cache_dict: NativeCache, model: HookedTransformer, has_batch_dim: bool = True
    ) -> None:
        """Activations of a run of ``model``."""
        self.cache_dict, self.model, self.has_batch_dim = cache_dict, model, has_batch_dim

    def __getitem__(self, name: str | ShortForm) -> Tensor:
        """The tensor at a name, alias or short form."""
        tensor = self.cache_dict[name]
        return tensor if self.has_batch_dim else tensor[0]

    def __iter__(self) -> Iterator[str]:
        """Full names."""
        return iter(self.cache_dict)

    def __len__(self) -> int:
        """How many activations there are."""
        return len(self.cache_dict)

    def remove_batch_dim(self) -> ActivationCache:
        """Take the first axis, of one row, away."""
        self.has_batch_dim = False
        return self
