"""Panels of the explorer that are opened, and its first steps, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from contrast import poorly_readable
from stage import Stage

import neox_lab as nl

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The best school of Sweden is in"
SECOND = "The best school of Russia is in"
ALL = {"features": "Features", "steering": "Steering", "circuit": "Circuit"}
OPEN = "#" + quote(json.dumps({"open": ["features", "tuned", "steering", "circuit", "training"]}))


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.load()


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that was asked some of them."""
    widget = nl.explore(model, PROMPT, SECOND)
    widget.wait()
    for what in ALL:
        widget.ask(what)
        widget.wait()
    path = tmp_path_factory.mktemp("opened") / "page.html"
    assert widget.result is not None
    widget.result.to_html(path)
    return path


def opened(page: Any, path: Path, fragment: str = "") -> None:
    page.context.set_offline(True)
    page.goto(path.as_uri() + fragment)
    page.locator(".explorer .card").first.wait_for()


def panel(page: Any, name: str) -> Any:
    return page.locator(f'section.card[aria-label="{name}"]')


def test_a_page_has_what_was_asked_and_says_what_was_not(page: Any, file: Path) -> None:
    opened(page, file)
    assert panel(page, "Features").count() == 0, "closed at first"
    for name in (*ALL.values(), "Tuned lens"):
        page.get_by_role("button", name=name, exact=True).click()
    assert panel(page, "Features").locator("tbody tr").count() == 16
    assert panel(page, "Circuit").locator(".part").count() > 3
    assert panel(page, "Steering").locator("svg.plot").count() == 1
    missing = panel(page, "Tuned lens").inner_text()
    assert 'explorer.ask("tuned")' in missing and "before this page was made" in missing
    assert page.get_by_role("button", name="measure").count() == 0, "nobody could answer"
    kept = page.evaluate("location.hash")
    page.goto("about:blank")
    opened(page, file, kept)
    assert panel(page, "Circuit").is_visible(), "the address keeps what is open"
    page.get_by_role("button", name="Circuit", exact=True).click()
    assert not panel(page, "Circuit").is_visible()


def test_what_is_opened_follows_and_leads_the_selection(page: Any, file: Path) -> None:
    opened(page, file, OPEN)
    rows = panel(page, "Features").locator("tbody")
    before = rows.inner_text()
    panel(page, "Features").locator(".tokens .token").nth(3).click()
    assert page.locator('[aria-label="the prompt"] .token.chosen').inner_text().strip() == "·of"
    assert rows.inner_text() != before
    second = rows.locator("button").nth(1)
    second.focus()
    page.keyboard.press("Enter")
    pressed = rows.locator('button[aria-pressed="true"]')
    assert pressed.inner_text() == rows.locator("button").nth(1).inner_text()
    assert f"Where {pressed.inner_text()} is" in panel(page, "Features").inner_text()
    head = panel(page, "Circuit").locator(".part", has_text="L1H").first
    name = head.locator("text").first.text_content()
    head.click()
    assert panel(page, "The selected head").inner_text().count(f"{name}:") == 1
    assert panel(page, "Circuit").locator(".part.here").get_attribute("aria-label") is not None


def test_it_is_computed_when_opened_and_again_when_asked(model: Any, page: Any) -> None:
    widget = nl.explore(model, PROMPT, SECOND)
    stage = Stage(page, widget)
    stage.done()
    page.locator(".explorer .card").first.wait_for()
    assert widget.features == {}
    page.get_by_role("button", name="Features", exact=True).click()
    stage.until(lambda: widget.features and widget.phase == "done")
    own = panel(page, "Features")
    assert widget.state["open"] == ["features"] and own.locator("tbody tr").count() == 16
    assert "each in a run of its own" in own.inner_text()
    assert own.get_by_role("button", name="measure").count() == 0, "it is of what is selected"
    page.locator(".headgrid .cell").nth(5).click()
    own.get_by_role("button", name="measure for layer 1").click()
    stage.until(lambda: widget.features["of"]["layer"] == 1 and widget.phase == "done")
    assert page.locator("pre").text_content() == widget.result.python
    page.get_by_role("textbox", name="Second prompt").fill("")
    page.keyboard.press("Enter")
    stage.until(lambda: widget.second == "" and widget.features == {} and widget.phase == "done")
    page.get_by_role("button", name="Circuit", exact=True).click()
    stage.until(lambda: widget.circuit and widget.phase == "done")
    assert "This needs a second prompt" in panel(page, "Circuit").inner_text()
    widget.close()


@pytest.mark.parametrize("width", [480, 700, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_opened_fits_and_can_be_read(
    page: Any, file: Path, width: int, scheme: str
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    opened(page, file, OPEN)
    page.locator(".steps").get_by_role("button", name="next").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        "[...document.querySelector('.neox-live').shadowRoot.querySelectorAll('.card')]"
        ".filter(card => card.scrollWidth > card.clientWidth + 1).map(card => card.ariaLabel)"
    )
    assert cut == []
    assert not poorly_readable(page, 50)


def test_five_steps_for_a_first_visit_and_never_again(page: Any, file: Path) -> None:
    opened(page, file)
    steps, told = page.locator(".steps"), page.locator(".told")
    assert steps.is_visible() and "1 of 5" in steps.inner_text()
    assert told.count() == 0, "pictures are as without"
    steps.get_by_role("button", name="next").focus()
    for number in range(2, 6):
        page.keyboard.press("Enter")
        assert f"{number} of 5" in steps.inner_text() and told.count() == 1
    page.keyboard.press("ArrowLeft")
    assert "4 of 5" in steps.inner_text()
    page.emulate_media(media="print")
    assert not steps.is_visible(), "never in a printed page"
    page.emulate_media(media="screen")
    steps.get_by_role("button", name="next").focus()
    page.keyboard.press("Escape")
    assert not steps.is_visible() and told.count() == 0
    page.reload()
    page.locator(".explorer .card").first.wait_for()
    assert not steps.is_visible(), "not shown again"
    page.get_by_role("button", name="first steps").click()
    assert steps.is_visible() and "1 of 5" in steps.inner_text()


def test_text_is_never_markup_in_what_is_opened(model: Any, page: Any) -> None:
    prompt, second = "</script><b>x</b> of Sweden is in", "</script><b>x</b> of Russia is in"
    given = {'"><img src=x>': nl.gym.dictionaries(model)["resid_post_3"]}
    widget = nl.explore(model, prompt, second, dictionaries=given)
    stage = Stage(page, widget)
    stage.done()
    for what, name in ALL.items():
        page.get_by_role("button", name=name, exact=True).click()
        stage.until(lambda what=what: getattr(widget, what) and widget.phase == "done")
    assert "missing" not in widget.features and "missing" not in widget.circuit
    assert panel(page, "Features").locator(".token", has_text="<").count() > 0
    assert page.locator(".panels b, .panels img, .panels script").count() == 0
    widget.close()


def test_a_click_on_a_checkpoint_goes_there(model: Any, page: Any) -> None:
    widget = nl.explore(model, PROMPT, revisions=["step0", "step1000", "step18000"])
    stage = Stage(page, widget)
    stage.done()
    page.get_by_role("button", name="Over training").click()
    stage.until(lambda: widget.training and widget.phase == "done")
    picture = panel(page, "Over training").locator("svg.plot")
    picture.focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    stage.until(lambda: widget.revision == "step0" and widget.phase == "done")
    assert page.locator(".revision output").inner_text() == "step0"
    assert picture.is_visible(), "the curve stays"
    widget.close()
