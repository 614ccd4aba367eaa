"""Ctrl-C while files are fetched: what the cache shows is whole, and the next try gets the rest."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from small_hub import MAIN, Repository, SmallHub
from striking import chosen, moments, strike, strike_by_clock

from neox_lab.hub import HubOptions, find_file

CONTENT = random.Random(0).randbytes(3_000_000)


@pytest.fixture
def hub(server: SmallHub, monkeypatch: pytest.MonkeyPatch) -> Repository:
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    repository = Repository()
    repository.commits[MAIN]["weights.bin"] = CONTENT
    server.repositories["lab/model"] = repository
    return repository


def interrupt_all(folder: Path, strikes: int, by_clock: int) -> None:
    options = HubOptions(cache_dir=folder / "cache")

    def fetch() -> None:
        for name, content in (("config.json", b"{}"), ("weights.bin", CONTENT)):
            path = find_file("lab/model", name, options)
            assert path is not None and path.read_bytes() == content

    def check() -> None:
        for path in (folder / "cache").glob("models--lab--model/snapshots/*/*"):
            whole = {"config.json": b"{}", "weights.bin": CONTENT}[path.name]
            assert path.read_bytes() == whole
        fetch()
        shutil.rmtree(folder / "cache")

    fetch()
    shutil.rmtree(folder / "cache")
    start = time.monotonic()
    files = moments(fetch)
    seconds = time.monotonic() - start
    shutil.rmtree(folder / "cache")
    for at in chosen(files, strikes, "hub"):
        strike(fetch, at)
        check()
    chance = random.Random(0)
    for _ in range(by_clock):
        wait = chance.uniform(0, 1.2 * seconds)
        strike_by_clock(fetch, wait)
        check()


def test_an_interrupted_download_is_whole_or_absent(hub: Repository, tmp_path: Path) -> None:
    interrupt_all(tmp_path, strikes=12, by_clock=8)


@pytest.mark.slow
def test_two_hundred_interrupted_downloads(hub: Repository, tmp_path: Path) -> None:
    interrupt_all(tmp_path, strikes=100, by_clock=100)
