"""The checks inside questions: one notice of what makes the answer mean something else.

    warn_of_prompts(model, metric, {"clean": prompts, "corrupted": others})

Tokens are read and nothing is run. Errors are not told here, because questions refuse them in their
own words; notes are left to ``nl.check_prompts``, and lengths are told where a text is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from neox_lab.errors import NeoxLabError, PromptWarning
from neox_lab.experiments.prompt_doctor.checks import Finding, findings
from neox_lab.experiments.prompt_doctor.items import Reader, make_items
from neox_lab.experiments.prompt_doctor.padding import padding_read
from neox_lab.notices import tell

if TYPE_CHECKING:
    from neox_lab.experiments.patching.prompts import Prompts
    from neox_lab.family.contract import HookedModel

NAMED = 3
"""Items, and kinds of findings, that are named in a notice."""


def warn_of_prompts(
    model: HookedModel, metric: object, sides: Mapping[str, Prompts], named: bool = False
) -> None:
    """Tell once of prompts and answers that make a number mean something else.

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
    found = [f for f in findings(items) if f.severity == "warning" and f.check != "too_long"]
    if found:
        tell(in_short(found, len(items)), PromptWarning)


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
