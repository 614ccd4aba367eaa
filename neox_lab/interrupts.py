"""Ctrl-C: kept waiting where it would leave something half done, raised where a part misleads.

Python raises KeyboardInterrupt between any two steps of the main thread. Where a few steps belong
together (files that take their names, modules that change places), it waits until they are done::

    with held():
        os.replace(first, second)
        os.replace(third, fourth)

Questions that take long return what there is when they are interrupted, and say that it is a part.
Where somebody builds on the answer it would pass for the whole, so there it is asked for as one::

    with whole_answers():
        row = measure(model)
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held() -> Iterator[None]:
    """Keep an interrupt waiting until the block is left; it is raised then.

    Only for what is done in a moment. Threads other than the main one are never interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            before(signal.SIGINT, waiting[0])


class _Asked(threading.local):
    """What this thread wants of a question that is interrupted."""

    whole = False


_ASKED = _Asked()


@contextmanager
def whole_answers() -> Iterator[None]:
    """Let an interrupt end the questions of this block: nobody here can do with part of an answer.

    It is a decorator of functions, too.
    """
    before, _ASKED.whole = _ASKED.whole, True
    try:
        yield
    finally:
        _ASKED.whole = before


def part_is_welcome() -> bool:
    """Whether an interrupted question may return what there is; else it raises the interrupt."""
    return not _ASKED.whole


@contextmanager
def certainly(undo: Callable[[], object]) -> Iterator[None]:
    """Undo something when a ``with`` block is left, even if an interrupt comes while it is undone.

    Args:
        undo: is called once or twice; the second time there must be nothing left to do.
    """
    try:
        yield
    finally:
        try:
            with held():
                undo()
        except KeyboardInterrupt:  # before it was held, or after all was undone
            with held():
                undo()
            raise
