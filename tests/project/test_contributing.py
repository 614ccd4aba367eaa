"""CONTRIBUTING.md sends people to files that are there."""

from __future__ import annotations

import re

import pytest
from rooms import ROOT

TASKS = (
    "add a hook point",
    "add a logits processor",
    "add a patching site",
    "add a view",
    "add a rotary type",
    "add a metric",
    "add a prompt check",
    "mend the tokenizer",
    "add a task head",
    "add a widget",
    "add a lens",
    "add a dictionary format",
    "add a checkpoint format",
)
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATH = re.compile(r"`((?:neox_lab|tests|benchmarks|notebooks|docs)/[\w./-]+|\.ci/\w+)`")


def section(task: str) -> str:
    found = re.search(rf"^### {task}\n(.*?)(?=^### |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, f"CONTRIBUTING.md does not say how to {task}"
    return found[1]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_names_files_that_exist(task: str) -> None:
    files = PATH.findall(section(task))
    assert files, "names no file"
    missing = [name for name in files if not (ROOT / name).is_file()]
    assert not missing


def test_every_other_file_named_exists_too() -> None:
    assert [name for name in PATH.findall(TEXT) if not (ROOT / name).exists()] == []
