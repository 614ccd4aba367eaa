"""Being taken for objects of transformers by programs that use transformers.

Its Trainer writes ``config.json`` beside the weights only if ``isinstance(model,
transformers.PreTrainedModel)``; other programs ask whether a cache is a ``Cache`` and what an
output is. Our classes do not inherit from theirs, for transformers is no part of this package.
Python asks a second question, though: what the object says its ``__class__`` is (as
``unittest.mock`` does for objects with a spec). Where transformers has been imported, by whoever
uses it, our objects answer with a class that is both: named like their own, made only to be asked
about. ``type(model)`` is always the class itself.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar


class _Made(type):
    """Calling the class that is both makes an object of the class itself."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls.__mro__[2](*args, **kwargs)


class _NothingToDeclare:
    """Keeps both from reading the class that is both as one more of their subclasses."""

    def __init_subclass__(cls) -> None:
        pass


_BOTH: dict[tuple[type, type], type] = {}


def _both(own: type, theirs: type) -> type:
    if (own, theirs) not in _BOTH:
        told = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
        # Theirs may have a metaclass, as outputs do from 5.24 on.
        made = type("_Made", (_Made, type(theirs)), {})
        _BOTH[own, theirs] = made(own.__name__, (_NothingToDeclare, own, theirs), told)
    return _BOTH[own, theirs]


class Kin:
    """An object that is taken for one of transformers where transformers is.

    Attributes:
        kin_module: where transformers defines the class.
        kin_name: what it is called there; None for the name of our own.
    """

    kin_module: ClassVar[str]
    kin_name: ClassVar[str | None] = None

    @property
    def __class__(self) -> type:
        """The type, or, where transformers is, a class that is also one of transformers."""
        own = type(self)
        library = sys.modules.get(own.kin_module)
        theirs = getattr(library, own.kin_name or own.__name__, None)
        return own if theirs is None else _both(own, theirs)

    @__class__.setter
    def __class__(self, changed: type) -> None:
        object.__dict__["__class__"].__set__(self, changed)

    def __reduce_ex__(self, _protocol: object) -> tuple[Any, ...]:
        """Pickled and copied by the type, which is the class that can be imported."""
        return object.__new__, (type(self),), vars(self)
