"""What holds of each of the eight widgets: errors, places, narrow windows, focus."""

from __future__ import annotations

from typing import Any

import pytest
from pages import places
from stage import Stage
from test_contrast import MAKERS

import neox_lab as nl

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = "This text has 5000 tokens; the model reads up to 2048. " * 4
INSIDE = "document.querySelector('.neox-widget').shadowRoot"
FOCUSED = f"""(() => {{ let node = {INSIDE}.activeElement;
  while (node && node.shadowRoot) node = node.shadowRoot.activeElement;
  return node ? node.className + '|' + node.textContent : ''; }})()"""


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


def boxes(page: Any) -> list[tuple[float, float]]:
    """Where the buttons of the form are."""
    places: list[tuple[float, float]] = page.evaluate(
        f"[...{INSIDE}.querySelectorAll('.buttons button')]"
        ".map(button => [button.getBoundingClientRect().x, button.getBoundingClientRect().y])"
    )
    return places


@pytest.mark.parametrize("name", MAKERS)
def test_errors_are_wide_what_was_before_is_dim_and_nothing_jumps(
    model: Any, page: Any, name: str
) -> None:
    widget = MAKERS[name](model)
    stage = Stage(page, widget)
    if widget.phase == "idle":
        page.locator("button.run").click()
    stage.done()
    panel = page.locator('.pictures > [data-panel]:not([data-panel="examples"])').first
    panel.wait_for()
    for width in (900, 420):
        page.set_viewport_size({"width": width, "height": 900})
        before = boxes(page)
        assert panel.evaluate("node => getComputedStyle(node).opacity") == "1"
        widget._set({"phase": "running", "message": "", "progress": [3, 10]})
        stage.sync()
        assert boxes(page) == before, "buttons stay where they are"
        widget._set({"phase": "failed", "message": LONG})
        stage.sync()
        assert boxes(page) == before
        words, form = places(page, page.locator(".words"), page.locator("form"))
        assert words["width"] > 0.95 * form["width"]
        assert panel.evaluate("node => getComputedStyle(node).opacity") == "0.45"
        said = page.locator(".pictures").evaluate(
            "node => getComputedStyle(node, '::before').content"
        )
        assert said == '"From before:"'
        for size in (420, 480, 600):
            page.set_viewport_size({"width": size, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= size
        widget._set({"phase": "done", "message": ""})
        stage.sync()
    widget.close()


def test_focus_stays_after_enter_on_an_alternative(model: Any, page: Any) -> None:
    widget = nl.widgets.generation(model, "The king went to the")
    stage = Stage(page, widget)
    page.locator("button.run").click()
    stage.until(lambda: widget.phase == "done")
    page.locator(".token:not(.given)").nth(1).focus()
    page.keyboard.press("Enter")
    page.locator(".choose").nth(1).focus()
    page.keyboard.press("Enter")
    stage.until(lambda: len(widget.branches) == 2 and widget.phase == "done")
    page.wait_for_timeout(100)
    assert page.evaluate(FOCUSED), "the focus never falls to the page"
    page.locator(".token:not(.given)").nth(1).click()
    page.locator(".choose").nth(0).click()  # back to what the first branch has there
    stage.until(lambda: widget.phase == "done" and widget.shown == 0)
    assert len(widget.branches) == 2, "no branch twice"


def test_what_is_new_comes_into_view(model: Any, page: Any) -> None:
    page.set_viewport_size({"width": 900, "height": 320})
    widget = nl.widgets.generation(model, "The king went to the")
    stage = Stage(page, widget)
    page.locator("button.run").click()
    stage.until(lambda: widget.phase == "done")
    page.wait_for_timeout(200)
    (box,) = places(page, page.locator(".pictures > div").last)
    assert box["y"] < 320, "its beginning can be seen without scrolling"
    widget.close()


def test_a_lens_opens_at_its_selected_cell(model: Any, page: Any) -> None:
    page.set_viewport_size({"width": 480, "height": 900})
    widget = nl.widgets.logit_lens(model, "The king went to the city and the queen to the town.")
    stage = Stage(page, widget)
    stage.done()
    page.locator("td.shown").wait_for()
    page.wait_for_timeout(100)
    cell, scroll = places(page, page.locator("td.shown"), page.locator(".scroll"))
    assert cell["x"] + cell["width"] <= scroll["x"] + scroll["width"] + 1
    row = page.locator("tr", has=page.locator("td.shown")).locator("th")
    assert row.inner_text() == "final", "what the model says at last"
    widget.close()
