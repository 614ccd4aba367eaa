"""The front page's picture: the explorer on the built-in model, as a browser shows it.

``python docs/front_picture.py`` makes it anew; it needs the extra ``browser`` and Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import sync_playwright

import neox_lab as nl

PICTURE = Path(__file__).with_name("explorer.png")
PROMPTS = "The best school of Sweden is in", "The best school of Russia is in"
SELECTED = {"layer": 1, "head": 0}
CHROMIUM = os.environ.get("NEOX_LAB_CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
WIDTH = 1180


def explored() -> nl.views.ExplorerView:
    """Two prompts compared, and two questions asked about the first."""
    explorer = nl.explore(nl.load(), *PROMPTS)
    for question in ("ablation", "attribution"):
        explorer.wait()
        explorer.ask(question)
    explorer.wait()
    return explorer.result


def photographed(view: nl.views.ExplorerView) -> bytes:
    """The explorer's panels as PNG, in as many colours as they need."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "page.html"
        view.to_html(page_file)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(f"{page_file.as_uri()}#{quote(json.dumps(SELECTED))}")
        page.locator(".explorer .card").first.wait_for()
        shot = page.locator(".explorer").screenshot()
        browser.close()
    coloured = Image.open(io.BytesIO(shot)).convert("RGB")
    coverage = Image.Quantize.MAXCOVERAGE  # small areas keep their colour
    picture = coloured.quantize(256, coverage, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE, help="PNG to write (%(default)s)")
    parser.parse_args().out.write_bytes(photographed(explored()))
