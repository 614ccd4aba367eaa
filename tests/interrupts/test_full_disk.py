"""A disk that is full: a clear error, the files of before, nothing left over."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import randomize

import neox_lab as nl
from neox_lab.errors import CheckpointError
from neox_lab.tasks import checkpoints
from neox_lab.views.notebooks import clean_notebook

IDS = torch.arange(24)[None] + 3
ROOM = 1 << 20


@pytest.fixture(params=["small disk", "largest file"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder with room for a megabyte: a file system of that size, or a limit of the system's.

    Without the right to mount one, both are the limit.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)]
    if request.param == "small disk" and shutil.which("mount"):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            try:
                yield place
            finally:
                subprocess.run(["umount", "-l", str(place)], check=True)
            return
    with _largest_file(ROOM):
        yield place


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def model(vocab: int) -> Any:
    config = nl.GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    ours = nl.GPTNeoXForCausalLM(config).eval()
    randomize(ours, std=0.3)
    return ours


SMALL, LARGE = model(64), model(14_000)


def notebook(folder: Path, which: Any) -> None:
    """A notebook that takes three times the room when it is written out one number a line."""
    path = folder / "a.ipynb"
    if which is SMALL:
        metadata = {"widgets": {}, "numbers": [0] * 200_000}
        content = {"cells": [], "metadata": metadata}
        path.write_text(json.dumps(content, separators=(",", ":")))
    else:
        clean_notebook(path)


def adapter(folder: Path, which: Any) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    ours = model(64)
    rank = 1 if which is SMALL else 2000
    ours.add_adapter(peft.LoraConfig(r=rank, target_modules=["query_key_value"]))
    ours.save_pretrained(folder)


WRITES: dict[str, Callable[[Path, Any], object]] = {
    "save_pretrained": lambda folder, which: which.save_pretrained(folder),
    "in shards": lambda folder, which: which.save_pretrained(folder, max_shard_size="700KB"),
    "cache": lambda folder, which: which.run_with_cache(IDS)[1].save(folder / "a.safetensors"),
    "spill": lambda folder, which: which.run_with_cache(
        IDS, budget=10, spill=folder / f"{which.config.vocab_size}.safetensors"
    ),
    "training state": lambda folder, which: checkpoints.save(folder, 3, which.state_dict()),
    "notebook": notebook,
    "adapter": adapter,
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_is_said_and_costs_nothing(folder: Path, name: str) -> None:
    WRITES[name](folder, SMALL)
    before = contents(folder)
    with pytest.raises((CheckpointError, OSError), match=r"No space left|File too large"):
        WRITES[name](folder, LARGE)
    assert contents(folder) == before
