"""Every widget in a real browser, its kernel side in this process: click, and read what comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import traitlets
from stage import Stage

import neox_lab as nl
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.worker import Job

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The king went to the"
CLEAN, CORRUPTED = "The king went to the city", "The king went to a city"
HOSTILE = '</script><img src=x onerror="window.hacked = 1"> &amp; <b>\u2028שלום 😀'


@pytest.fixture(scope="module")
def model() -> Any:
    model = nl.load()
    model.generation_config.eos_token_id = None  # texts do not end by themselves
    return model


@pytest.fixture
def staged(page: Any) -> Callable[..., Stage]:
    """Puts a widget on the page and waits until it has done its first work."""

    def put(widget: Any, dark: bool = False) -> Stage:
        stage = Stage(page, widget, dark)
        if widget.phase != "idle":
            stage.done()
        return stage

    return put


def test_write_branch_go_back_and_stop(model: Any, staged: Any, page: Any) -> None:
    stage = staged(nl.widgets.generation(model, PROMPT))
    widget = stage.widget
    page.get_by_label("New tokens").fill("6")
    page.get_by_label("Prompt").fill("The queen")
    page.keyboard.press("Enter")
    stage.until(lambda: widget.phase == "done")
    assert (widget.prompt, widget.length) == ("The queen", 6)
    added = page.locator(".token:not(.given)")
    stage.until(lambda: added.count() == 6)
    added.nth(2).click()
    page.locator(".choose").nth(1).click()
    stage.until(lambda: len(widget.branches) == 2 and widget.phase == "done")
    assert widget.branches[1].start == 2
    first, second = (page.locator(".choices button").nth(number) for number in range(2))
    stage.until(lambda: second.get_attribute("aria-pressed") == "true")
    first.click()
    stage.until(lambda: widget.shown == 0 and widget.phase == "done")
    text = "".join(written.piece for written in widget.branches[0].tokens)
    assert widget.result.continuation == [w.piece for w in widget.branches[0].tokens], text

    page.get_by_label("New tokens").fill("2000")
    page.get_by_label("Temperature").focus()
    page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Write").click()
    stage.until(lambda: widget.progress[0])
    page.get_by_role("button", name="Stop").click()
    stage.until(lambda: widget.phase == "stopped")
    assert widget.temperature == pytest.approx(0.05)
    assert 0 < len(widget.result.continuation) < 2000
    stage.until(lambda: page.locator(".words").inner_text() == "Stopped.")
    assert page.get_by_role("button", name="Stop").is_disabled()


def test_lock_a_head_and_read_another_text(model: Any, staged: Any, page: Any) -> None:
    stage = staged(nl.widgets.attention(model, PROMPT))
    page.locator(".head").nth(1).click()
    stage.until(lambda: stage.widget.selected)
    assert stage.widget.selected == {"layer": 0, "head": 1, "token": None}
    page.get_by_label("Text").fill(HOSTILE)
    page.get_by_role("button", name="Read").click()
    stage.until(lambda: stage.widget.phase == "done" and len(stage.widget.result.pieces) > 10)
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".token").count() == len(model.to_str_tokens(HOSTILE))


def test_choose_what_the_lens_reads(model: Any, staged: Any, page: Any) -> None:
    stage = staged(nl.widgets.logit_lens(model, PROMPT))
    page.get_by_label("Read off").select_option("mlp_out")
    stage.until(lambda: stage.widget.phase == "done" and stage.widget.result.site == "mlp_out")
    assert page.locator("h3", has_text="mlp_out").count() == 1
    page.locator("td").first.click()
    stage.done()


def test_click_a_cell_and_read_on(model: Any, staged: Any, page: Any) -> None:
    widget = nl.widgets.patching(model, CLEAN, CORRUPTED, " a", " the")
    stage = staged(widget)
    assert page.get_by_label("Correct token").input_value() == "·a"
    page.locator('[role="gridcell"]').nth(2).click()
    stage.until(lambda: widget.cell and widget.phase == "done")
    assert widget.cell == {"layer": 0, "pos": 2}
    titles = page.locator("h3").all_inner_texts()
    assert [title.split()[0] for title in titles[2:]] == ["Clean:", "Corrupted:", "Patched"]
    assert page.locator(".choose").count() == 0, "nothing to branch to here"
    page.get_by_label("Wrong token").fill("·of·the")
    page.keyboard.press("Enter")
    stage.until(lambda: widget.phase == "failed")
    assert "one" in page.locator(".words").inner_text()
    assert widget.wrong == " of the"


def test_lines_and_tabs_are_seen_and_kept(model: Any, staged: Any, page: Any) -> None:
    text = "The king\r\n\twent to\nthe"
    widget = nl.widgets.logit_lens(model, text)
    stage = staged(widget)
    field = page.get_by_label("Text")
    assert len(field.input_value().splitlines()) == 3
    high = field.evaluate(
        "node => node.clientHeight / parseFloat(getComputedStyle(node).lineHeight)"
    )
    assert 3 <= high < 4, "all its lines are in sight"
    field.focus()
    page.keyboard.press("Enter")
    stage.done()
    assert widget.text == text, "what nobody changed is what it was"
    page.keyboard.press("End")
    page.keyboard.press("Control+End")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("end")
    page.keyboard.press("Enter")
    stage.until(lambda: widget.text.endswith("the\nend") and widget.phase == "done")


def test_tokens_of_lines_and_tabs_are_seen(model: Any, staged: Any, page: Any) -> None:
    patching = staged(nl.widgets.patching(model, CLEAN, CORRUPTED, "\n", "\t")).widget
    assert page.get_by_label("Correct token").input_value() == "⏎"
    page.get_by_label("Wrong token").fill("⏎")
    page.get_by_label("Correct token").fill("⇥")
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    assert (patching.correct, patching.wrong) == ("\t", "\n")


def test_probes_of_a_site_and_of_a_text(model: Any, staged: Any, page: Any) -> None:
    texts = [f"{a} {b} home" for a in ("The king", "A dog") for b in "abcdefgh"]
    found = nl.probing.probe(model, texts, ["king"] * 8 + ["dog"] * 8, sites="resid_post")
    stage = staged(nl.widgets.probing(found, model))
    page.get_by_label("Probe at", exact=True).select_option("blocks.2.hook_resid_post")
    stage.until(lambda: "blocks.2" in str(stage.widget.panels[1]["data"]["title"]))
    page.get_by_role("textbox", name="Ask the probes").fill("A dog")
    page.keyboard.press("Enter")
    stage.until(lambda: len(stage.widget.panels) == 3 and stage.widget.phase == "done")
    assert page.locator("h3", has_text="What the probes say of").count() == 1


def test_a_slider_steers(model: Any, staged: Any, page: Any) -> None:
    happy = nl.steering.direction(model, ["It is good"], ["It is bad"], site=("resid_post", 1))
    stage = staged(nl.widgets.steering(happy, "The film was"))
    slider = page.get_by_role("slider", name="Scale")
    slider.fill("-3.5")
    slider.dispatch_event("change")
    stage.until(lambda: "scale -3.5" in stage.widget.result.title and stage.widget.phase == "done")
    titles = page.locator("h3").all_inner_texts()
    assert titles[-2:] == ["The model itself", "Steered: add, scale -3.5, all"]
    assert page.locator(".piece").count() > 20
    page.get_by_label("Positions", exact=True).select_option("generated")
    stage.until(lambda: "generated" in stage.widget.result.title)


@pytest.mark.filterwarnings("ignore")
def test_the_three_heads(staged: Any, page: Any) -> None:
    classifier = nl.load(head="sequence-classification", labels=["no", "yes"])
    stage = staged(nl.widgets.classification(classifier))
    page.get_by_role("button", name="Classify").click()
    stage.until(lambda: stage.widget.phase == "failed")
    assert "nothing to read" in page.locator(".words").inner_text()
    page.get_by_label("Text").fill(HOSTILE)
    page.keyboard.press("Control+Enter")
    stage.done()
    assert page.evaluate("window.hacked") is None
    assert page.locator('[role="option"]').count() == 2


@pytest.mark.filterwarnings("ignore")
def test_answers_and_tags(staged: Any, page: Any) -> None:
    reader = nl.load(head="question-answering")
    stage = staged(nl.widgets.answering(reader, "Who?", "The king went home."))
    page.get_by_role("textbox", name="Question").fill("Where?")
    page.keyboard.press("Enter")
    stage.until(lambda: stage.widget.question == "Where?" and stage.widget.phase == "done")
    assert page.locator("h3", has_text="Where?").count() == 1


def test_two_windows_dark_colours_and_leaving(model: Any, staged: Any, page: Any) -> None:
    stage = staged(nl.widgets.logit_lens(model, PROMPT), dark=True)
    colour = page.locator(".neox-widget section").first.evaluate(
        "node => getComputedStyle(node).backgroundColor"
    )
    assert colour == "rgb(22, 24, 28)"
    assert page.evaluate("window.listening()") > 0
    page.evaluate("window.leave()")
    assert page.evaluate("window.listening()") == 0
    assert page.locator(".neox-widget").count() == 0
    stage.widget.close()


def test_nothing_is_drawn_twice_for_nothing(model: Any, staged: Any, page: Any) -> None:
    torch.manual_seed(0)
    widget = nl.widgets.patching(model, CLEAN, CORRUPTED, " a", " the")
    stage = staged(widget)
    page.locator('[data-panel="map"] > div').evaluate("node => (node.mark = 1)")
    page.locator('[role="gridcell"]').nth(3).click()
    stage.until(lambda: widget.cell and widget.phase == "done")
    assert page.locator('[data-panel="map"] > div').evaluate("node => node.mark") == 1


class Counting(LiveWidget):
    """A widget that counts as far as a test lets it."""

    kinds = ("grid",)
    unit = traitlets.Unicode("patch").tag(sync=True)

    def __init__(self) -> None:
        self.further = [threading.Event() for _ in range(3)]
        super().__init__(heading="Counting")

    def _answer(self, job: Job, given: Any) -> None:
        for step, further in enumerate(self.further):
            self._publish(job, now=True, progress=[1_000 * step, 2_000])
            assert further.wait(120)


def test_progress_has_a_unit_and_says_how_long_it_takes(page: Any) -> None:
    stage = Stage(page, Counting())
    words = page.locator(".words")
    page.get_by_role("button", name="Run").click()
    stage.until(lambda: words.inner_text() == "0 of 2,000 patches")
    page.wait_for_timeout(1_200)
    stage.widget.further[0].set()
    stage.until(lambda: words.inner_text().startswith("1,000 of 2,000 patches · "))
    assert 1 <= int(words.inner_text().split(" · ")[1].removesuffix(" s left")) <= 120
    stage.widget.further[1].set()
    stage.until(lambda: words.inner_text() == "2,000 of 2,000 patches")
    stage.widget.further[2].set()
    stage.done()
    assert words.inner_text() == ""
    stage.widget.close()
