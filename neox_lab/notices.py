"""What must be known about an answer, told once and where the reader looks.

A notice is a ``NeoxLabWarning`` at the line of the user's own that led to it. Whoever shows answers
in another way, as a widget does, gathers the notices of its own thread and shows them itself.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from neox_lab.errors import NeoxLabWarning
from neox_lab.progress import in_notebook

_log = logging.getLogger("neox_lab")
_OURS = ("neox_lab", "torch", "contextlib")  # between a user's line and what is to be told
_gathering: ContextVar[list[str] | None] = ContextVar("gathering", default=None)


def tell(text: str, category: type[NeoxLabWarning] = NeoxLabWarning) -> None:
    """Warn of ``text``, or hand it to whoever gathers notices; to them each only once."""
    gathered = _gathering.get()
    if gathered is None:
        warnings.warn(text, category, stacklevel=_users_line())
    elif text not in gathered:
        gathered.append(text)


def tell_of_length(tokens: int, made_for: int, words: str = "The text has") -> None:
    """Tell of a text with more tokens than the model was made for; of others nothing.

    Args:
        tokens: how many there are, or may be.
        made_for: ``config.max_position_embeddings``.
        words: what comes before the number.
    """
    if tokens > made_for:
        tell(
            f"{words} {tokens:,} tokens; the model was made for {made_for:,}, and what it says "
            "beyond them is not to be trusted."
        )


def _users_line() -> int:
    """How far above the caller the first line outside this package is, as ``stacklevel``."""
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level


def mention(text: str) -> None:
    """Say what is as it should be, and still good to know; nobody is warned.

    In a notebook it is a line of ordinary output, in a terminal a line beside the output; a log of
    level ``INFO`` has it everywhere.
    """
    _log.info(text)
    if in_notebook():
        print(text)
    elif sys.stderr.isatty():
        print(text, file=sys.stderr)


@contextmanager
def gathered() -> Iterator[list[str]]:
    """Keep the notices of this thread in a list instead of warning."""
    notices: list[str] = []
    token = _gathering.set(notices)
    try:
        yield notices
    finally:
        _gathering.reset(token)
