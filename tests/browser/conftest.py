"""A real browser, and a real JupyterLab in it. Nothing here may reach beyond this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import watch

CHROMIUM = Path(os.environ.get("NEOX_LAB_CHROMIUM", "/usr/bin/chromium"))


def missing(what: str) -> None:
    """Skip for want of ``what`` (a failure under NEOX_LAB_NO_SKIPS)."""
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright (pip install playwright)")
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} (apt-get install chromium, or set NEOX_LAB_CHROMIUM)")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """An empty page; the test fails if it raises an error or asks for anything from outside."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    wrong = watch(page)
    yield page
    context.close()
    assert not wrong, wrong


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium: Any) -> Iterator[Any]:
    """A JupyterLab of our own in a folder of its own; see ``jupyterlab.Lab``."""
    try:
        import jupyterlab  # noqa: F401
    except ImportError:
        missing("jupyterlab (pip install jupyterlab)")
    from laboratory import Lab

    with Lab(tmp_path_factory.mktemp("lab"), chromium) as lab:
        yield lab
