"""What a forward pass returns.

Each result is a dataclass and an ordered dictionary of the fields that are not None. So it can be
read in the four ways users of Hugging Face's library know: ``out.logits``, ``out["logits"]``,
``out[0]``, and as a plain tuple with ``out.to_tuple()``. Being a dictionary, and a tree that
PyTorch can take apart, it passes through everything that moves tensors about: data parallel
gathering, mixed precision, export. ``past_key_values`` can be read and written as ``cache`` too,
its name in transformers from 5.24 on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from torch import Tensor
from torch.utils import _pytree as pytree

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.kinship import Kin
from neox_lab.model.key_value_cache import KeyValueCache

_OTHER_NAMES = {"cache": "past_key_values"}


@dataclass
class ModelOutput(Kin, OrderedDict[str, Any]):
    """Base of all outputs: attribute, key, index and tuple access over the fields that are set.

    Writing by key or by attribute is the same; writing None takes a field out of the dictionary.
    A subclass can also be made as dictionaries are, from a mapping or pairs of names and values.
    """

    kin_module: ClassVar[str] = "transformers.modeling_outputs"

    if TYPE_CHECKING:

        @property
        def cache(self) -> KeyValueCache | None:
            """``past_key_values``, by the name it has in transformers from 5.24 on."""
    else:
        cache: InitVar[KeyValueCache | None] = field(default=None, kw_only=True)

    def __init_subclass__(cls) -> None:
        """Tell PyTorch how to take outputs of this class apart, and put them together again."""
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
            flatten_with_keys_fn=lambda output: (
                [(pytree.MappingKey(name), value) for name, value in output.items()],
                list(output),
            ),
        )

    def __post_init__(self, cache: KeyValueCache | None) -> None:  # type: ignore[override]
        """Where a mapping or pairs were given instead of fields, set these.

        Raises:
            TypeError: a cache for an output that has none.
        """
        if cache is not None:
            if "past_key_values" not in self.__dataclass_fields__:
                raise TypeError(f"{type(self).__name__} has no cache.")
            self["past_key_values"] = cache
        given = next(iter(self.__dict__.values()), None)
        if given is None or isinstance(given, Tensor):
            return
        pairs = _pairs(given) if len(self) == 1 else None
        if pairs is not None:
            setattr(self, next(iter(self.__dict__)), None)
            for name, value in pairs:
                self[name] = value

    def __setattr__(self, name: str, value: object) -> None:
        if name in _OTHER_NAMES:
            name = _OTHER_NAMES[name]
        self.__dict__[name] = value  # every forward pass comes here for every field
        if value is not None:
            if name in self.__dataclass_fields__:
                OrderedDict.__setitem__(self, name, value)
        elif OrderedDict.__contains__(self, name):
            super().__delitem__(name)

    def __setitem__(self, name: str, value: object) -> None:
        if name not in self.__dataclass_fields__ and name not in _OTHER_NAMES:
            super().__setitem__(name, value)
        setattr(self, name, value)

    def __getitem__(self, key: str | int | slice) -> Any:
        """A field by name, or by position among the fields that are not None.

        Raises:
            TypeError: positions along axes, which a field has and an output has not.
        """
        if not isinstance(key, str):
            try:
                return self.to_tuple()[key]
            except TypeError:
                raise TypeError(f"{self._is_no_tensor()}[{_as_written(key)}].") from None
        if key not in self:
            raise KeyError(f"{key!r}; this {type(self).__name__} has {', '.join(self)}")
        return super().__getitem__(_OTHER_NAMES.get(key, key))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Called where there is no such attribute.

            Raises:
                AttributeError: always; what tensors have is looked for in a field.
            """
            if hasattr(Tensor, name) and not name.startswith("_"):
                raise AttributeError(f"{self._is_no_tensor()}.{name}.")
            raise AttributeError(f"{type(self).__name__} has no field {name!r}.")

    def _is_no_tensor(self) -> str:
        fields = [name for name, value in self.items() if isinstance(value, Tensor) and value.dim()]
        return f"A {type(self).__name__} holds tensors and is none: write output.{fields[0]}"

    def __contains__(self, name: object) -> bool:
        """True if the field ``name`` is set."""
        return super().__contains__(_OTHER_NAMES.get(name, name) if isinstance(name, str) else name)

    def get(self, name: str, default: object = None) -> Any:
        """The field ``name``, or ``default`` if it is None or unknown."""
        return self[name] if name in self else default

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, as a tuple."""
        return tuple(self.values())

    def __reduce_ex__(self, _protocol: object) -> tuple[type[ModelOutput], tuple[dict[str, Any]]]:
        """Made anew from what is set."""
        return type(self), (dict(self),)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise InputError(
            f"A {type(self).__name__} keeps its fields. Set one to None, or take dict(output)."
        )

    __delitem__ = pop = popitem = setdefault = clear = _refuse


# The dataclass has taken the name for an argument of its constructor.
ModelOutput.cache = property(lambda output: output.past_key_values)  # type: ignore[assignment]


def _as_written(key: object) -> str:
    """What stood between the brackets."""
    if isinstance(key, tuple):
        return ", ".join(map(_as_written, key))
    if isinstance(key, slice):
        ends = ["" if end is None else str(end) for end in (key.start, key.stop)]
        return ":".join(ends if key.step is None else [*ends, str(key.step)])
    return "..." if key is Ellipsis else shown(key, 40)


def _pairs(given: object) -> list[tuple[str, object]] | None:
    """Names and values, if that is what ``given`` consists of."""
    if isinstance(given, Mapping):
        return list(given.items())
    if not isinstance(given, Iterable):
        return None
    items = list(given)
    named = all(
        isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], str)
        for item in items
    )
    return [(name, value) for name, value in items] if named else None


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
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """What the language model returns: ``logits`` ``[batch, pos, vocab]`` and a scalar ``loss``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """What the sequence classifier returns: ``logits`` ``[batch, label]`` and a scalar ``loss``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """What the tagger returns: ``logits`` ``[batch, pos, label]`` and a scalar ``loss``."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """What the span finder returns: ``start_logits`` and ``end_logits`` ``[batch, pos]``."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
