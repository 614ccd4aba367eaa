"""Being taken for a model of transformers by programs that use transformers.

Its Trainer writes ``config.json`` beside the weights only if ``isinstance(model,
transformers.PreTrainedModel)``. Our classes do not inherit from it, for transformers is no part
of this package. Python asks a second question, though: what the object says its ``__class__`` is
(as ``unittest.mock`` does for objects with a spec). Where transformers has been imported, by
whoever uses it, our models answer with a class that is both: named like their own, made only to
be asked about. ``type(model)`` is always the class itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class _Made(type):
    """Calling the class that is both makes a model of the class itself."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.__mro__[1](*args, **kwargs)


class _NothingToDeclare:
    """Keeps transformers from reading the annotations of our classes."""

    def __init_subclass__(cls) -> None:
        pass


_BOTH: dict[tuple[type, type], type] = {}


def _both(own: type, theirs: type) -> type:
    if (own, theirs) not in _BOTH:
        told = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        _BOTH[own, theirs] = _Made(own.__name__, (own, _NothingToDeclare, theirs), told)
    return _BOTH[own, theirs]


class Kin:
    """A model that is taken for one of transformers where transformers is."""

    @property
    def __class__(self) -> type:
        """The type, or, where transformers is, a class that is also its ``PreTrainedModel``."""
        library = sys.modules.get("transformers.modeling_utils")
        theirs = getattr(library, "PreTrainedModel", None)
        return type(self) if theirs is None else _both(type(self), theirs)

    @__class__.setter
    def __class__(self, changed: type) -> None:
        object.__dict__["__class__"].__set__(self, changed)

    @classmethod
    def is_custom_code(cls) -> bool:
        """True: transformers' translations of its own checkpoints do not concern this class.

        PEFT asks, through transformers, before it puts adapters in.
        """
        return True

    def __reduce_ex__(self, _protocol: object) -> tuple[Callable[..., object], tuple[type], Any]:
        """Pickled and copied by the type, which is the class that can be imported."""
        return object.__new__, (type(self),), vars(self)
