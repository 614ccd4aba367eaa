"""Pages of features in a notebook: their examples are seen, and links lead from one to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from contrast import poorly_readable

pytestmark = pytest.mark.slow

SETUP = """
import logging, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import torch
import neox_lab as nl
from IPython.display import IFrame
torch.set_num_threads(1)
model = nl.load()
texts = [f"The {noun} sat on the {place}." for noun in ("cat", "dog") for place in "abcdef"]
dictionary = next(iter(nl.gym.dictionaries(model).values()))
found = nl.features.top_examples(model, dictionary, texts, progress=False)
three = found.active.argsort(descending=True)[:3].tolist()
index = nl.features.pages(found, "pages", three, progress=False)
"""
CELLS = [
    SETUP,
    "found.view(three[0])",
    "nl.features.page(found, three[0])",
    "IFrame('pages/index.html', '100%', 600)",
]


@pytest.fixture(scope="module", params=["light", "dark"])
def notebook(request: Any, lab: Any) -> Iterator[Any]:
    """A notebook in a theme, run, in a browser that is set to light."""
    name = f"features_{request.param}.ipynb"
    lab.write(name, CELLS)
    notebook = lab.open(name, dark=request.param == "dark")
    notebook.run_all()
    notebook.until("index.exists()")
    notebook.page.locator(".jp-CodeCell iframe").nth(1).wait_for()
    yield notebook
    notebook.close()


def test_examples_are_seen_below_the_cell(notebook: Any) -> None:
    latent = notebook.ask("three[0]")
    live = notebook.page.locator(".jp-CodeCell").nth(1).locator(".neox-live")
    live.scroll_into_view_if_needed()
    live.get_by_text(f"feature {latent}").first.wait_for()
    highest = notebook.ask("(found.examples(three[0])['group'] == 'top').sum().item()")
    assert live.get_by_text("highest, document").count() == highest > 0


def test_a_page_stands_in_a_frame_of_its_own(notebook: Any) -> None:
    cell = notebook.page.locator(".jp-CodeCell").nth(2)
    cell.scroll_into_view_if_needed()
    frame = cell.frame_locator("iframe")
    latent = notebook.ask("three[0]")
    assert f"feature {latent}" in frame.locator("h1").inner_text()
    shown = notebook.ask("len(found.strips(three[0]))")
    assert 0 < frame.locator(".strip").count() <= shown
    token = frame.locator(".strip b.p").first
    token.hover()
    said = token.evaluate("e => getComputedStyle(e, '::after').content")
    assert said == f'"{token.get_attribute("data-v")}"'
    content = cell.locator("iframe").element_handle().content_frame()
    assert not poorly_readable(content, 20)
    assert cell.locator("style, h1, .strip").count() == 0  # nothing of it in the notebook itself
    assert frame.locator("body").evaluate("e => e.scrollWidth <= e.clientWidth")


def test_links_lead_from_the_index_to_pages_and_back(notebook: Any) -> None:
    cell = notebook.page.locator(".jp-CodeCell").nth(3)
    cell.scroll_into_view_if_needed()
    frame = cell.frame_locator("iframe")
    first, second, _ = notebook.ask("three")
    frame.locator("input[type=search]").fill(f"feature {first}")
    frame.get_by_role("link", name=f"feature {first}", exact=True).click()
    frame.locator("h1", has_text=f"feature {first}").wait_for()
    assert frame.locator(".strip").count() > 0
    names = notebook.ask("found.together(three[0], 5)['latent'].tolist()")
    near = notebook.ask("found.nearest(three[0])['latent'].tolist()")
    if second in names + near:
        frame.get_by_role("link", name=f"feature {second}", exact=True).first.click()
        frame.locator("h1", has_text=f"feature {second}").wait_for()
    frame.get_by_role("link", name="All pages").click()
    frame.locator("input[type=search]").wait_for()
    assert notebook.page.url.split("?")[0].endswith(".ipynb")  # the notebook itself stayed
