"""Who wants whole answers, and for how long."""

from __future__ import annotations

import threading

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


def test_a_block_that_ends_late_ends_alone() -> None:
    """An interrupt just before its end leaves a block to the collector, which may be anywhere."""
    late, later = whole_answers(), whole_answers()
    late.__enter__()
    with whole_answers():
        del late  # as its traceback is
        assert not part_is_welcome(), "the other block is still there"
    assert part_is_welcome()
    later.__enter__()
    rest = [later]
    del later
    other = threading.Thread(target=rest.clear)
    other.start()
    other.join()
    assert part_is_welcome()
