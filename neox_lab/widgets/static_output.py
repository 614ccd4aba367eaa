"""What stays of a live widget when the kernel is gone: an ordinary output below it.

JupyterLab cannot draw a widget without its kernel and shows an error in its place, whatever else
the output holds. So a widget that is displayed puts a second, ordinary output below itself. It
holds what was pinned and the present result, as static views that need no kernel. While the widget
lives it hides the present result, which it shows itself; in a file that is opened later nobody
hides it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from neox_lab.errors import InputError
from neox_lab.results import Result
from neox_lab.views import View

PINNED = "Pinned from the widget above."
CURRENT = "Kept from the widget above. Run the cell again to bring it back to life."

Shown = tuple[Result | View, ...]
"""Results with a static view that belong together, such as a map and the texts read beside it."""

_PINNED: dict[tuple[str, str], list[tuple[Shown, dict[str, Any]]]] = {}
"""What is pinned, by the cell and the kind of widget: it survives running the cell again."""


def _cell() -> str | None:
    """The cell of a notebook that runs now; None outside of one."""
    from IPython import get_ipython

    shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return None
    cell = kernel.get_parent().get("metadata", {}).get("cellId")
    return cell if isinstance(cell, str) else None


def together(shown: Shown) -> dict[str, Any]:
    """The static views of some results as one: texts and pages joined, the first one's image."""
    bundles = [result._repr_mimebundle_() for result in shown]
    joined: dict[str, Any] = {}
    for kind, between in (("text/plain", "\n\n"), ("text/html", "\n")):
        if bundles:
            joined[kind] = between.join(str(bundle.get(kind, "")) for bundle in bundles)
    if bundles and "image/png" in bundles[0]:
        joined["image/png"] = bundles[0]["image/png"]
    return joined


class Kept:
    """The output below a widget.

    Attributes:
        name: the output's display id, and the mark by which the widget finds it in the page.
    """

    def __init__(self) -> None:
        """Nothing is displayed and nothing kept yet."""
        self.name = f"neox-kept-{uuid.uuid4().hex[:12]}"
        self._pinned: list[tuple[Shown, dict[str, Any]]] = []
        self._current: tuple[Shown, dict[str, Any]] | None = None
        self._displayed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def count(self) -> int:
        """How many results are pinned."""
        return len(self._pinned)

    def display(self, kind: str, shown: Shown) -> None:
        """Show the output here, in the cell that runs now.

        What a widget of this ``kind`` had pinned in this cell before it was run again stays.
        """
        from IPython.display import display

        cell = _cell()
        if cell is not None:
            self._pinned = _PINNED.setdefault((cell, kind), self._pinned)
        self._take(shown)
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # plain Python
            self._loop = None
        self._displayed = True
        display(self.bundle(), raw=True, display_id=self.name)  # type: ignore[no-untyped-call]

    def pin(self, shown: Shown) -> None:
        """Keep ``shown`` even when the widget shows something else.

        Raises:
            InputError: the output is shown nowhere.
        """
        if not self._displayed:
            raise InputError(
                "The widget is not shown in a cell of its own. Show it, or put widget.result at "
                "the end of a cell."
            )
        self._take(shown)
        if self._current is not None:
            self._pinned.append(self._current)
        self._update()

    def unpin(self, number: int) -> None:
        """Take away a pinned result.

        Raises:
            InputError: there is none with this number, counted from 0.
        """
        if not 0 <= number < len(self._pinned):
            raise InputError(f"There is no pin {number + 1}; there are {len(self._pinned)}.")
        del self._pinned[number]
        self._update()

    def refresh(self, shown: Shown) -> None:
        """Bring the output up to date; in the main thread, because matplotlib draws in it."""
        if self._displayed and self._take(shown):
            self._update()

    def refresh_soon(self, shown: Callable[[], Shown]) -> None:
        """The same from another thread: when the kernel has time."""
        if self._displayed and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(lambda: self.refresh(shown()))

    def _take(self, shown: Shown) -> bool:
        """Draw ``shown`` if it is something else than before."""
        if not shown or (self._current is not None and self._current[0] is shown):
            return False
        self._current = (shown, together(shown))
        return True

    def _update(self) -> None:
        from IPython.display import update_display

        update_display(self.bundle(), raw=True, display_id=self.name)  # type: ignore[no-untyped-call]

    def bundle(self) -> dict[str, Any]:
        """What a notebook stores: what was pinned, then the present result unless it is pinned."""
        kept = list(self._pinned)
        current = self._current
        if current is not None and not any(shown is current[0] for shown, _ in kept):
            kept.append(current)
        parts = [
            f'<div class="{"neox-pinned" if place < len(self._pinned) else "neox-current"}">'
            f"<p><small>{PINNED if place < len(self._pinned) else CURRENT}</small></p>\n"
            f"{data.get('text/html', '')}</div>"
            for place, (_, data) in enumerate(kept)
        ]
        bundle: dict[str, Any] = {
            "text/plain": "\n\n".join(str(data.get("text/plain", "")) for _, data in kept),
            "text/html": f'<div class="neox-kept" data-neox="{self.name}">{"".join(parts)}</div>',
        }
        if kept and "image/png" in kept[-1][1]:
            bundle["image/png"] = kept[-1][1]["image/png"]
        return bundle
