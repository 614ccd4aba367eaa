"""Who wants whole answers, and for how long."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from neox_lab.interrupts import part_is_welcome, whole_answers


def test_parts_are_welcome_but_inside() -> None:
    @whole_answers()
    def asked() -> bool:
        return part_is_welcome()

    assert part_is_welcome() and not asked() and part_is_welcome()
    with whole_answers():
        assert not asked() and not part_is_welcome()
    with pytest.raises(KeyboardInterrupt), whole_answers():
        raise KeyboardInterrupt
    assert part_is_welcome()


def test_other_threads_are_asked_by_nobody() -> None:
    seen: list[bool] = []
    with whole_answers():
        other = threading.Thread(target=lambda: seen.append(part_is_welcome()))
        other.start()
        other.join()
    assert seen == [True]


def leaving() -> Any:
    """A block that an interrupt comes to just before its end: its traceback keeps it."""
    block = whole_answers()
    block.__enter__()
    assert not part_is_welcome()
    return block


def test_a_block_that_was_not_left_ends_with_the_function_it_is_in() -> None:
    late = leaving()
    assert part_is_welcome()
    with whole_answers():
        del late  # takes nothing back but what is its own
        assert not part_is_welcome()
    assert part_is_welcome()
    rest = [leaving()]
    with whole_answers():
        other = threading.Thread(target=rest.clear)
        other.start()
        other.join()
        assert not part_is_welcome()
    assert part_is_welcome()


def test_blocks_within_blocks_of_others() -> None:
    """A generator with a block, made a context manager: it waits while what it is around runs."""

    @contextmanager
    def outer() -> Iterator[None]:
        with whole_answers():
            yield

    @contextmanager
    def outermost() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(outer())
            yield

    def within(block: Any) -> list[bool]:
        seen = [part_is_welcome()]
        with block:
            seen.append((lambda: part_is_welcome())())
        return [*seen, part_is_welcome()]

    assert within(outer()) == within(outermost()) == [True, False, True]
    assert within(whole_answers()) == [True, False, True]
    with outer():
        assert within(outermost()) == [False, False, False]

    def generator() -> Iterator[bool]:
        with whole_answers():
            yield part_is_welcome()
            yield part_is_welcome()

    going = generator()
    assert not next(going)
    assert part_is_welcome(), "nobody here has asked for it"


def test_blocks_that_wait_are_still_there_when_they_go_on() -> None:
    """Somebody else asks meanwhile; what goes on would take a part for the whole."""

    def generator() -> Iterator[bool]:
        with whole_answers():
            yield part_is_welcome()
            yield part_is_welcome()
        yield part_is_welcome()

    going = generator()
    assert [(next(going), part_is_welcome()) for _ in range(3)] == [
        (False, True),
        (False, True),
        (True, True),
    ]

    async def asks(block: Any) -> list[bool]:
        with block:
            before = part_is_welcome()
            await asyncio.sleep(0)
            return [before, part_is_welcome()]

    async def both() -> list[list[bool]]:
        return await asyncio.gather(asks(whole_answers()), asks(ExitStack()))

    assert asyncio.run(both()) == [[False, False], [True, True]]


def test_a_block_of_a_decorator_ends_with_the_function() -> None:
    """An interrupt just before its end is kept by its traceback, and the caller goes on."""

    @whole_answers()
    def asked() -> bool:
        return part_is_welcome()

    def strike(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code.co_name == "__exit__" and frame.f_globals["__name__"] == "contextlib":
            sys.settrace(None)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(strike)
    try:
        with pytest.raises(KeyboardInterrupt) as kept:
            asked()
    finally:
        sys.settrace(before)
    assert kept.traceback and part_is_welcome()


def test_who_asks_keeps_nothing_of_its_callers() -> None:
    """A frame in its own variables keeps all of its callers, with models and activations."""

    class Large:
        pass

    def asks() -> weakref.ref[Large]:
        large = Large()
        with whole_answers():
            part_is_welcome()
        assert part_is_welcome()
        return weakref.ref(large)

    gc.disable()
    try:
        assert asks()() is None
    finally:
        gc.enable()
