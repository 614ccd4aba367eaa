"""Test files have names of their own: pytest imports them all into one namespace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_no_two_test_files_have_one_name() -> None:
    files = [path for path in TESTS.rglob("*.py") if path.name != "conftest.py"]
    alone = [path for path in files if not (path.parent / "__init__.py").exists()]  # no package
    names = Counter(path.name for path in alone)
    assert [name for name, count in names.items() if count > 1] == []


def test_nobody_imports_a_conftest() -> None:
    """There are several, and which one is meant depends on what was imported before."""
    importing = [
        path.relative_to(TESTS)
        for path in TESTS.rglob("*.py")
        if "from conftest " + "import" in path.read_text(encoding="utf-8")
    ]
    assert importing == []
