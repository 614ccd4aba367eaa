"""The key-value cache: what attention remembers of positions it has already seen.

Keys and values of past positions never change in a causal model, so they are kept, and each new
token costs one position of work instead of all of them. Keys are stored *after* rotation.

Each layer writes into a buffer that is longer than what it holds and doubles when full, so
appending a token copies one token, not the whole history. Where gradients flow through the cache
(training with it on) the tensors are concatenated instead, since autograd forbids writing over
what the backward pass will read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, TypeGuard

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from neox_lab.errors import InputError
from neox_lab.kinship import Kin

_SPARE_POSITIONS = 64


class LayerKeysValues:
    """Keys and values of one layer."""

    def __init__(self) -> None:
        """Empty."""
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.length = 0
        # The first tensors are kept as they come, without a copy; others may hold them too, so
        # nothing is written into them. Buffers of our own may be, and may have room to spare.
        self._own = False

    @property
    def keys(self) -> Tensor | None:
        """Rotated keys ``[batch, head, pos, d_head]``, None while empty.

        They can be set, together with as many values.
        """
        return self._keys if self._keys is None or not self._own else self._filled(self._keys)

    @keys.setter
    def keys(self, keys: Tensor) -> None:
        self._values = self.values
        self._keys, self.length, self._own = keys, keys.shape[2], False

    @property
    def values(self) -> Tensor | None:
        """Values ``[batch, head, pos, d_head]``, None while empty.

        They can be set, together with as many keys.
        """
        return self._values if self._values is None or not self._own else self._filled(self._values)

    @values.setter
    def values(self, values: Tensor) -> None:
        self._keys = self.keys
        self._values, self.length, self._own = values, values.shape[2], False

    def _filled(self, buffer: Tensor) -> Tensor:
        return buffer[:, :, : self.length]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions; return all keys and all values ``[batch, head, pos, d_head]``.

        Raises:
            InputError: the batch differs from what is stored.
        """
        if self._keys is None or self._values is None:
            self._keys, self._values, self.length = keys, values, keys.shape[2]
            return keys, values
        if keys.shape[0] != self._keys.shape[0]:
            raise InputError(
                f"past_key_values holds a batch of {self._keys.shape[0]}, the new tokens are a "
                f"batch of {keys.shape[0]}. Use batch_repeat_interleave or batch_select_indices."
            )
        total = self.length + keys.shape[2]
        if _must_concatenate(self._keys, keys, values):
            self._keys = torch.cat((self._filled(self._keys), keys), dim=2)
            self._values = torch.cat((self._filled(self._values), values), dim=2)
            self._own = False
        else:
            if not self._own or total > self._keys.shape[2]:
                self._grow(max(2 * self.length, total + _SPARE_POSITIONS))
            self._keys[:, :, self.length : total] = keys
            self._values[:, :, self.length : total] = values
        self.length = total
        return self._keys[:, :, :total], self._values[:, :, :total]

    def _grow(self, capacity: int) -> None:
        """Move into contiguous buffers with room for ``capacity`` positions."""
        assert self._keys is not None and self._values is not None
        if self._keys.shape[2] != self._values.shape[2]:
            raise InputError(
                f"past_key_values holds {self._keys.shape[2]} keys and {self._values.shape[2]} "
                "values: whoever sets the one must set as many of the other."
            )
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            batch, head, _, d_head = old.shape
            new = old.new_empty(batch, head, capacity, d_head)
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)
        self._own = True

    def crop(self, length: int) -> None:
        """Forget all positions from ``length`` on."""
        self.length = min(self.length, length)
        if not self._own and self._keys is not None and self._values is not None:
            self._keys, self._values = self._filled(self._keys), self._filled(self._values)

    def select(self, rows: Tensor) -> None:
        """Keep batch rows ``rows`` ``[new_batch]``, in that order; rows may repeat."""
        if self._keys is not None and self._values is not None:
            index = rows.to(self._keys.device)
            self._keys = self._filled(self._keys).index_select(0, index)
            self._values = self._filled(self._values).index_select(0, index)

    def copy(self) -> LayerKeysValues:
        """An independent copy: appending to one leaves the other as it is."""
        other = LayerKeysValues()
        if self._keys is not None and self._values is not None:
            other._keys = self._filled(self._keys).clone()
            other._values = self._filled(self._values).clone()
            other.length = self.length
        return other


def _must_concatenate(stored: Tensor, keys: Tensor, values: Tensor) -> bool:
    if torch.is_grad_enabled() and (
        stored.requires_grad or keys.requires_grad or values.requires_grad
    ):
        return True
    # PyTorch forbids writing into tensors made under inference_mode once outside it.
    return stored.is_inference() and not torch.is_inference_mode_enabled()


class KeyValueCache(Kin):
    """Keys and values of every layer; ``past_key_values`` or ``cache`` of the forward pass.

    The methods have the names of Hugging Face's ``DynamicCache``, and either library's models go
    on from the other's cache. ``cache.layers[i].keys`` and ``.values`` are
    ``[batch, head, pos, d_head]``; iterating yields such pairs layer by layer.

    Attributes:
        layers: what each layer remembers.
        is_compileable: False: it grows.
    """

    kin_module: ClassVar[str] = "transformers.cache_utils"
    kin_name: ClassVar[str | None] = "DynamicCache"
    is_compileable = False

    def __init__(self, layers: int | Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
        """An empty cache for a network of ``layers`` blocks; or one that holds what is given.

        Args:
            layers: how many; or keys and values of each, as iterating over a cache yields them.
        """
        if isinstance(layers, int):
            self.layers = [LayerKeysValues() for _ in range(layers)]
            return
        self.layers = []
        for keys, values in layers:
            layer = LayerKeysValues()
            if keys is not None and values is not None:
                layer.append(keys, values)
            self.layers.append(layer)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append new positions to a layer; return all its keys and values."""
        return self.layers[layer_idx].append(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many positions a layer holds."""
        return self.layers[layer_idx].length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys ``query_length`` new positions will see, and which is the first: 0."""
        return self.get_seq_length(layer_idx) + query_length, 0

    get_query_offset = get_seq_length

    def get_max_length(self, layer_idx: int = 0) -> int:
        """-1: a layer may grow without end."""
        return -1

    get_max_cache_shape = get_max_length

    @property
    def is_initialized(self) -> bool:
        """Whether it holds anything."""
        return any(layer.length > 0 for layer in self.layers)

    @property
    def is_sliding(self) -> list[bool]:
        """False for every layer: none forgets."""
        return [False] * len(self)

    is_linear = is_dummy = is_sliding

    def reset(self) -> None:
        """Forget everything."""
        self.layers = [LayerKeysValues() for _ in self.layers]

    def crop(self, length: int) -> None:
        """Forget the last ``-length`` positions; if positive, keep the first ``length`` instead."""
        for layer in self.layers:
            layer.crop(length if length > 0 else max(0, layer.length + length))

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep batch rows ``rows`` ``[new_batch]``, in that order; rows may repeat."""
        for layer in self.layers:
            layer.select(rows)

    reorder_cache = batch_select_indices

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each batch row ``repeats`` times, copies side by side."""
        for layer in self.layers:
            if layer.keys is not None:
                rows = torch.arange(layer.keys.shape[0], device=layer.keys.device)
                layer.select(rows.repeat_interleave(repeats))

    def copy(self) -> KeyValueCache:
        """An independent copy: appending to one leaves the other as it is."""
        other = KeyValueCache(0)
        other.layers = [layer.copy() for layer in self.layers]
        return other

    @staticmethod
    def copy_of(cache: KeyValueCache) -> KeyValueCache:
        """An independent copy of ``cache``, which may be another library's (``is_cache``)."""
        other = KeyValueCache(len(cache.layers))
        for own, layer in zip(other.layers, cache.layers, strict=True):
            if layer.keys is not None and layer.values is not None:
                own.append(layer.keys.clone(), layer.values.clone())
        return other

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values of ``layer``, each ``[batch, head, pos, d_head]``."""
        return self.layers[layer].keys, self.layers[layer].values

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Keys and values, layer by layer."""
        return (self[layer] for layer in range(len(self)))

    def __repr__(self) -> str:
        """Layers and positions."""
        return f"KeyValueCache({len(self)} layers, {self.get_seq_length()} positions)"


# For torch.export and whatever else takes results apart into tensors.
pytree.register_pytree_node(
    KeyValueCache,
    lambda cache: (list(cache), None),
    lambda pairs, _: KeyValueCache(pairs),
    serialized_type_name=f"{KeyValueCache.__module__}.{KeyValueCache.__qualname__}",
    flatten_with_keys_fn=lambda cache: (
        [(pytree.SequenceKey(layer), pair) for layer, pair in enumerate(cache)],
        None,
    ),
)


class _BorrowedLayer(LayerKeysValues):
    """One layer of a cache of another library."""

    def __init__(self, cache: KeyValueCache, layer: int) -> None:
        super().__init__()
        self._cache, self._layer = cache, layer

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._cache.update(keys, values, self._layer)


class BorrowedCache(KeyValueCache):
    """A cache of another library, as the layers of a network want to have it.

    Attributes:
        owner: the cache.
    """

    def __init__(self, owner: KeyValueCache, layers: int) -> None:
        """Read and extend ``owner``, for a network of ``layers`` blocks."""
        layers = len(owner.layers) or layers  # an empty one may make its layers when needed
        self.owner = owner
        self.layers = [_BorrowedLayer(owner, layer) for layer in range(layers)]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many positions a layer holds."""
        return self.owner.get_seq_length(layer_idx)


_NEEDED = ("update", "get_seq_length", "crop", "batch_select_indices", "batch_repeat_interleave")


def is_cache(value: object) -> TypeGuard[KeyValueCache]:
    """Whether ``value`` does what a ``KeyValueCache`` does, as transformers' ``DynamicCache``.

    Caches with a fixed room (``StaticCache``) do not: what they return is longer than the text.
    Nor do those that keep their tensors on another device, or rounded to a few bits.
    """
    layers = getattr(value, "layers", None)
    return (
        all(callable(getattr(value, name, None)) for name in _NEEDED)
        and isinstance(layers, list)
        and not any(hasattr(layer, "nbits") for layer in layers)
        and not getattr(value, "is_compileable", False)
        and not getattr(value, "offloading", False)
    )


def given_cache(arguments: Mapping[str, object]) -> object:
    """The cache among the arguments of a forward pass, by its new or its old name; or None."""
    cache = arguments.get("cache")
    return arguments.get("past_key_values") if cache is None else cache
