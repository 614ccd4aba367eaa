"""The list of transformers' changes, and what a run with a newer version says of them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from newer_transformers import CHANGES, changes_between, versions
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def test_changes_count_from_the_pinned_version_on() -> None:
    pinned = Version("5.23.0")
    assert changes_between(pinned, pinned) == []
    assert {c.since for c in changes_between(pinned, Version("5.24.0"))} == {"5.24"}
    assert changes_between(Version("5.24.0"), Version("5.30")) == []
    assert len(changes_between(pinned, Version("6"))) == len(CHANGES)
    assert versions() is not None


@pytest.mark.parametrize("test", [test for change in CHANGES for test in change.seen_by])
def test_a_test_that_sees_a_change_is_there(test: str) -> None:
    file, name = test.split("[")[0].split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_run_with_a_newer_version_says_which_change_it_saw(tmp_path: Path) -> None:
    seen = "tests/model/test_outputs.py::test_they_are_written_by_name_and_by_attribute"
    sees, other = seen.split("::")
    (tmp_path / "tests/model").mkdir(parents=True)
    (tmp_path / sees).write_text(f"def {other}():\n    assert False\n\ndef test_b():\n    1 / 0\n")
    (tmp_path / "tests/conftest.py").write_text(
        "import newer_transformers as newer\n"
        "from packaging.version import Version\n"
        "newer.versions = lambda: (Version('5.23.0'), Version('5.24.0'))\n"
        "from newer_transformers import pytest_collection_modifyitems, pytest_terminal_summary\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rx", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 1 xfailed" in run.stdout
    assert "transformers 5.24: the key-value cache is called cache" in run.stdout
    assert "transformers 5.24.0, tests written against 5.23.0" in run.stdout
    assert "since 5.24: beam sampling sorts the candidates" in run.stdout
    unknown = run.stdout.split("1 failed that see none of these by name")[1].split("====")[0]
    assert "    tests/model/test_outputs.py::test_b\n" in unknown and seen not in unknown
