"""The checks inside questions: one warning, or a line where somebody else listens.

    warn_of_prompts(model, metric, clean=prompts, corrupted=others)

    with findings_go_to(found.append):      # a widget shows them in words
        nl.patching.sweep(...)

Tokens are read and nothing is run. Errors are not told here, because questions refuse them in their
own words, and notes are left to ``nl.check_prompts``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from neox_lab.errors import NeoxLabError, PromptWarning
from neox_lab.experiments.prompt_doctor.checks import Finding, findings
from neox_lab.experiments.prompt_doctor.items import Reader, make_items
from neox_lab.experiments.prompt_doctor.padding import padding_read

if TYPE_CHECKING:
    from neox_lab.experiments.patching.prompts import Prompts
    from neox_lab.family.contract import HookedModel

NAMED = 3
"""Items, and kinds of findings, that are named in a warning."""

_listener: ContextVar[Callable[[str], object] | None] = ContextVar("prompt_findings", default=None)


def warn_of_prompts(
    model: HookedModel, metric: object, sides: Mapping[str, Prompts], named: bool = False
) -> None:
    """Warn once of prompts and answers that make a number mean something else.

    Args:
        model: who reads them.
        metric: what is asked about.
        sides: the prompts by their names.
        named: whether positions that correspond are named.
    """
    reader = Reader(model)
    try:
        items = make_items(reader, sides, metric, named, padding_read(reader, metric, sides))
    except NeoxLabError:  # the question refuses that in its own words
        return
    found = [finding for finding in findings(items) if finding.severity == "warning"]
    if not found:
        return
    listener, words = _listener.get(), in_short(found, len(items))
    if listener is None:
        warnings.warn(words, PromptWarning, stacklevel=_outside())
    else:
        listener(words)


@contextmanager
def findings_go_to(listener: Callable[[str], object]) -> Iterator[None]:
    """Hand what would be warned of to ``listener`` for a ``with`` block, in this thread."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def ignore(words: str) -> None:
    """A listener for questions that are asked again about prompts that were told of."""


def in_short(found: list[Finding], count: int) -> str:
    """Findings in a few sentences, the first of each kind in its own words.

    Args:
        found: at least one.
        count: how many items were checked.
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in found:
        kinds.setdefault(finding.check, []).append(finding)
    told = []
    for check, same in list(kinds.items())[:NAMED]:
        where = ""
        if count > 1:
            rows = list(dict.fromkeys(finding.item for finding in same))
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            where = f" (item{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:NAMED]))}{more})"
        told.append(f"{check}{where}: {same[0].wrong}")
    left = [check for check in kinds][NAMED:]
    rest = f" Also {', '.join(left)}." if left else ""
    return (
        f"These prompts may mislead. {' '.join(told)}{rest} "
        "nl.check_prompts(model, clean, corrupted, metric) lists all that was found, with what to "
        "do."
    )


def _outside() -> int:
    """The stack level of the first caller that is neither this package nor PyTorch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in ("neox_lab", "torch"):
            break
        level, frame = level + 1, frame.f_back
    return level
