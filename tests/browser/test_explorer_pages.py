"""The explorer in a real browser: everything follows the selection, live and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from stage import Stage

import neox_lab as nl

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The king went to the city and the queen went to the"
SECOND = "The king went to the city and the queen went to a"
END = 14
LAST = ".lens tbody tr:last-child td"  # what the model says at last
FOCUSED = "document.querySelector('.neox-live').shadowRoot.activeElement"


@pytest.fixture(scope="module")
def model() -> Any:
    model = nl.load()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def staged(page: Any) -> Callable[..., Stage]:
    def put(widget: Any, dark: bool = False) -> Stage:
        stage = Stage(page, widget, dark)
        stage.done()
        page.locator(".explorer").wait_for()
        return stage

    return put


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that was asked everything, over three checkpoints."""
    widget = nl.explore(model, PROMPT, SECOND, revisions=["step0", "step18000"])
    widget.wait()
    for action in ({"action": "go_to", "name": "step0"}, {"action": "go_to", "name": "step18000"}):
        widget.set_state({"request": {"id": str(action), **action}})
        widget.wait()
    for what in ("ablation", "resid_pre", "attribution", "writing"):
        widget.set_state({"request": {"id": what, "action": "ask", "what": what}})
        widget.wait()
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    assert widget.result is not None
    widget.result.to_html(path)
    return path


def opened(page: Any, path: Path, fragment: str = "") -> None:
    page.context.set_offline(True)
    page.goto(path.as_uri() + fragment)
    page.locator(".explorer .card").first.wait_for()


def chosen(page: Any) -> tuple[str, str, str]:
    """What every panel says is selected: token, head, cell of the lens."""
    head = page.locator('[aria-label="The selected head"] .note').first.inner_text()
    token = page.locator('[aria-label="the prompt"] .token.chosen').inner_text()
    return token, head.split(":")[0], page.locator(".lens td.at").get_attribute("title")


def test_a_click_anywhere_selects_everywhere(page: Any, file: Path) -> None:
    opened(page, file)
    page.locator(".headgrid .cell").nth(5).click()  # layer 1, as the first is on top
    assert chosen(page)[1] == "L1H1"
    assert "L1H1" in page.locator('[aria-label="In words"]').inner_text()
    page.locator(".lens tbody tr").nth(3).locator("td").nth(4).click()
    token, head, cell = chosen(page)
    assert token.strip() == "·the" and head == "L2H1" and "after" in cell and "@4" in cell
    line = page.locator('[aria-label="Who wrote this logit"] .line', has_text="L0H").first
    name = line.locator(".name").inner_text()
    line.click()
    assert chosen(page)[1] == name
    page.locator('[aria-label="the prompt"] .token').nth(7).click()
    assert chosen(page)[0].strip() == "·and"
    page.locator('[aria-label="patching"] tbody tr').nth(1).locator("td").nth(2).click()
    assert chosen(page)[0].strip() == "·went" and chosen(page)[1].startswith("L1H")


def test_a_head_has_one_name_and_layers_run_one_way(page: Any, file: Path) -> None:
    opened(page, file)
    page.locator(".headgrid .cell").nth(6).click()
    said = page.evaluate(
        "[...document.querySelector('.neox-live').shadowRoot.querySelector('section')"
        ".querySelectorAll(':not(style):not(pre)')].flatMap(node => [node.title, node.ariaLabel,"
        " ...[...node.childNodes].filter(one => one.nodeType === 3).map(one => one.data)])"
    )
    said = [text for text in said if text]
    assert any("L1H2" in text for text in said) and any("layer 1, head 2" in text for text in said)
    words = [re.sub(r"layer \d, head \d", "", text) for text in said]
    assert [text for text in words if re.search(r"(?i)head \d", text)] == []
    for grid in (".headgrid", ".lens", '[aria-label="patching"]'):
        rows = page.locator(grid).inner_text().split()
        assert rows[:2] == ["layer", "↓"], "which way layers run"
    assert page.locator('[aria-label="patching"] tbody th').all_inner_texts() == list("0123")
    assert page.locator(".lens tbody th").all_inner_texts()[-1] == "final"
    assert page.locator(".headgrid .cell").first.get_attribute("title").startswith("L0H0")


def test_the_address_keeps_what_is_selected(page: Any, file: Path) -> None:
    opened(page, file)
    page.locator(".headgrid .cell").nth(6).click()
    page.get_by_role("button", name="lines").click()
    before, address = chosen(page), page.evaluate("location.hash")
    page.goto("about:blank")
    opened(page, file, address)
    assert chosen(page) == before
    assert page.locator("svg.lines").count() == 1


@pytest.mark.parametrize(
    "fragment",
    ["#%%%", "#null", "#" + quote(json.dumps({"position": 1e9, "layer": "<b>", "row": -1}))],
)
def test_an_address_may_say_anything(page: Any, file: Path, fragment: str) -> None:
    opened(page, file, fragment)
    assert "@14" in chosen(page)[2]


def test_the_keyboard_is_enough(page: Any, file: Path) -> None:
    opened(page, file)
    page.locator('[aria-label="the prompt"] .token').first.focus()
    page.keyboard.press("3")  # heads
    for _ in range(6):  # past the buttons and the measure, to the grid
        if page.evaluate(f"{FOCUSED}.className").startswith("cell"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert chosen(page)[1] == "L1H1"
    assert page.evaluate(f"{FOCUSED}.title").startswith("L1H1"), "focus stays"
    page.keyboard.press("5")  # the lens
    assert page.evaluate(f"{FOCUSED}.closest('section.card').ariaLabel") == "Logit lens"


def test_the_keyboard_reaches_every_panel_and_keeps_the_focus(page: Any, file: Path) -> None:
    opened(page, file)
    lines = page.get_by_role("button", name="lines")
    lines.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(f"{FOCUSED}.textContent") == "lines", "though it was drawn anew"
    assert page.locator("svg.lines").count() == 1
    page.get_by_role("button", name="map").focus()
    page.keyboard.press("Enter")
    page.locator('[aria-label="the prompt"] .token').nth(3).click()

    field = page.get_by_role("application")
    field.focus()
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    read = page.locator('[aria-label="The selected head"] .note').last.inner_text()
    assert "@4" in read.split("→")[0] and "@1" in read.split("→")[1]
    page.keyboard.press("Enter")
    assert selected(page)["position"] == 4 and selected(page)["key"] == 1
    assert page.evaluate(f"{FOCUSED}.className") == "field"

    page.locator('[aria-label="patching"] td[tabindex="0"]').focus()
    for key in ("Home", "ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert selected(page)["layer"] == 1 and selected(page)["position"] == 1
    assert page.evaluate(f"{FOCUSED}.ariaCurrent") == "true"
    marked = page.locator('[aria-label="patching"] [aria-current="true"]')
    assert marked.count() == 1 and marked.get_attribute("aria-label").startswith("layer 1, ")

    page.locator('[aria-label="Which tokens matter"] .token').nth(2).focus()
    page.keyboard.press("Enter")
    assert selected(page)["key"] == 2
    assert page.evaluate(f"{FOCUSED}.className") == "token"


def selected(page: Any) -> dict[str, Any]:
    """The state that the page's address keeps."""
    found: dict[str, Any] = json.loads(unquote(page.evaluate("location.hash.slice(1)")))
    return found


def test_compare_and_walk_over_training(page: Any, file: Path) -> None:
    opened(page, file)
    plain = page.locator(LAST).nth(END).inner_text()
    page.get_by_role("button", name="difference").click()
    assert page.locator(LAST).nth(END).inner_text().endswith("%")
    assert page.locator(LAST).nth(0).inner_text() == "0 %", "the same until the last token"
    page.get_by_role("button", name="first", exact=True).click()
    assert page.locator(LAST).nth(END).inner_text() == plain
    page.get_by_role("slider", name="revision").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "document.querySelector('.neox-live').shadowRoot.querySelector('.revision output')"
        ".textContent === 'step0'"
    )
    page.wait_for_timeout(200)
    assert page.locator(LAST).nth(END).inner_text() != plain
    assert page.get_by_role("button", name="difference").count() == 0, "answers are of one model"


def test_a_page_saves_its_numbers(page: Any, file: Path) -> None:
    opened(page, file)
    for name in ("Logit lens", "Heads", "Who wrote this logit", "What it writes on"):
        with page.expect_download() as waiting:
            page.locator(f'[aria-label="{name}"]').get_by_title("Save as CSV").click()
        text = Path(waiting.value.path()).read_text(encoding="utf-8")
        assert text.count("\n") > 3 and "undefined" not in text and "NaN" not in text


@pytest.mark.parametrize("width", [480, 800, 1200, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(page: Any, file: Path, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    opened(page, file)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        "[...document.querySelector('.neox-live').shadowRoot.querySelectorAll('.card')]"
        ".filter(card => card.scrollWidth > card.clientWidth + 1).map(card => card.ariaLabel)"
    )
    assert cut == []


@pytest.mark.parametrize("width", [480, 900])
def test_the_selected_cell_is_in_sight(page: Any, file: Path, width: int) -> None:
    """Of each table that scrolls, at first, after a click elsewhere, and in a window made small."""
    page.set_viewport_size({"width": 1600, "height": 900})
    opened(page, file)
    hidden = (
        "[...document.querySelector('.neox-live').shadowRoot.querySelectorAll('.scroll')]"
        ".filter(one => { const cell = one.querySelector('td.at'); if (!cell) return false;"
        " const [in_, box] = [cell.getBoundingClientRect(), one.getBoundingClientRect()];"
        " const name = one.querySelector('tbody th').getBoundingClientRect();"
        " return in_.left < name.right - 1 || in_.right > box.right + 1; }).length"
    )
    for size in (1600, width):
        page.set_viewport_size({"width": size, "height": 900})
        for place in (0, END, 3):
            page.locator('[aria-label="the prompt"] .token').nth(place).click()
            page.wait_for_timeout(100)
            assert page.evaluate(hidden) == 0, (size, place)
    page.locator('[aria-label="the prompt"] .token').nth(END).click()
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_timeout(100)
    assert page.evaluate(hidden) == 0


def test_live_questions_reach_their_panels(model: Any, staged: Any, page: Any) -> None:
    widget = nl.explore(model, PROMPT, SECOND)
    stage = staged(widget)
    page.locator(".headgrid .cell").nth(5).click()
    stage.until(lambda: widget.state.get("layer") == 1)
    page.get_by_role("button", name="switch this head off").click()
    stage.until(lambda: widget.switched and widget.phase == "done")
    assert "L1H1 gives its mean" in page.locator('[aria-label="What comes next"]').inner_text()
    page.get_by_role("button", name="switch off each").click()
    stage.until(lambda: widget.effects and widget.phase == "done")
    measure = page.get_by_label("measure of heads")
    assert measure.input_value() == "switched off, by head"
    page.get_by_role("button", name="patch the stream").click()
    stage.until(lambda: widget.patching and widget.phase == "done")
    assert page.locator('[aria-label="patching"] td').count() == 4 * 15
    page.locator('[aria-label="the prompt"] .token').nth(3).click()
    stage.until(lambda: widget.state.get("position") == 3)
    assert page.locator("pre").text_content() == widget.result.python
    page.get_by_role("button", name="write on").click()
    stage.until(lambda: widget.writing and widget.phase == "done")
    written = page.locator('[aria-label="What it writes on"]')
    written.locator(".token").nth(2).click()
    written.locator(".choose:not(:disabled)").first.click()
    stage.until(lambda: len(widget.writing["branches"]) == 2 and widget.phase == "done")
    assert written.get_by_role("group", name="branches").get_by_role("button").count() == 2
    with page.expect_download() as waiting:
        page.locator('[aria-label="Logit lens"]').get_by_title("Save as PNG").click()
        stage.sync()
        page.wait_for_timeout(300)
        stage.sync()
    assert Path(waiting.value.path()).read_bytes().startswith(b"\x89PNG")


def test_what_is_asked_first_is_about_what_is_shown_first(
    model: Any, staged: Any, page: Any
) -> None:
    widget = nl.explore(model, PROMPT)
    stage = staged(widget)
    page.get_by_role("button", name="switch this head off").click()  # nothing was selected yet
    stage.until(lambda: widget.switched and widget.phase == "done")
    assert widget.switched["name"].startswith(f"{chosen(page)[1]} ")


def test_another_prompt_another_run(model: Any, staged: Any, page: Any) -> None:
    widget = nl.explore(model, PROMPT, SECOND)
    stage = staged(widget)
    page.get_by_role("textbox", name="Second prompt").fill("The king")
    page.keyboard.press("Enter")
    stage.until(lambda: widget.compared.get("prompt") == "The king" and widget.phase == "done")
    page.wait_for_timeout(100)
    button = page.get_by_role("button", name="difference")
    assert button.is_disabled() and "15 and 2 tokens" in button.get_attribute("title")
    page.get_by_role("textbox", name="Prompt", exact=True).fill('</script><b>x</b> "quoted"')
    page.keyboard.press("Enter")
    stage.until(lambda: widget.prompt.startswith("</script>") and widget.phase == "done")
    page.wait_for_timeout(200)
    assert page.locator('[aria-label="the prompt"] .token').count() == len(
        model.to_str_tokens('</script><b>x</b> "quoted"')
    )
    assert page.evaluate("window.listening()") > 0
    page.evaluate("window.leave()")
    assert page.evaluate("window.listening()") == 0


def test_a_slider_runs_the_checkpoint(model: Any, staged: Any, page: Any) -> None:
    widget = nl.explore(model, PROMPT, revisions=["step0", "step18000"])
    stage = staged(widget)
    page.get_by_role("slider", name="revision").focus()
    page.keyboard.press("ArrowLeft")
    stage.until(lambda: widget.revision == "step0" and widget.phase == "done")
    expected = nl.load(revision="step0").to_str_tokens(PROMPT)
    assert page.locator('[aria-label="the prompt"] .token').count() == len(expected)
    early = widget.result.reading.lens.candidates[-1][END][0]
    page.wait_for_timeout(200)
    assert page.locator("pre").text_content() == widget.result.python
    assert 'nl.load(revision="step0")' in widget.result.python
    assert page.locator(LAST).nth(END).inner_text() == nl.views.label(early, 24)
