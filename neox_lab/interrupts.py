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

import contextlib
import inspect
import signal
import sys
import threading
import traceback
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
    """The blocks of a thread that want whole answers, each with the frame that runs it."""

    def __init__(self) -> None:
        self.blocks: dict[object, FrameType] = {}


_ASKED = _Asked()
_WAITS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


@contextmanager
def whole_answers() -> Iterator[None]:
    """Let an interrupt end the questions of this block: nobody here can do with part of an answer.

    It is a decorator of functions, too. What enters it in a method has it until that method ends.
    """
    block, blocks = object(), _ASKED.blocks
    blocks[block] = _runs_the_block(_stack(sys._getframe()))
    try:
        yield
    finally:
        blocks.pop(block, None)


def part_is_welcome() -> bool:
    """Whether an interrupted question may return what there is; else it raises the interrupt."""
    running = set(_stack(sys._getframe(1)))  # without this frame: what holds itself stays
    # An interrupt may come just before a block takes itself back, but its frame has ended then.
    # That of a generator or a coroutine may also wait, and takes its block back when it goes on.
    for block, frame in list(_ASKED.blocks.items()):
        if frame not in running and not frame.f_code.co_flags & _WAITS:
            del _ASKED.blocks[block]
    return running.isdisjoint(_ASKED.blocks.values())


def _stack(frame: FrameType) -> list[FrameType]:
    """A frame, the one that called it, and so on."""
    return [there for there, _ in traceback.walk_stack(frame)]


def _runs_the_block(stack: list[FrameType]) -> FrameType:
    """The frame with the ``with``: generators that were made context managers wait meanwhile."""
    enters = ("__enter__", "enter_context")  # not the function that a decorator makes
    ours = [
        frame.f_globals.get("__name__") == contextlib.__name__ and frame.f_code.co_name in enters
        for frame in stack
    ]
    at = 0
    while stack[at].f_code.co_flags & inspect.CO_GENERATOR and ours[at + 1]:
        at = ours.index(False, at + 1)
    return stack[at]


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
