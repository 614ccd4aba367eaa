"""How far long work has got: a bar, the rate, and the time left.

    with Progress(total=400, unit="step") as bar:
        for step in steps:
            ...
            bar.update(note=f"loss {loss:.3f}")

In a notebook the line is an ordinary output that is replaced a few times a second and empty at the
end. A widget would not do: it leaves a broken output in the file when the kernel is gone. In a
terminal the line is written over itself; where standard error is a file, nothing is written.

There is one line at a time. Work within other work is told of in the line of that:

    ▕██████                  ▏ 5/20 tokens · 22 s each · 5:30 min left · 31/44 layers, 7 s left
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any

EVERY = 0.25  # seconds between two pictures of the bar
WIDTH = 24  # characters of the bar
PARTS = " ▏▎▍▌▋▊▉"  # eighths of a character
_OPEN = threading.local()  # its ``bar`` is the innermost one of a thread


class Progress:
    """A line that says how far work has got, for the time of a ``with`` block.

    Args:
        total: how much there is to do; None where nobody knows, and it may be set later.
        unit: what is counted, in the singular.
        done: how much had been done before.
        silent: show nothing.
        delay: seconds before the line first appears, so that short work shows none.
    """

    def __init__(
        self,
        total: int | None = None,
        unit: str = "step",
        done: int = 0,
        silent: bool = False,
        delay: float = 0.5,
    ) -> None:
        self.total, self.unit, self.done, self.silent = total, unit, done, silent
        self._before, self._note, self._inside, self._width = done, "", "", 0
        self._around: Progress | None = None
        self._start = self._clock()
        self._next = self._start + delay
        self._shown = False
        self._handle: Any = None

    def update(self, count: int = 1, note: str = "") -> None:
        """``count`` more have been done; ``note`` is printed behind the numbers."""
        self.done += count
        self._note = note or self._note
        now = self._clock()
        if self.silent or now < self._next:
            return
        self._next = now + EVERY
        if self._around is None:
            self._show(self.line())
        else:
            self._around._hear(", ".join(filter(None, [self._count(), self._left(), self._inside])))

    def line(self) -> str:
        """The line as it is now."""
        parts = [self._count()]
        if self.total:
            parts[0] = f"{_bar(min(1.0, self.done / self.total))} {parts[0]}"
        rate = self._rate()
        parts.append(f"{rate:.3g}/s" if rate >= 1 or not rate else f"{1 / rate:.3g} s each")
        return " · ".join(filter(None, [*parts, self._left(), self._inside, self._note]))

    def _count(self) -> str:
        """How much is done."""
        if self.total:
            return f"{self.done:,}/{self.total:,} {plural(self.unit)}"
        return f"{self.done:,} {self.unit if self.done == 1 else plural(self.unit)}"

    def _rate(self) -> float:
        """How much is done in a second."""
        seconds = self._clock() - self._start
        return (self.done - self._before) / seconds if seconds > 0 else 0.0

    def _left(self) -> str:
        """How long it will take; empty where nobody knows."""
        rate = self._rate()
        if not (self.total and rate):
            return ""
        return f"{duration(max(0, self.total - self.done) / rate)} left"

    def _hear(self, inside: str) -> None:
        """How far work within this one is; empty when it is over."""
        self._inside = inside
        if inside:
            self.update(0)

    def __enter__(self) -> Progress:
        self._around = getattr(_OPEN, "bar", None)
        _OPEN.bar = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _OPEN.bar = self._around
        if self._around is not None:
            self._around._hear("")
        if self._shown:
            self._show("")

    @staticmethod
    def _clock() -> float:
        return time.monotonic()

    def _show(self, text: str) -> None:
        """Replace the line, wherever this runs."""
        self._shown = True
        if in_notebook():
            from IPython.display import display

            shown = {"text/plain": text}
            if self._handle is None:
                self._handle = display(shown, raw=True, display_id=True)  # type: ignore[no-untyped-call]
            else:
                self._handle.update(shown, raw=True)
        elif sys.stderr.isatty():
            blank = " " * max(0, self._width - len(text))
            self._width = len(text)
            sys.stderr.write(f"\r{text}{blank}" + ("" if text else "\r"))
            sys.stderr.flush()


def plural(unit: str) -> str:
    """Several of what is counted."""
    return unit + ("es" if unit.endswith(("ch", "s")) else "s")


def counted(count: int, unit: str) -> str:
    """So many, in the singular where there is one: ``1 head``, ``1,024 heads``."""
    return f"{count:,} {unit if count == 1 else plural(unit)}"


def duration(seconds: float) -> str:
    """A time in words: ``8 s``, ``3:05 min``, ``2:00 h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _bar(share: float) -> str:
    eighths = round(share * WIDTH * 8)
    full, rest = divmod(eighths, 8)
    part = PARTS[rest] if rest else ""
    return f"▕{(('█' * full) + part).ljust(WIDTH)}▏"


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
