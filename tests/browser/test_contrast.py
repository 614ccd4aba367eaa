"""Every text and every button of a widget can be read, in light and in dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from contrast import poorly_readable
from stage import Stage

import neox_lab as nl

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The king went to the"
MAKERS: dict[str, Callable[[Any], Any]] = {
    "generation": lambda model: nl.widgets.generation(model, PROMPT),
    "attention": lambda model: nl.widgets.attention(model, PROMPT),
    "logit_lens": lambda model: nl.widgets.logit_lens(model, PROMPT),
    "patching": lambda model: nl.widgets.patching(
        model, f"{PROMPT} city", "The king went to a city", " a", " the"
    ),
    "classification": lambda _: nl.widgets.classification(),
    "answering": lambda _: nl.widgets.answering(),
    "tagging": lambda _: nl.widgets.tagging(),
    "steering": lambda model: nl.widgets.steering(
        nl.steering.direction(model, ["It is good"], ["It is bad"], site=("resid_post", 1)), PROMPT
    ),
    "explore": lambda model: nl.explore(model, PROMPT),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


def look_around(page: Any) -> None:
    """Select a head, a cell, then a token with others behind it, which it cannot see."""
    for panel, place in (
        (".headgrid .cell", 5),
        (".lens tbody td", 2),
        ('[aria-label="the prompt"] .token', 1),
    ):
        page.locator(panel).nth(place).click()
        assert not poorly_readable(page, 5), panel
    assert page.locator(".token.unseen").count() > 0


@pytest.mark.parametrize("name", MAKERS)
def test_every_widget_can_be_read(model: Any, page: Any, name: str) -> None:
    widget = MAKERS[name](model)
    stage = Stage(page, widget)
    if widget.phase == "idle":
        page.locator("button.run").click()
    stage.done()
    for dark in (False, True):
        if dark:
            page.emulate_media(color_scheme="dark")
            page.evaluate("document.body.style.background = '#111'")
            page.locator("button.run").click()
            stage.until(lambda: widget.phase == "done" and widget._job.finished.is_set())
            page.evaluate("window.update({panels: []})")
            stage.sync()  # pictures take their colours from the page when they are drawn
            page.wait_for_timeout(100)
        assert not poorly_readable(page, 5), f"{name}, dark: {dark}"
        if name == "explore":
            look_around(page)
    widget.close()
