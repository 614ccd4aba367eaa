"""A hub that fails in the middle of a file: no half file is taken for whole, and a retry works."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from small_hub import MAIN, Repository
from test_downloads_interrupted import hub  # noqa: F401 - a fixture

from neox_lab.errors import CheckpointError
from neox_lab.hub import HubOptions, find_file

CONTENTS = {
    "config.json": b'{"hidden_size": 24, "vocab_size": 50}',
    "weights.bin": random.Random(1).randbytes(300_000),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("how", ["cut", "500", "short", "long"])
def test_no_half_file_is_taken_for_whole(
    hub: Repository,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    how: str,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # huggingface_hub waits before it retries
    hub.commits[MAIN] = dict(CONTENTS)
    options = HubOptions(cache_dir=tmp_path)
    hub.failing = {name: how}
    with pytest.raises(CheckpointError) as refused:
        find_file("lab/model", name, options)
    assert "lab/model" in str(refused.value) or name in str(refused.value)
    assert not [*tmp_path.glob("models--lab--model/snapshots/*/*")]
    offline = HubOptions(cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(CheckpointError):
        find_file("lab/model", name, offline)
    hub.failing = {}
    for given in (options, offline):
        path = find_file("lab/model", name, given)
        assert path is not None and path.read_bytes() == CONTENTS[name]
