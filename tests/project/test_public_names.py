"""What a user can find with the tab key: rooms list what they have, results what they can do."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType

import pytest

import neox_lab as nl
from neox_lab.results import Result

ROOMS = [name for name in nl.__all__ if isinstance(getattr(nl, name), ModuleType)]
FILES = {"to_png", "to_svg", "to_pdf", "to_html", "to_csv"}


def result_classes() -> list[type[Result]]:
    """Every class of results in the package."""
    for module in pkgutil.walk_packages(nl.__path__, "neox_lab."):
        importlib.import_module(module.name)
    found, ahead = [], [Result]
    while ahead:
        below = [cls for cls in ahead.pop().__subclasses__() if cls.__module__.startswith("neox")]
        found += below
        ahead += below
    return found


@pytest.mark.parametrize("name", ["", *ROOMS])
def test_a_room_lists_what_it_has(name: str) -> None:
    room = getattr(nl, name) if name else nl
    errors = [each for each in dir(room) if each.endswith("Error")]  # all that nl.errors is for
    public = getattr(room, "__all__", errors)
    assert len(public) > (0 if name == "compat" else 2)
    assert len(set(public)) == len(public)
    assert set(public) <= set(dir(room))
    for each in public:
        assert getattr(room, each) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = room.no_such_name


def test_every_result_lists_its_files_without_being_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = [cls for cls in result_classes() if dataclasses.is_dataclass(cls)]  # not their bases
    assert {"PatchResult", "AttributionResult", "HeadsResult", "LensResult", "ProbeResult"} <= {
        cls.__name__ for cls in classes
    }

    def drawn(*_: object) -> None:
        raise AssertionError("dir() has drawn a picture")

    for cls in classes:
        assert "__getattr__" not in dir(cls)
        monkeypatch.setattr(cls, "view", drawn)
        instance = object.__new__(cls) if not cls.__abstractmethods__ else None
        listed = set(dir(cls if instance is None else instance))
        assert FILES | {"view"} <= listed
        fields = {field.name for field in dataclasses.fields(cls)}
        assert "frame" in listed | fields


def test_a_dataclass_keeps_the_text_of_results() -> None:
    @dataclasses.dataclass(frozen=True)
    class Answer(Result):
        number: int

        def view(self):  # type: ignore[no-untyped-def]
            return "the view's text"

    @dataclasses.dataclass(frozen=True)
    class OwnText(Answer):
        def __repr__(self) -> str:
            return f"the answer is {self.number}"

    assert repr(Answer(42)) == repr("the view's text")
    assert repr(OwnText(42)) == "the answer is 42"
