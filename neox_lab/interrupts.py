"""Ctrl-C, kept waiting while it would leave something half done.

Python raises KeyboardInterrupt between any two steps of the main thread. Where a few steps belong
together (files that take their names, modules that change places), it waits until they are done::

    with held():
        os.replace(first, second)
        os.replace(third, fourth)
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
