"""Objects that are taken for transformers' own, and stay what they are."""

from __future__ import annotations

import abc
import copy
import dataclasses
import functools
import pickle
import sys
import threading
import types
from collections import OrderedDict
from typing import Any, ClassVar

import pytest

from neox_lab import kinship
from neox_lab.kinship import Kin

MODULE = "library_of_kin"


class Theirs:
    """A library's class, which wants to know of every class that derives from it."""

    heard: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        Theirs.heard.append(cls)

    def hello(self) -> str:
        return "theirs"


class Own(Kin):
    """Our class."""

    kin_module, kin_name = MODULE, "Theirs"
    heard: ClassVar[list[type]] = []
    number = 1

    def __init__(self, value: object = None) -> None:
        self.value = value

    def __init_subclass__(cls) -> None:
        Own.heard.append(cls)


class Mixed:
    """Put in front of others."""


class WithState(Own):
    """Says itself what is kept of it."""

    def __getstate__(self) -> dict[str, Any]:
        return {"value": "kept"}


class Needing(Own):
    """Cannot be made without an argument."""

    def __new__(cls, value: object) -> Needing:
        made = super().__new__(cls)
        made.made_with = value  # type: ignore[attr-defined]
        return made

    def __getnewargs__(self) -> tuple[object]:
        return (self.value,)


class Reducing(Own):
    """Pickled as a call."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), ("called",)


@dataclasses.dataclass
class Record(Kin, OrderedDict[str, Any]):
    """A dictionary with fields."""

    kin_module: ClassVar[str] = MODULE
    value: int = 0

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.value,)


class TheirRecord(OrderedDict[str, Any]):
    pass


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType(MODULE)
    module.Theirs, module.Record = Theirs, TheirRecord  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(kinship, "_BOTH", {})
    monkeypatch.setattr(Theirs, "heard", [])
    monkeypatch.setattr(Own, "heard", [])
    return module


def test_without_the_library_it_is_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Own()
    assert isinstance(own, Theirs)
    monkeypatch.delitem(sys.modules, MODULE)
    assert own.__class__ is Own and not isinstance(own, Theirs)
    monkeypatch.setitem(sys.modules, MODULE, types.ModuleType(MODULE))  # still being imported
    assert own.__class__ is Own and not isinstance(own, Theirs)


def test_it_is_both_and_runs_nothing_of_theirs() -> None:
    own = Own()
    assert isinstance(own, Theirs) and isinstance(own, Own) and type(own) is Own
    assert not hasattr(own, "hello")
    assert own.__class__ is Own().__class__
    both = own.__class__
    assert (both.__name__, both.__qualname__, both.__module__, both.__doc__) == (
        Own.__name__,
        Own.__qualname__,
        Own.__module__,
        Own.__doc__,
    )
    assert repr(both) == repr(Own)
    assert Theirs.heard == Own.heard == []


def test_what_is_done_with_the_answer_is_done_with_the_class() -> None:
    own = Own(1)
    assert type(own.__class__(2)) is Own and own.__class__(2).value == 2
    own.__class__.number = 5
    assert Own.number == 5
    own.__class__.extra = 7  # type: ignore[attr-defined]
    del own.__class__.extra  # type: ignore[attr-defined]
    assert not hasattr(Own, "extra")
    Own.number = 1

    class Derived(own.__class__):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__(3)

    made = type("Made", (Mixed, own.__class__), {})
    assert Derived.__mro__[:2] == (Derived, Own) and type(Derived) is type
    assert made.__mro__[:3] == (made, Mixed, Own) and Theirs not in made.__mro__
    assert Derived().value == 3 and isinstance(Derived(), Theirs)
    assert Own.heard == [Derived, made]


def test_the_class_can_be_exchanged() -> None:
    class Other(Own):
        pass

    own, other = Own(), Other()
    own.__class__ = other.__class__
    assert type(own) is Other
    own.__class__ = Own
    assert type(own) is Own
    object.__setattr__(own, "__class__", Other)  # as IPython's autoreload does
    assert type(own) is Other


def test_a_class_that_is_theirs_already() -> None:
    class Inherits(Own, Theirs):
        pass

    made = Inherits()
    assert made.__class__ is Inherits and made.hello() == "theirs"


def test_metaclasses_of_both_sides(library: types.ModuleType) -> None:
    class Abstract(Own, abc.ABC):
        pass

    class TheirKind(type):
        pass

    class TheirAbstract(metaclass=TheirKind):
        pass

    Abstract.register(int)
    assert isinstance(Abstract(), Theirs) and isinstance(1, Abstract)
    library.Theirs = TheirAbstract  # type: ignore[attr-defined]
    assert isinstance(Own(), TheirAbstract) and isinstance(Abstract(), TheirAbstract)
    assert isinstance(1, Abstract) and not isinstance("1", Abstract)
    assert type(Abstract().__class__()) is Abstract


def test_a_class_that_cannot_stand_beside_theirs_is_itself(library: types.ModuleType) -> None:
    library.Theirs = int  # type: ignore[attr-defined]

    class LaidError(Own, ValueError):
        pass

    made = LaidError()
    assert made.__class__ is LaidError
    assert isinstance(made, Own) and not isinstance(made, int)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("own", "value"),
    [(Own(4), 4), (WithState(4), "kept"), (Needing(4), 4), (Reducing(4), "called")],
    ids=lambda value: type(value).__name__,
)
def test_copies_are_of_the_type(own: Own, value: object, protocol: int) -> None:
    copies = (
        pickle.loads(pickle.dumps(own, protocol)),
        pickle._loads(pickle._dumps(own, protocol)),  # type: ignore[attr-defined]
        copy.copy(own),
        copy.deepcopy(own),
    )
    for again in copies:
        assert type(again) is type(own) and again.value == value
        if isinstance(own, Needing):
            assert again.made_with == value


def test_records() -> None:
    record = Record(3)
    assert isinstance(record, TheirRecord) and type(record) is Record
    assert repr(record) == "Record(value=3)"
    assert record == Record(3) and not record == Record(4)
    assert type(dataclasses.replace(record, value=4)) is Record
    assert dataclasses.is_dataclass(record) and dataclasses.asdict(record) == {"value": 3}
    for again in (pickle.loads(pickle.dumps(record)), copy.deepcopy(record), copy.copy(record)):
        assert type(again) is Record and again.value == 3


def test_functions_of_one_type_are_found() -> None:
    @functools.singledispatch
    def name(_: object) -> str:
        return "object"

    name.register(Own, lambda _: "own")
    name.register(Theirs, lambda _: "theirs")
    assert name(Own()) == "own"


def test_threads_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type] = []
    waiting = threading.Barrier(8)
    make = kinship._made

    def slowly(own: type, theirs: type) -> type:
        made = make(own, theirs)
        waiting.wait(10)
        return made

    monkeypatch.setattr(kinship, "_made", slowly)
    threads = [threading.Thread(target=lambda: seen.append(Own().__class__)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 8 and len(set(seen)) == 1
