"""Damaged files of every kind: a right answer or an error in words, and no file changed."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from file_kinds import SHARES, FileKind, file_kinds
from hypothesis import given, settings
from judge import SAME, outcome, untouched

from neox_lab.errors import NeoxLabError

SMALL, LARGE = 1000, 60_000
"""Inputs in all, roughly; each kind of file gets its share."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileKind]:
    made = file_kinds(tmp_path_factory.mktemp("good"))
    assert sorted(made) == sorted(SHARES)
    return made


def attack(kind: FileKind, folder: Path, count: int) -> None:
    """Damage a file ``count`` times, each time anew."""
    if kind.folder is not None:
        shutil.copytree(kind.folder, folder, dirs_exist_ok=True)
    path = folder / kind.name

    @settings(max_examples=count, database=None, derandomize=SAME)
    @given(kind.damages)
    def run(damages: list[tuple[str, int, object]]) -> None:
        content = kind.damaged(damages)
        path.write_bytes(content)
        if kind.writes:
            if isinstance(outcome(lambda: kind.read(path)), NeoxLabError):
                assert path.read_bytes() == content
            assert [path] == list(folder.iterdir())
        else:
            with untouched(folder):
                outcome(lambda: kind.read(path))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


@pytest.mark.parametrize("name", SHARES)
def test_damaged_files(name: str, kinds: dict[str, FileKind], tmp_path: Path) -> None:
    attack(kinds[name], tmp_path, max(1, SMALL * SHARES[name] // 1000))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_many_damaged_files(name: str, kinds: dict[str, FileKind], tmp_path: Path) -> None:
    attack(kinds[name], tmp_path, LARGE * SHARES[name] // 1000)
