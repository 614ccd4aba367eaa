"""Every benchmark runs where it is told to, says on what, and stands in the table of its folder."""

from __future__ import annotations

import argparse
import ast
import mmap
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
# What several share, one's other side, and what runs all of them.
PARTS = {"devices.py", "eap_ig.py", "everything.py"}
BENCHMARKS = sorted(path for path in FOLDER.glob("*.py") if path.name not in PARTS)


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [node for node in nodes if isinstance(node.func, ast.Name) and node.func.id == name]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_takes_a_device_and_prints_its_name(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (main,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    assert len(calls_of(main, "add_device")) == 1
    shown = [call for call in calls_of(main, "print") if calls_of(call, "header")]
    assert len(shown) == 1
    # A GPU goes on by itself: its times are those of ``devices``, which waits.
    waiting = {
        alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names
    }
    times = {"seconds", "timed", "wait"} & waiting
    assert times or path.stem in ("views", "explorer"), "its times do not wait for a GPU"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_is_in_the_table(path: Path) -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    (line,) = [
        each for each in table.splitlines() if each.startswith(f"| `python benchmarks/{path.name}")
    ]
    assert "--device cuda" in line


def test_everything_runs_each_of_them() -> None:
    commands = runpy.run_path(str(FOLDER / "everything.py"))["COMMANDS"].values()
    # A machine with a GPU is asked by hand.
    assert {command.split()[0] for command in commands} | {"on_a_gpu.py"} == {
        path.name for path in BENCHMARKS
    }


def devices() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "devices.py"))


def test_the_header_names_the_processor() -> None:
    there = devices()
    named = there["name_of"]("cpu")
    if Path("/proc/cpuinfo").exists():
        assert named.split(" (model")[0] in Path("/proc/cpuinfo").read_text()
    told = there["header"]("cpu", "float32")
    assert told.startswith(f"torch {torch.__version__}, {named}, ")
    assert told.endswith(", float32")
    parser = argparse.ArgumentParser()
    there["add_device"](parser)
    assert parser.parse_args([]).device == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there_ends_the_program() -> None:
    with pytest.raises(SystemExit, match="--device cuda: PyTorch sees no CUDA device"):
        devices()["header"]("cuda")


def test_times_and_memory() -> None:
    there = devices()
    if Path("/proc/self/clear_refs").exists():
        memory = there["Peak"]("cpu")
        with mmap.mmap(-1, 2**25) as pages:  # new ones, unlike what a tensor gets from the heap
            pages.write(b"1" * 2**25)
        assert 30e6 < memory.nbytes() < 300e6
    seconds, found = there["timed"](lambda: 5, "cpu")
    assert found == 5
    assert 0 <= seconds < 5
    assert there["seconds"](lambda: 5, "cpu", lambda: 3.0) == 0.0


def test_a_gpu_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append(f"wait {device}"))
    devices()["seconds"](lambda: told.append("run"), "cuda:0")
    assert told == ["wait cuda:0", "run", "wait cuda:0"]
