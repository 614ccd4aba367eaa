"""Being taken for objects of transformers by programs that use transformers.

Its Trainer writes ``config.json`` beside the weights only if ``isinstance(model,
transformers.PreTrainedModel)``; other programs ask whether a cache is a ``Cache``, whether a
tokenizer is one of theirs and what an output is. Our classes do not inherit from theirs, for
transformers is no part of this package. Python asks a second question, though: what the object
says its ``__class__`` is (as ``unittest.mock`` does for objects with a spec). Where transformers
has been imported, by whoever uses it, our objects answer with a class that is both: named like
their own, made only to be asked about. ``type(model)`` is always the class itself, and no method
of theirs ever runs for ours.

What is done with the answer is done with the class itself: calling it makes one of ours, deriving
from it (as PyTorch's ``parametrize`` does) derives from ours, setting an attribute of it sets ours,
and assigning it to ``__class__`` makes an object ours. Only ``obj.__class__ is Own`` is false.
"""

from __future__ import annotations

import sys
import types
from typing import Any, ClassVar, SupportsIndex


class _NothingToDeclare:
    """Keeps classes from registering the one that is both, as some do with each that derives."""

    def __init_subclass__(cls) -> None:
        pass


class _Both(type):
    """The type of classes that are made only to be asked about; ``_own`` is the class itself."""

    _own: type | None = None

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **arguments: Any
    ) -> Any:
        """Who derives from the class that is both derives from the class itself."""
        if not any(isinstance(base, _Both) for base in bases):
            return super().__new__(cls, name, bases, namespace)
        own = tuple(map(_own, bases))
        return types.new_class(name, own, arguments, lambda body: body.update(namespace))

    def mro(cls) -> list[type]:
        return [cls, _NothingToDeclare, *super().mro()[1:]]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _own(cls)(*args, **kwargs)

    def __setattr__(cls, name: str, value: object) -> None:
        if cls._own is None:  # still being made
            super().__setattr__(name, value)
        else:
            setattr(cls._own, name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(_own(cls), name)


_BOTH: dict[tuple[type, type], type] = {}


def _own(kind: type) -> type:
    return kind._own or kind if isinstance(kind, _Both) else kind


def _both(own: type, theirs: type) -> type:
    """The class that is ``own`` and ``theirs``; ``own`` if that is so already, or none can be."""
    made = _BOTH.get((own, theirs))
    if made is None:
        made = own if issubclass(own, theirs) else _made(own, theirs)
        made = _BOTH.setdefault((own, theirs), made)  # another thread may have been faster
    return made


def _made(own: type, theirs: type) -> type:
    told = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    # Either may have a metaclass, as outputs of theirs do from 5.24 on.
    kinds = [kind for kind in {type(own): None, type(theirs): None} if kind is not type]
    try:
        kind = types.new_class("_Both", (_Both, *kinds))
        made: type = kind(own.__name__, (own, theirs), told)
    except TypeError:  # a class of somebody's own that cannot stand beside theirs
        return own
    type.__setattr__(made, "_own", own)
    return made


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
        object.__dict__["__class__"].__set__(self, _own(changed))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Pickled and copied by the type, which is the class that can be imported."""
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        # Pickle compares what this name is called with to ``__class__``.
        if isinstance(reduced, tuple) and getattr(reduced[0], "__name__", "") == "__newobj__":
            return (anew, *reduced[1:])
        return reduced


def anew(own: type, *args: object) -> Any:
    """An empty object of the class ``own``, as unpickling begins with."""
    return own.__new__(own, *args)
