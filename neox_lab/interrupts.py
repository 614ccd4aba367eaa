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
    """The blocks this thread is in that want whole answers."""

    def __init__(self) -> None:
        self.blocks: set[object] = set()


_ASKED = _Asked()


@contextmanager
def whole_answers() -> Iterator[None]:
    """Let an interrupt end the questions of this block: nobody here can do with part of an answer.

    It is a decorator of functions, too.
    """
    # An interrupt may come just before a block is left. It ends with its traceback then, at any
    # time and in any thread, so each block takes back its own and nothing else.
    block, blocks = object(), _ASKED.blocks
    blocks.add(block)
    try:
        yield
    finally:
        blocks.discard(block)


def part_is_welcome() -> bool:
    """Whether an interrupted question may return what there is; else it raises the interrupt."""
    return not _ASKED.blocks


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
