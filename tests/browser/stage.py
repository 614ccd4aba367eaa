"""A widget in a page without Jupyter: its script, a stand-in for the front end's model, and us.

What the page sets goes to ``widget.set_state``, as it would through a kernel, and ``sync`` brings
the widget's state to the page. Everything but the transport is real, and a test takes a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

MOUNT = """async ([source, state]) => {
  const listeners = {};
  let changed = {};
  const fire = (name) => (listeners[`change:${name}`] || []).forEach((act) => act());
  const model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = changed[name] = value; fire(name); },
    save_changes: () => { window.push(changed); changed = {}; },
    on: (name, act) => (listeners[name] ||= []).push(act),
    off: (name, act) => (listeners[name] = listeners[name].filter((other) => other !== act)),
  };
  window.update = (next) => {
    const differs = (name) => JSON.stringify(state[name]) !== JSON.stringify(next[name]);
    const names = Object.keys(next).filter(differs);
    for (const name of names) state[name] = next[name];
    names.forEach(fire);
  };
  window.listening = () => Object.values(listeners).flat().length;
  const address = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  const module = await import(address);
  const root = document.createElement("div");
  document.body.replaceChildren(root);
  window.leave = module.default.render({model, el: root});
}"""


class Stage:
    """A widget on a page.

    Args:
        page: an empty page.
        widget: what is shown; it is not closed at the end.
        dark: whether the reader wants dark colours.
    """

    def __init__(self, page: Any, widget: Any, dark: bool = False) -> None:
        self.page, self.widget = page, widget
        self.asked: list[dict[str, Any]] = []
        page.set_default_timeout(300_000)  # machines that run tests may be busy
        page.goto("about:blank")
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.set_content(
            f'<!doctype html><body style="background: {"#111" if dark else "#fff"}"></body>'
        )
        page.expose_function("push", self._push)
        state = widget.get_state()
        page.evaluate(MOUNT, [state["_esm"], self._plain(state)])

    def _push(self, changed: dict[str, Any]) -> None:
        self.asked.append(changed)
        self.widget.set_state(changed)

    @staticmethod
    def _plain(state: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in state.items() if not name.startswith("_")} | {
            "layout": None
        }

    def sync(self) -> None:
        """Bring the widget's state to the page."""
        self.page.evaluate("(state) => window.update(state)", self._plain(self.widget.get_state()))

    def until(self, holds: Callable[[], Any], timeout: float = 300) -> None:
        """Go on until something is true, keeping the page up to date."""
        end = time.monotonic() + timeout
        while True:
            self.page.wait_for_timeout(20)  # lets the page's messages arrive
            self.sync()
            if holds():
                self.sync()  # it may have become true just after
                self.page.wait_for_timeout(50)
                return
            assert time.monotonic() < end, f"not within {timeout} s; {self.widget}"

    def done(self, phase: str = "done") -> None:
        """Until the widget has done what it was asked."""
        self.until(lambda: self.widget.phase == phase and self.widget._job.finished.is_set())
