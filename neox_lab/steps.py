"""What the name of a revision says: after how many steps of training it was saved.

    step_of("step1000")                    # 1000, as Pythia's branches are called
    step_of("checkpoint-500")              # 500, as transformers' Trainer calls its folders
    step_of("stage1-step5000-tokens21B")   # 5000
    step_of("main")                        # None

A name that says nothing is not interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from neox_lab.errors import nearest

_STEP = re.compile(r"(?:^|[-_/.])(?:step|checkpoint)[-_]?(\d{1,15})(?=$|[-_/.])", re.IGNORECASE)


def step_of(name: str) -> int | None:
    """The step that a revision is named after; None where its name says none."""
    found = _STEP.search(name)
    return None if found is None else int(found[1])


def nearest_revisions(name: str, known: Iterable[str]) -> str:
    """A sentence naming the revisions closest to one that does not exist; empty without any.

    Of a step, these are the steps on both sides.

    Args:
        name: what was asked for.
        known: what there is.
    """
    names, step = list(known), step_of(name)
    steps = {found: each for each in names if (found := step_of(each)) is not None}
    if step is None or not steps:
        return nearest(name, names)
    sides = [
        max((each for each in steps if each < step), default=None),
        min((each for each in steps if each >= step), default=None),
    ]
    closest = " and ".join(repr(steps[each]) for each in sides if each is not None)
    return f" The nearest that exist: {closest}."
