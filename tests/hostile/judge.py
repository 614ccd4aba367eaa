"""What may come of a hostile input: an answer, or an error that says what is wrong."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from neox_lab.errors import NeoxLabError

Answer = TypeVar("Answer")
SAME = "NEOX_LAB_SEARCH" not in os.environ
"""Whether the same inputs are tried each time; NEOX_LAB_SEARCH in the environment: new ones."""
SECONDS = 20
"""How long a call may take before it hangs; every one of them takes milliseconds."""


class Hang(BaseException):
    """The call did not end; no ``except Exception`` catches it."""


def outcome(call: Callable[[], Answer]) -> Answer | NeoxLabError:
    """The answer of a call, or the package's own error. Whatever else it raises fails the test."""
    with _timed():
        try:
            return call()
        except NeoxLabError as error:
            refusal = error
    words = str(refusal)
    assert 0 < len(words) < 20_000, f"{type(refusal).__name__} in {len(words)} characters"
    return refusal


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """What reads must not write: the folder's files are the same after the block."""
    before = _state(folder)
    yield
    assert _state(folder) == before, "files were changed"


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    states = {str(path): path.stat() for path in folder.rglob("*")}
    return {name: (state.st_size, state.st_mtime_ns) for name, state in states.items()}


@contextmanager
def _timed() -> Iterator[None]:
    """Raise ``Hang`` in the block after ``SECONDS``."""

    def hang(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
