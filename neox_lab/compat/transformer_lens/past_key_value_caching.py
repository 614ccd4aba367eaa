"""Keys and values of what has been read, handed from one call of the model to the next."""

from __future__ import annotations

from typing import Self

from neox_lab.compat.transformer_lens.config import HookedTransformerConfig
from neox_lab.model.key_value_cache import KeyValueCache


class HookedTransformerKeyValueCache:
    """What ``model(tokens, past_kv_cache=cache)`` reads, and extends unless it is frozen.

    Attributes:
        native: the keys and values of every layer.
        frozen: calls read it and leave it as it is.
    """

    def __init__(self, native: KeyValueCache) -> None:
        """Keys and values of earlier positions."""
        self.native, self.frozen = native, False

    @classmethod
    def init_cache(
        cls, cfg: HookedTransformerConfig, device: object = None, batch_size: int = 1
    ) -> Self:
        """An empty one for a model with this configuration.

        Args:
            cfg: ``model.cfg``.
            device: has no meaning: keys and values stay where they are made.
            batch_size: has no meaning: the first call decides.
        """
        return cls(KeyValueCache(cfg.n_layers))

    def freeze(self) -> None:
        """Let calls leave it as it is."""
        self.frozen = True

    def unfreeze(self) -> None:
        """Let calls extend it."""
        self.frozen = False

    def for_run(self) -> KeyValueCache:
        """What one run may extend."""
        return self.native.copy() if self.frozen else self.native
