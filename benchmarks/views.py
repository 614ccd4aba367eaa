"""Attention of 12 layers of 12 heads in a notebook: neox_lab beside CircuitsVis and BertViz.

    pip install -c constraints.txt -e '.[bench]' ; apt-get install chromium
    python benchmarks/views.py [--tokens 32 64 128] [--turns 3] [--limit 240] [--libraries FOLDER]
                               [--device cuda]

All get the same causal attention: softmax of random scores of standard deviation 2, which
compresses worse than what a real model does. For each:

    bytes     the HTML that the saved notebook holds. CircuitsVis as it is saved without a network,
              its scripts inside; with one it saves less and shows nothing offline later.
    first     milliseconds from opening the page, offline, to the first picture

The first picture is there when a canvas has a pixel that is not transparent, or when an SVG line is
in the page (images do not count: ours has one at once, below it what can be pointed at). All three
draw all their maps before the browser paints again, so the first picture shows all. The same script
looks before every frame, in every page, and the time is that of the frame after. Each page is
opened cold, by a browser of its own with an empty profile. The programs take turns, and times are
medians over turns.

No model runs here: pages are drawn by the browser, and ``--device`` only names what is there.

BertViz loads three scripts from the network each time it is shown, so offline there is no picture,
and no time. ``--libraries`` names a folder with ``require.min.js``, ``d3.min.js`` and
``jquery.min.js``, such as one made with ``npm pack requirejs@2.3.6 d3@5.7.0 jquery@2.2.4``; then
BertViz is measured once more with those in place of the network. Its head_view draws one layer, its
model_view all; the one measured is model_view.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import sync_playwright

from neox_lab.views import AttentionView

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header

LAYERS = HEADS = 12
CHROMIUM = os.environ.get("NEOX_LAB_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
CDN = "https://cdnjs.cloudflare.com/ajax/libs"
# Where BertViz's page finds its scripts, and what stands there instead.
LIBRARIES = {
    f"{CDN}/require.js/2.3.6/require.min.js": "require.min.js",
    f"{CDN}/d3/5.7.0/d3.min": "d3.min",
    f"{CDN}/jquery/2.0.0/jquery.min": "jquery.min",
}
# Looks for maps before every frame, and says when the first one can be seen.
WATCH = """
const drawn = (map) => {
  if (!map.width || !map.height) return false;
  const small = document.createElement("canvas");
  small.width = small.height = 8;
  small.getContext("2d").drawImage(map, 0, 0, 8, 8);
  return small.getContext("2d").getImageData(0, 0, 8, 8).data.some((byte) => byte > 0);
};
const there = () => {
  const views = [...document.querySelectorAll(".neox-live")].map((view) => view.shadowRoot);
  const canvases = [document, ...views].flatMap((root) => [...root.querySelectorAll("canvas")]);
  return canvases.some(drawn) || document.querySelector("svg line") !== null;
};
const tell = () => console.info(`seen ${performance.now()}`);
const look = () => requestAnimationFrame(there() ? tell : look);
requestAnimationFrame(look);
"""


def patterns(tokens: int) -> np.ndarray:
    """Random causal attention `[layer, head, query, key]`."""
    scores = np.random.default_rng(0).normal(0, 2, (LAYERS, HEADS, tokens, tokens))
    scores[:, :, ~np.tri(tokens, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def ours(weights: np.ndarray, pieces: list[str]) -> str:
    """What ``nl.views.attention`` leaves in a notebook."""
    return AttentionView(weights, pieces).to_html()


def circuitsvis(weights: np.ndarray, pieces: list[str]) -> str:
    """What CircuitsVis leaves in a notebook that was saved offline."""
    from circuitsvis.attention import attention_heads

    flat = weights.reshape(-1, *weights.shape[2:])
    return attention_heads(attention=flat, tokens=pieces).local_src


def bertviz(weights: np.ndarray, pieces: list[str]) -> str:
    """What BertViz leaves in a notebook."""
    import torch
    from bertviz import model_view

    layers = tuple(torch.tensor(layer)[None] for layer in weights)
    return model_view(layers, pieces, html_action="return").data


def with_libraries(html: str) -> str:
    """BertViz's page with its scripts beside it."""
    for address, name in LIBRARIES.items():
        html = html.replace(address, name)
    return html


def first_picture(playwright: Any, path: Path, limit: float) -> float:
    """Milliseconds to the first picture; infinity if none came within ``limit`` seconds."""
    found: list[float] = []

    def hear(message: Any) -> None:
        if message.text.startswith("seen "):
            found.append(float(message.text.split()[1]))

    # A browser of its own, for a page that hangs takes its browser with it.
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    browser.new_page().goto("about:blank")  # the first page pays for starting up
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 1000}).new_page()
    page.on("console", hear)
    page.add_init_script(WATCH)
    end = time.monotonic() + limit
    try:
        page.goto(path.as_uri(), timeout=1000 * limit, wait_until="commit")
        while not found and time.monotonic() < end:
            page.wait_for_timeout(100)
    except BrowserError:
        pass
    browser.close()
    return found[0] if found else math.inf


def measure(playwright: Any, tokens: int, options: argparse.Namespace, folder: Path) -> None:
    """Print a line for each program."""
    weights, pieces = patterns(tokens), [f" w{at % 40}" for at in range(tokens)]
    makers: dict[str, Callable[[np.ndarray, list[str]], str]] = {
        "neox_lab": ours,
        "circuitsvis": circuitsvis,
        "bertviz": bertviz,
    }
    pages = {name: make(weights, pieces) for name, make in makers.items()}
    sizes = {name: len(html.encode("utf-8")) for name, html in pages.items()}
    if options.libraries is not None:
        pages["bertviz, libraries"] = with_libraries(pages["bertviz"])
    paths = {}
    for name, html in pages.items():
        paths[name] = folder / f"{name}-{tokens}.html"
        text = f"<!DOCTYPE html><meta charset='utf-8'><body>{html}</body>"
        paths[name].write_text(text, "utf-8")
    seen: dict[str, list[float]] = {name: [] for name in pages}
    for _ in range(options.turns):
        for name, path in paths.items():
            limit = min(10, options.limit) if name == "bertviz" else options.limit
            if math.inf not in seen[name]:  # what does not come is not waited for again
                seen[name].append(first_picture(playwright, path, limit))
    first = {name: statistics.median(turns) for name, turns in seen.items()}
    for name in pages:
        size = sizes[name.split(",")[0]]
        shown, ratio = "none", ""
        if math.isfinite(first[name]):
            shown, ratio = f"{first[name]:.0f}", f"{first[name] / first['neox_lab']:.1f}"
        bytes_shown = f"{size:12,} {size / sizes['neox_lab']:6.1f}"
        print(f"{name:18} {tokens:6} {bytes_shown} {shown:>9} {ratio:>6}", flush=True)


def main() -> None:
    """Measure every length."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--limit", type=float, default=240, help="seconds to wait for a picture")
    parser.add_argument("--libraries", type=Path, help="a folder with BertViz's three scripts")
    add_device(parser)
    options = parser.parse_args()
    print(header(options.device))
    print(f"{'':18} {'tokens':>6} {'bytes':>12} {'×':>6} {'first ms':>9} {'×':>6}")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        if options.libraries is not None:
            for path in options.libraries.glob("*.min.js"):
                shutil.copy(path, folder)
        for tokens in options.tokens:
            measure(playwright, tokens, options, Path(folder))


if __name__ == "__main__":
    main()
