"""Every widget in JupyterLab: click, read back in the kernel, save, end the kernel, reopen.

One server, one notebook, one kernel for all of it: that is what takes the time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest

pytestmark = pytest.mark.slow

SETUP = """
import logging, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
import neox_lab as nl
torch.set_num_threads(1)
model = nl.load()
model.generation_config.eos_token_id = None  # texts do not end by themselves
texts = [f"{a} {b} home" for a in ("The king", "A dog") for b in "abcdefgh"]
found = nl.probing.probe(model, texts, ["king"] * 8 + ["dog"] * 8, sites="resid_post")
happy = nl.steering.direction(model, ["It is good"], ["It is bad"], site=("resid_post", 1))
"""
STORY = "Mary put the key in the drawer."
WIDGETS = {
    "generation": "nl.widgets.generation(model, 'The king went to the')",
    "attention": "nl.widgets.attention(model, 'The king went to the')",
    "logit_lens": "nl.widgets.logit_lens(model, 'The king went to the')",
    "patching": "nl.widgets.patching(model, 'The king went to the city', "
    "'The king went to a city', ' a', ' the')",
    "probing": "nl.widgets.probing(found, model)",
    "classification": "nl.widgets.classification()",  # the trained heads of the package
    "answering": "nl.widgets.answering()",
    "tagging": "nl.widgets.tagging()",
    "steering": "nl.widgets.steering(happy, 'The film was')",
    "explorer": "nl.explore(model, 'The king went to the', 'The king went to a')",
}
REACTS = {  # something to click in the static view that stays, and what then is so
    "generation": (".token:not(.given)", "aria-pressed"),
    "attention": (".head", "aria-pressed"),
    "logit_lens": ('[role="gridcell"]', "aria-selected"),
    "patching": ('[role="gridcell"]', "aria-selected"),
    "probing": (".plot", ""),
    "classification": ('[role="option"]', "aria-selected"),
    "answering": (".flow .piece", "aria-pressed"),
    "tagging": (".flow .piece", "aria-pressed"),
    "steering": (".flow .piece", "aria-pressed"),
    "explorer": (".headgrid .cell", ""),
}
SAYS = {"explorer": "layer 0, head 0"}  # in its line of words after that; others that it is locked


@pytest.fixture(scope="module")
def saved(lab: Any) -> Path:
    """The notebook after all widgets were used, pinned once and saved, and the kernel ended."""
    cells = [SETUP, *(f"{name} = {made}\n{name}" for name, made in WIDGETS.items())]
    path = lab.write("widgets.ipynb", cells)
    notebook = lab.open("widgets.ipynb")
    notebook.run_all()
    for name in WIDGETS:
        notebook.until(f"{name}.phase in ('done', 'idle')")
    try:
        use(notebook)
    except Exception as error:
        error.add_note(f"The page then: {notebook.picture('failed.png')}")
        raise
    for name in WIDGETS:
        notebook.until(f"{name}._kept._current[0] is {name}._shown")
    notebook.save()
    notebook.close()
    lab.end_kernels()
    return path


def use(notebook: Any) -> None:
    """A click in each widget, and what the kernel then knows."""
    cell = {name: notebook.widget(at) for at, name in enumerate(WIDGETS, 1)}

    def press(name: str, label: str) -> None:
        cell[name].get_by_role("button", name=label, exact=True).click()

    cell["generation"].get_by_label("New tokens").fill("5")
    press("generation", "Write")
    notebook.until("generation.phase == 'done'")
    assert notebook.ask("len(generation.result.continuation)") == 5
    cell["generation"].locator(".token:not(.given)").nth(2).click()
    cell["generation"].locator(".choose").nth(1).click()
    notebook.until("len(generation.branches) == 2 and generation.phase == 'done'")
    assert notebook.ask("generation.branches[1].start") == 2
    press("generation", "Pin")
    notebook.until("generation.message == 'Pinned below.'")
    cell["generation"].get_by_label("New tokens").fill("2000")
    press("generation", "Write")
    notebook.until("generation.progress[0] > 0")
    press("generation", "Stop")
    notebook.until("generation.phase == 'stopped'")
    assert 0 < notebook.ask("len(generation.result.continuation)") < 2000

    cell["attention"].locator(".head").nth(2).click()
    notebook.until("attention.selected")
    assert notebook.ask("attention.selected") == {"layer": 0, "head": 2, "token": None}

    cell["logit_lens"].get_by_label("Read off").select_option("mlp_out")
    notebook.until("logit_lens.phase == 'done' and logit_lens.result.site == 'mlp_out'")

    cell["patching"].locator('[role="gridcell"]').nth(3).click()
    notebook.until("patching.cell and patching.phase == 'done'")
    assert notebook.ask("patching.cell") == {"layer": 0, "pos": 3}

    cell["probing"].get_by_label("Ask the probes about a text").fill("A dog")
    press("probing", "Ask")
    notebook.until("len(probing.panels) == 3 and probing.phase == 'done'")

    for name, verb, fields in (
        ("classification", "Classify", {"text": "The play was dull."}),
        ("answering", "Answer", {"question": "Where is the key?", "passage": STORY}),
        ("tagging", "Tag", {"text": STORY}),
    ):
        for trait, text in fields.items():
            cell[name].get_by_label(trait.capitalize(), exact=True).fill(text)
        press(name, verb)
        for trait, text in fields.items():
            notebook.until(f"{name}.{trait} == {text!r} and {name}.phase == 'done'")
    assert notebook.ask("answering.result.frame['answer'][0]") in STORY
    marked = notebook.ask("[piece.text for piece in tagging.result.view().pieces if piece.kind]")
    assert marked and all(text in STORY for text in marked)

    cell["steering"].get_by_label("Positions").select_option("generated")
    notebook.until("steering.phase == 'done' and 'generated' in steering.result.title")

    explorer = cell["explorer"]
    explorer.locator(".headgrid .cell").nth(5).click()
    notebook.until("explorer.state.get('layer') == 1 and explorer.state.get('head') == 1")
    explorer.get_by_role("button", name="switch this head off").click()
    notebook.until("explorer.switched and explorer.phase == 'done'")
    explorer.get_by_role("button", name="patch the stream").click()
    notebook.until("explorer.patching and explorer.phase == 'done'")

    # What a widget shows stands once on the page: what is kept of it is hidden while it lives.
    assert notebook.page.locator(".neox-current").count() == len(WIDGETS)
    assert not any(kept.is_visible() for kept in notebook.page.locator(".neox-current").all())
    assert notebook.page.locator(".neox-pinned").first.is_visible()


def test_everything_still_reacts_when_reopened_without_a_kernel(lab: Any, saved: Path) -> None:
    notebook = lab.open(saved.name)
    page = notebook.page
    page.wait_for_selector(".neox-current .neox-live")
    for at, (name, (selector, state)) in enumerate(REACTS.items(), 1):
        cell = page.locator(".jp-CodeCell").nth(at)
        assert cell.locator(".neox-widget").count() == 0, f"{name} cannot live without a kernel"
        item = cell.locator(f".neox-current {selector}").first
        item.scroll_into_view_if_needed()
        assert item.is_visible(), name
        item.click()
        if state:
            assert item.get_attribute(state) == "true", name
        said = cell.locator(".neox-current .status").all_inner_texts()
        assert sum(SAYS.get(name, "Locked") in line for line in said) == 1, name
    assert page.locator(".neox-pinned .token").count() > 5
    page.wait_for_timeout(5500)
    assert not page.get_by_text("Error displaying widget").first.is_visible()
    assert page.locator(".neox-asleep").count() == 0
    notebook.close()


def test_a_copy_nobody_trusts_shows_pictures_and_tables(lab: Any, saved: Path) -> None:
    document = json.loads(saved.read_text())
    document["cells"][0]["source"] += "\n# a stranger changed this"
    for cell in document["cells"]:
        for output in cell["outputs"]:
            output["metadata"].pop("trusted", None)
            html = "".join(output.get("data", {}).get("text/html", []))
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = html + "<script>window.hacked = 1</script>"
    (lab.root / "stranger.ipynb").write_text(json.dumps(document))
    notebook = lab.open("stranger.ipynb")
    page = notebook.page
    page.wait_for_selector(".jp-OutputArea-output img")
    assert page.evaluate("window.hacked") is None
    for at, name in enumerate(WIDGETS, 1):
        cell = page.locator(".jp-CodeCell").nth(at)
        assert cell.locator("img").first.is_visible(), name
        assert cell.locator(".neox-live").count() == 0
        assert cell.locator("table").count(), name
        assert cell.get_by_text("Trust Notebook").first.is_visible(), name
    notebook.close()


def test_a_kernel_that_is_gone_is_told(lab: Any) -> None:
    made = "\n".join(["import neox_lab as nl", "model = nl.load()"])
    lab.write("gone.ipynb", [made, f"attention = {WIDGETS['attention']}\nattention"])
    notebook = lab.open("gone.ipynb")
    notebook.run_all()
    notebook.until("attention.phase == 'done'")
    widget = notebook.widget(1)
    widget.get_by_role("button", name="Pin").click()
    notebook.until("attention.pins == 1")
    notebook.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    notebook.page.wait_for_timeout(500)
    notebook.until("attention.phase == 'done' and attention.pins == 1")
    assert notebook.page.locator(".neox-pinned").first.is_visible(), "pins survive a rerun"
    notebook.widget(1).get_by_title("Remove pin 1").click()
    notebook.until("attention.pins == 0")
    notebook.page.wait_for_function("!document.querySelector('.neox-pinned')")
    lab.restart_kernels()
    notebook.page.wait_for_timeout(1000)
    words = notebook.widget(1).locator(".words")
    if "gone" not in words.inner_text():
        notebook.widget(1).get_by_role("button", name="Read").click(force=True)
    notebook.page.wait_for_function(
        "[...document.querySelectorAll('.neox-widget')].some((widget) =>"
        " /run the cell again/i.test(widget.shadowRoot.querySelector('.words').textContent))"
    )
    notebook.close()


def test_the_file_holds_no_widget_state_and_stays_small(saved: Path) -> None:
    notebook = nbformat.read(saved, as_version=4)
    assert "widgets" not in notebook.metadata
    assert saved.stat().st_size < 2_500_000
    for cell in notebook.cells:
        assert not any(output.output_type == "error" for output in cell.outputs)
