"""Damaged files of the newer rooms: see ``test_hostile_files.py``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from file_kinds import FileKind
from file_kinds_of_newer_rooms import SHARES, newer_file_kinds
from test_hostile_files import SMALL, attack

from neox_lab.dynamics.fetching import Fetcher
from neox_lab.dynamics.sources import Hub
from neox_lab.errors import CheckpointError

LARGE = 6_000
"""Inputs in all, roughly; most of these files take longer to read than older ones."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileKind]:
    made = newer_file_kinds(tmp_path_factory.mktemp("good"))
    assert sorted(made) == sorted(SHARES)
    return made


@pytest.mark.parametrize("name", SHARES)
def test_damaged_files(name: str, kinds: dict[str, FileKind], tmp_path: Path) -> None:
    attack(kinds[name], tmp_path, max(1, SMALL * SHARES[name] // 1000))


def test_a_note_leads_to_no_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a note says was downloaded is deleted: only in the folder of a commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models--lab--model" / "snapshots").mkdir(parents=True)
    own, notes = tmp_path / "own" / "thesis.txt", tmp_path / "run"
    own.parent.mkdir(), notes.mkdir()
    own.write_text("all of it")
    commit = "../../../own"
    content = {"commit": commit, "files": [], "blobs": []}
    (notes / ".downloaded-x.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no commit"):
        Fetcher(Hub("lab/model"), keep=False, notes=notes).clean()
    assert own.read_text() == "all of it"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_many_damaged_files(name: str, kinds: dict[str, FileKind], tmp_path: Path) -> None:
    attack(kinds[name], tmp_path, LARGE * SHARES[name] // 1000)
