"""How long a click in the explorer takes until the page is painted again, where no run is needed.

    pip install -c constraints.txt -e '.[bench]' ; apt-get install chromium
    python benchmarks/explorer.py [--layers 12] [--heads 12] [--tokens 64] [--clicks 30]
                                  [--device cuda]

Two prompts, compared, on a model of random weights; the same as a page of its own and as a live
widget with a stand-in for the notebook's front end (``tests/browser/stage.py``). Each kind of click
is made on many places in turn. For each:

    handled  until the click's event has been dispatched and every panel has its new content
    painted  until the second animation frame after, so that one has been painted in between; it
             contains up to two frames of waiting
    most     the longest of the latter
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import sync_playwright

import neox_lab as nl

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "browser"))
sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header
from stage import Stage

CHROMIUM = os.environ.get("NEOX_LAB_CHROMIUM", "/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
KINDS = {
    "nothing": "body",
    "token": '[aria-label="the prompt"] .token',
    "head": ".headgrid .cell",
    "lens cell": ".lens tbody td",
    "pattern cell": ".field",
    "part": '[aria-label="Who wrote this logit"] .line',
}
# The deepest shadow root holds the panels, in a page and in a widget.
CLICKS = """async ([selector, count]) => {
  const below = (root) => [...root.querySelectorAll("*")].flatMap((node) => node.shadowRoot || []);
  const all = (root) => [root, ...below(root).flatMap(all)];
  const inside = (root) => [...root.querySelectorAll(selector)];
  const find = () => all(document).map(inside).find((found) => found.length) || [];
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const [times, handled] = [[], []];
  for (let turn = 0; turn < count; turn++) {
    const nodes = find();
    const node = nodes[Math.floor((nodes.length * ((turn * 7) % count)) / count)];
    const box = node.getBoundingClientRect();
    const along = ((turn * 5 + 1) % count) / count;
    const at = { clientX: box.left + box.width * along, clientY: box.bottom - 2 };
    const event = new MouseEvent("click", { bubbles: true, composed: true, ...at });
    const start = performance.now();
    node.dispatchEvent(event);
    handled.push(performance.now() - start);
    await frame();
    await frame();
    times.push(performance.now() - start);
    await new Promise((done) => setTimeout(done, 30));
  }
  return [times, handled];
}"""


def random_model(layers: int, heads: int) -> nl.GPTNeoXForCausalLM:
    """A model of random weights with the built-in model's words."""
    built_in = nl.load()
    settings = built_in.config.to_dict()
    settings |= {"num_hidden_layers": layers, "num_attention_heads": heads}
    settings |= {"hidden_size": 32 * heads, "intermediate_size": 64 * heads}
    torch.manual_seed(0)
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig.from_dict(settings))
    model.tokenizer = built_in.tokenizer
    return model.eval()


def report(kind: str, page: Any, clicks: int) -> None:
    """Print the times of every kind of click."""
    for name, selector in KINDS.items():
        page.evaluate(CLICKS, [selector, 3])  # warm
        times, handled = page.evaluate(CLICKS, [selector, clicks])
        numbers = statistics.median(handled), statistics.median(times), max(times)
        print(f"{kind:5} {name:12} " + " ".join(f"{number:9.1f}" for number in numbers))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clicks", type=int, default=30)
    add_device(parser)
    given = parser.parse_args()
    print(header(given.device))
    model = random_model(given.layers, given.heads).to(given.device)
    ids = torch.randint(
        300, 2000, (1, 4 * given.tokens), generator=torch.Generator().manual_seed(1)
    )
    text = model.to_string(ids[0])
    while model.to_tokens(text).shape[1] > given.tokens:
        text = text[:-1]
    widget = nl.explore(model, text, text[:-2] + text[-1] * 2)
    widget.wait()
    assert widget.result is not None
    tokens = model.to_tokens(text).shape[1]
    print(f"{given.layers} layers of {given.heads} heads, {tokens} tokens")
    print("where click          handled   painted      most   (milliseconds; medians and the most)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        path = Path(folder) / "page.html"
        widget.result.to_html(path)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(path.as_uri())
        page.locator(".explorer .card").first.wait_for()
        report("page", page, given.clicks)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        Stage(page, widget).done()
        page.locator(".explorer .card").first.wait_for()
        report("live", page, given.clicks)
        browser.close()


if __name__ == "__main__":
    main()
