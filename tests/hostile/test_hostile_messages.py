"""A widget survives whatever its front end sends: no exception, and the next run is a good one."""

from __future__ import annotations

from typing import Any

import pytest
from calls import MODEL, OTHER, TEXT, reading
from damage import VALUES
from hypothesis import given, settings
from hypothesis import strategies as st
from judge import SAME

import neox_lab as nl
from neox_lab.widgets import LiveWidget

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIONS = (
    *("run", "stop", "pin", "unpin", "select", "branch", "show", "close", "_answer", "__class__"),
    *("ask", "save", "go_to", "example"),
)
ARGUMENTS = (
    *("row", "column", "layer", "head", "token", "choice", "index", "self", "job", ""),
    *("what", "state", "panel", "form", "name", "number", "position", "rank"),
)
SMALL, LARGE = 60, 1500


def made(name: str) -> LiveWidget:
    heads = {
        "classification": "sequence-classification",
        "answering": "question-answering",
        "tagging": "token-classification",
    }
    if name in heads:
        model = reading(heads[name], max_position_embeddings=512)
        model.config.id2label = {0: "O", 1: "B-x", 2: "I-x", 3: "B-y"}
        texts = ("ab", "abcd") if name == "answering" else ("abcd",)
        return getattr(nl.widgets, name)(model, *texts)
    if name == "explorer":
        return nl.explore(MODEL, TEXT, OTHER)
    if name == "patching":
        return nl.widgets.patching(MODEL, TEXT, OTHER, "a", "b")
    return getattr(nl.widgets, name)(MODEL, TEXT)


def attack(name: str, count: int) -> None:
    widget = made(name)
    widget.wait(60)
    state = {key: getattr(widget, key) for key in (c["name"] for c in widget.controls)}
    values = st.sampled_from(VALUES)
    requests = st.fixed_dictionaries(
        {"action": st.one_of(st.sampled_from(ACTIONS), values)},
        optional={argument: values for argument in ARGUMENTS},
    )
    names = sorted(widget.keys)
    message = st.one_of(
        st.builds(lambda request: {"request": request}, requests),
        st.dictionaries(st.one_of(st.sampled_from(names), st.text(max_size=3)), values, max_size=3),
    )

    @settings(max_examples=count, database=None, derandomize=SAME)
    @given(message)
    def run(sent: dict[str, Any]) -> None:
        widget.set_state(sent)

    run()
    widget.stop()
    widget.set_state({**state, "request": {"id": "last", "action": "run"}})
    assert widget.wait(60) is not None
    assert widget.phase == "done", widget.message
    widget.close()


NAMES = (
    *("generation", "attention", "logit_lens", "patching", "classification", "answering"),
    *("tagging", "explorer"),
)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_messages(name: str) -> None:
    attack(name, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_hostile_messages(name: str) -> None:
    attack(name, LARGE)
