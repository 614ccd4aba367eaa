"""Attention of 12 layers of 12 heads in a notebook: neox_lab beside CircuitsVis and BertViz.

    pip install neox_lab[browser] circuitsvis bertviz
    python benchmarks/views.py [--tokens 32 64 128] [--limit 180]

All three get the same causal attention: softmax of random scores of standard deviation 2, which
compresses worse than what a real model does. For each:

    bytes     the HTML that the saved notebook holds. CircuitsVis as it is saved without a network,
              its scripts inside; with one it saves less and shows nothing offline later.
    first     milliseconds from opening the page, offline, in Chromium, to the first attention map
    all       to the last one of the 144

BertViz loads its scripts from the network each time it is shown: offline there is no picture, and
no time. Its head_view draws one layer, its model_view all; the one measured is model_view.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Error as BrowserError
from playwright.sync_api import sync_playwright

from neox_lab.views import AttentionView

LAYERS = HEADS = 12
CHROMIUM = os.environ.get("NEOX_LAB_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
# Notes when the first and the last map are there, and a frame later, when they can be seen.
WATCH = """
const count = () => {
  const live = document.querySelector(".neox-live");
  return (live ? live.shadowRoot : document).querySelectorAll("canvas").length;
};
const told = {};
const tell = (name) => {
  if (!told[name]) requestAnimationFrame(() => console.info(`seen ${name} ${performance.now()}`));
  told[name] = true;
};
const look = () => {
  const maps = count();
  if (maps) tell("first");
  if (maps >= 144) tell("all");
  else requestAnimationFrame(look);
};
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


def times(playwright: Any, html: str, limit: int) -> dict[str, float]:
    """Milliseconds to the first map and to all of them; without those that did not come."""
    found: dict[str, float] = {}

    def hear(message: Any) -> None:
        if message.text.startswith("seen "):
            _, name, when = message.text.split()
            found[name] = float(when)

    # A browser of its own, for a page that hangs takes its browser with it.
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
    browser.new_page().goto("about:blank")  # the first page pays for starting up
    page = browser.new_context(offline=True, viewport={"width": 1280, "height": 1000}).new_page()
    page.on("console", hear)
    page.add_init_script(WATCH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.html"
        path.write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{html}</body>", "utf-8")
        end = time.monotonic() + limit
        try:
            page.goto(path.as_uri(), timeout=1000 * limit, wait_until="commit")
            while "all" not in found and time.monotonic() < end:
                page.wait_for_timeout(100)
        except BrowserError:
            pass
        browser.close()
    return found


def main() -> None:
    """Print a line for each program and length."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--limit", type=int, default=180, help="seconds to wait for a picture")
    options = parser.parse_args()
    programs: dict[str, Callable[[np.ndarray, list[str]], str]] = {
        "neox_lab": ours,
        "circuitsvis": circuitsvis,
        "bertviz": bertviz,
    }
    print(f"{'':12} {'tokens':>6} {'bytes':>12} {'times ours':>10} {'first ms':>9} {'all ms':>9}")
    with sync_playwright() as playwright:
        for tokens in options.tokens:
            weights, base = patterns(tokens), 0
            pieces = [f" w{at % 40}" for at in range(tokens)]
            for name, make in programs.items():
                html = make(weights, pieces)
                size = len(html.encode("utf-8"))
                base = base or size
                seen = times(playwright, html, 10 if name == "bertviz" else options.limit)
                first, every = (
                    f"{seen[key]:.0f}" if key in seen else "none" for key in ("first", "all")
                )
                ratio = f"{size / base:.1f}"
                print(
                    f"{name:12} {tokens:6} {size:12,} {ratio:>10} {first:>9} {every:>9}", flush=True
                )


if __name__ == "__main__":
    main()
