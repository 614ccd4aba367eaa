"""Pages of features as their reader meets them: opened offline in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from contrast import poorly_readable
from pages import watch

import neox_lab as nl

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> &amp; \u202e"
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [f"The {noun} sat on the {place}." for noun in ("cat", "dog") for place in "abcdef"]
    texts += [f"{HOSTILE}{at}" for at in range(12)]
    found = nl.features.top_examples(nl.load(), "blocks.2.mlp.hook_post", texts, progress=False)
    folder = tmp_path_factory.mktemp("pages")
    return nl.features.pages(found, folder, range(40), progress=False)


def opened(page: Any, path: Path) -> Any:
    page.set_default_timeout(120_000)  # machines that run tests are shared and slow
    page.context.set_offline(True)
    page.goto(path.as_uri())
    return page


def test_pointing_at_a_token_says_its_activation(page: Any, index: Path) -> None:
    opened(page, index.parent / "3.html")
    token = page.locator(".strip b").first
    said = "e => getComputedStyle(e, '::after').content"
    assert token.evaluate(said) == "none"
    token.hover()
    assert token.evaluate(said) == f'"{token.get_attribute("data-v")}"'
    assert page.evaluate("window.hacked") is None
    assert page.locator("script, img").count() == 0


def test_the_index_can_be_searched_and_leads_to_pages(page: Any, index: Path) -> None:
    opened(page, index)
    rows = page.locator(".index tbody tr")
    rows.first.wait_for()
    assert rows.count() == 40
    page.locator("input[type=search]").fill("neuron 17")
    assert rows.count() < 40 and "neuron 17" in rows.first.inner_text()
    assert page.locator(".status").inner_text() == f"{rows.count()} of 40 pages."
    for text in rows.all_inner_texts():
        assert "neuron" in text and "17" in text
    page.locator("input[type=search]").fill("no such thing")
    assert rows.count() == 0
    page.locator("input[type=search]").fill("neuron 17")
    page.locator(".index a").first.click()
    assert page.url.endswith("17.html") and "neuron 17" in page.locator("h1").inner_text()
    page.locator("text=All pages").click()
    assert page.url.endswith("index.html")
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["3.html", "index.html"])
def test_narrow_light_and_dark_can_be_read(
    chromium: Any, index: Path, scheme: str, name: str
) -> None:
    viewport = {"width": 400, "height": 800}
    context = chromium.new_context(color_scheme=scheme, viewport=viewport)
    page = context.new_page()
    wrong = watch(page)
    opened(page, index.parent / name)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert not poorly_readable(page, 10)
    context.close()
    assert not wrong, wrong


def test_the_index_is_there_without_scripts(chromium: Any, index: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    opened(page, index)
    page.locator(".neox-tables a").first.click()
    assert page.url.endswith("0.html")
    context.close()
