"""Test files have names of their own, as pytest imports them all into one namespace; what runs of
a test leave behind is not kept."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

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


def test_nothing_that_a_run_left_is_kept() -> None:
    if shutil.which("git") is None or not (TESTS.parent / ".git").exists():
        pytest.skip("this is no checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TESTS.parent, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    assert [name for name in listed if name.endswith(".lock")] == []
    tops = {name.split("/")[0] for name in listed if "/" in name}
    known = {".ci", ".github", "benchmarks", "docs", "neox_lab", "notebooks", "tests"}
    assert tops <= known, "folders that a run was given as a hostile argument?"
