"""What transformers has changed since the version that the tests were written against.

That version is the one in ``constraints.txt``. CI runs the tests that ask transformers a second
time with the newest one there is. A test that sees a change known here is expected to fail, and
says which change it sees; any other that fails is a change nobody has looked at yet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.version import Version

_CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"


@dataclass(frozen=True)
class Change:
    """One change of transformers.

    Attributes:
        since: the first version that has it.
        what: what is different.
        seen_by: tests that compare just that, by their ids; others allow for both versions.
    """

    since: str
    what: str
    seen_by: tuple[str, ...] = ()


CHANGES = (
    Change(
        "5.24",
        "the key-value cache is called cache in forward, generate and outputs; past_key_values "
        "works until 5.40, with a warning",
        (
            "tests/model/test_outputs.py::test_they_are_read_as_transformers_are[True]",
            "tests/model/test_outputs.py::test_they_are_written_by_name_and_by_attribute",
        ),
    ),
    Change("5.24", "outputs have a metaclass, which renames the cache in their constructors"),
    Change("5.24", "beam sampling sorts the candidates that it draws"),
    Change("5.24", "prefix_allowed_tokens_fn is given numbers of prompts, not of rows"),
    Change(
        "5.24", "generating in training mode while recomputing gives the evaluation mode's text"
    ),
    Change("5.40", "past_key_values is no longer understood"),
)


def changes_between(pinned: Version, installed: Version) -> list[Change]:
    """The changes that ``installed`` has and ``pinned`` has not."""
    return [change for change in CHANGES if pinned < Version(change.since) <= installed]


def versions() -> tuple[Version, Version] | None:
    """The version the tests were written against, and the one installed; None without one."""
    try:
        installed = Version(version("transformers"))
    except PackageNotFoundError:
        return None
    match = re.search(r"^transformers==(\S+)", _CONSTRAINTS.read_text(), re.MULTILINE)
    return None if match is None else (Version(match[1]), installed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect tests to fail that see a change the installed version has."""
    known = versions()
    for change in changes_between(*known) if known else ():
        reason = f"transformers {change.since}: {change.what}"
        for item in items:
            if item.nodeid in change.seen_by:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what may be behind a difference, where transformers is newer than the tests."""
    known = versions()
    if known is None or known[1] <= known[0]:
        return
    pinned, installed = known
    write = terminalreporter.write_line
    terminalreporter.write_sep("=", f"transformers {installed}, tests written against {pinned}")
    for change in changes_between(pinned, installed):
        write(f"since {change.since}: {change.what}")
        for test in change.seen_by:
            write(f"    seen by {test}")
    failed = [report.nodeid for report in terminalreporter.stats.get("failed", ())]
    if failed:
        write(
            f"{len(failed)} failed that see none of these by name. Where transformers {installed} "
            "changed something that is not listed, add it to tests/newer_transformers.py, and to "
            "docs/differences.md if it stays:"
        )
    for test in failed:
        write(f"    {test}")
