"""The result: a row for each finding, and the prompts with what was found marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from neox_lab.checks import check, or_none, whole
from neox_lab.errors import InputError
from neox_lab.experiments.prompt_doctor.checks import CHECKS, Finding
from neox_lab.frames import make_frame
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import PairView

SEVERITIES = ("error", "warning", "note")
SHOWN = 12
"""Findings that are printed."""


@dataclass(frozen=True, kw_only=True)
class PromptReport(Result):
    """What the checks found.

    Attributes:
        findings: item by item.
        pieces: of each item its prompts' tokens, by the names of the prompts.
    """

    findings: tuple[Finding, ...]
    pieces: tuple[dict[str, list[str]], ...]

    @property
    def ok(self) -> bool:
        """Whether there are only notes, if anything."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def bad_items(self) -> list[int]:
        """Items with an error or a warning: the ones to mend or to leave out."""
        return list(dict.fromkeys(f.item for f in self.findings if f.severity != "note"))

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each finding.

        ``item``, ``check``, ``severity``; where it is: ``prompt``, ``pos`` and ``token``, missing
        where it is no one token; what is ``wrong``, and what to do, ``advice``.
        """
        import pandas as pd

        frame = make_frame([f._asdict() for f in self.findings], columns=list(Finding._fields))
        frame["item"] = frame["item"].astype("int64")
        frame["pos"] = pd.array([f.pos for f in self.findings], dtype="Int64")
        return frame

    @property
    def title(self) -> str:
        """The outcome in a line."""
        count = len(self.pieces)
        items = f"{count} item{'s' * (count != 1)}"
        if not self.findings:
            return f"Prompts: nothing found in {items}"
        counts = [sum(f.severity == severity for f in self.findings) for severity in SEVERITIES]
        named = zip(counts, SEVERITIES, strict=True)
        told = [f"{number} {name}{'s' * (number > 1)}" for number, name in named if number]
        bad = f", in {len(self.bad_items)} of {items}" if count > 1 and self.bad_items else ""
        return f"Prompts: {', '.join(told)}{bad}"

    def view(self, item: int | None = None) -> PairView:
        """The prompts of one item below each other, and all that was found.

        Args:
            item: which; None is the first with an error or a warning, else with a note.

        Raises:
            InputError: there is no such item.
        """
        from neox_lab.views import PairView

        most = len(self.pieces) - 1
        chosen = check("item", item, or_none(whole(least=0, most=most)), InputError)
        if chosen is None:
            chosen = next(iter(self.bad_items), self.findings[0].item if self.findings else 0)
        own = [finding for finding in self.findings if finding.item == chosen]
        marks: dict[tuple[str, int], tuple[str, str]] = {}
        for finding in sorted(own, key=lambda f: SEVERITIES.index(f.severity)):
            if finding.pos is not None:
                place = finding.prompt.replace("pair", "clean"), finding.pos
                severity, names = marks.get(place, (finding.severity, ""))
                name = finding.check.replace("_", " ")
                marks[place] = severity, f"{names}, {name}" if names else name
        more = f"Item {chosen} of {len(self.pieces)}. " * (len(self.pieces) > 1)
        return PairView(
            self.pieces[chosen],
            marks,
            title=self.title,
            note=f"{more}What differs is tinted; what was found is named below its token.",
            found=[_row(finding) for finding in self.findings],
        )

    def __repr__(self) -> str:
        """The findings, each with what to do."""
        lines = [self.title]
        for finding in self.findings[:SHOWN]:
            lines += ["", f"{_place(finding)}: {finding.check} ({finding.severity})"]
            lines += [f"    {finding.wrong}", f"    {finding.advice}"]
        if len(self.findings) > SHOWN:
            left = len(self.findings) - SHOWN
            lines += ["", f"... and {left} more; .frame has them all."]
        if not self.findings:
            lines += ["", f"{len(CHECKS)} checks: {', '.join(check.name for check in CHECKS)}."]
        return "\n".join(lines)


def _place(finding: Finding) -> str:
    """Where something was found."""
    at = "" if finding.pos is None else f", token {finding.pos} {finding.token!r}"
    return f"item {finding.item}, {finding.prompt}{at}"


def _row(finding: Finding) -> dict[str, object]:
    """A finding in the table below the picture."""
    return {
        "item": finding.item,
        "check": finding.check,
        "severity": finding.severity,
        "where": _place(finding).partition(", ")[2],
        "what is wrong": finding.wrong,
        "what to do": finding.advice,
    }
