"""What a forward pass returns.

Each result is a dataclass whose fields can be read in the four ways users of Hugging Face's
library know: ``out.logits``, ``out["logits"]``, ``out[0]`` (counting only fields that are not
None), and as a plain tuple with ``out.to_tuple()``. ``past_key_values`` can be read as ``cache``
too, its name in transformers from 5.24 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from neox_lab.model.key_value_cache import KeyValueCache

_OTHER_NAMES = {"cache": "past_key_values"}


@dataclass
class ModelOutput:
    """Base of all outputs: attribute, key, index and tuple access over the fields that are set."""

    @property
    def cache(self) -> KeyValueCache | None:
        """``past_key_values``, by the name it has in transformers from 5.24 on."""
        kept: KeyValueCache | None = self.past_key_values  # type: ignore[attr-defined]
        return kept

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None, in order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """Values of the fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Pairs of name and value of the fields that are not None, in order."""
        return tuple((name, getattr(self, name)) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, as a tuple."""
        return self.values()

    def get(self, name: str, default: object = None) -> Any:
        """The field ``name``, or ``default`` if it is None or unknown."""
        return self[name] if name in self else default

    def __getitem__(self, key: str | int | slice) -> Any:
        """A field by name, or by position among the fields that are not None."""
        if not isinstance(key, str):
            return self.values()[key]
        key = _OTHER_NAMES.get(key, key)
        if key not in self.keys():
            raise KeyError(f"{key!r}; this {type(self).__name__} has {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        """Names, as iterating over a dictionary does."""
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        """True if the field ``name`` is set."""
        return isinstance(name, str) and _OTHER_NAMES.get(name, name) in self.keys()

    def __len__(self) -> int:
        """Number of fields that are set."""
        return len(self.keys())


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """What the headless model returns.

    Attributes:
        last_hidden_state: ``[batch, pos, d_model]`` after the final layer norm; with
            ``stop_at_layer`` the residual stream entering that layer instead.
        past_key_values: the key-value cache, if one was asked for.
        hidden_states: ``layers + 1`` tensors ``[batch, pos, d_model]``: the input of each block,
            and at the end ``last_hidden_state`` (after the final layer norm, as in Hugging Face's
            library, so the last block's own output is not among them).
        attentions: one tensor ``[batch, head, query_pos, key_pos]`` a layer, rows summing to 1.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """What the language model returns: ``logits`` ``[batch, pos, vocab]`` and a scalar ``loss``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """What the sequence classifier returns: ``logits`` ``[batch, label]`` and a scalar ``loss``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """What the tagger returns: ``logits`` ``[batch, pos, label]`` and a scalar ``loss``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """What the span finder returns: ``start_logits`` and ``end_logits`` ``[batch, pos]``."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
