"""Questions sent to Dask, submitit and pools of processes: the answers and bytes of one process."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("distributed", reason="needs what `pip install -e '.[cluster]'` brings")
pytest.importorskip("submitit", reason="needs what `pip install -e '.[cluster]'` brings")

import distributed
import pandas as pd
import submitit

import neox_lab as nl
from neox_lab.activations import collecting

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STEPS = [0, 1250, 18000]
TEXTS = [f"The {one} saw {other}." for one in ("cat", "dog", "bird") for other in "abcdefgh"] * 3


def norm(model: Any) -> dict[str, float]:
    weight = model.gpt_neox.embed_in.weight.detach()
    return {"norm": float(weight.double().norm()), "first": float(weight[0, 0])}


def dies_once(mark: Path, model: Any) -> dict[str, float]:
    """Ends its process at one of the revisions, in the middle of all, if none has ended before."""
    found = norm(model)
    if found["first"] == middle() and not mark.exists():
        mark.touch()
        os._exit(1)
    return found


@functools.cache
def middle() -> float:
    return norm(nl.load(revision="step1250"))["first"]


@pytest.fixture(autouse=True)
def for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes import this file, and read no more threads than this one."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(collecting, "FEWEST", 40)
    monkeypatch.setattr(collecting, "SHARD_BYTES", 0)


class Cluster(NamedTuple):
    client: Any
    workers: list[subprocess.Popen[bytes]]


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler and two workers, each a process of its own, as they run on a cluster."""
    place = tmp_path / "scheduler.json"
    ours = ["--scheduler-file", str(place)]
    begin = [sys.executable, "-m", "dask"]
    log = (tmp_path / "dask.log").open("wb")
    scheduler = subprocess.Popen(
        [*begin, "scheduler", *ours, "--port", "0", "--no-dashboard"], stdout=log, stderr=log
    )
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
    options += ["--local-directory", str(tmp_path / "dask")]
    workers = [
        subprocess.Popen([*begin, "worker", *ours, *options], stdout=log, stderr=log)
        for _ in range(2)
    ]
    try:
        with distributed.Client(scheduler_file=str(place), timeout=60) as client:
            client.wait_for_workers(2, timeout=120)
            yield Cluster(client, workers)
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()
        log.close()


def run(measure: Any, **options: Any) -> pd.DataFrame:
    return nl.dynamics.run(measure, steps=STEPS, progress=False, **options).frame


def collect(folder: Path, **options: Any) -> Any:
    settings = {"sites": ["resid_post", "mlp_out"], "batch_size": 4, "progress": False}
    return nl.activations.collect(nl.load(), TEXTS, to=folder, **settings | options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


# --- Dask ------------------------------------------------------------------------------------


def test_a_dask_worker_is_killed_in_the_middle_of_a_run(dask: Cluster, tmp_path: Path) -> None:
    measure = functools.partial(dies_once, tmp_path / "died")
    folder = tmp_path / "run"
    found = run(measure, executor=dask.client.get_executor(), to=folder)
    assert (tmp_path / "died").exists()
    assert [worker.poll() is None for worker in dask.workers].count(True) == 1
    same(found, run(norm))
    run(measure, to=tmp_path / "here")
    records, others = content(folder), content(tmp_path / "here")
    assert records == others


def test_a_dask_worker_is_killed_while_it_writes(dask: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "there"

    def kill() -> None:
        until = time.monotonic() + 120
        while not list(folder.glob("00*.safetensors")) and time.monotonic() < until:
            time.sleep(0.002)
        dask.workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    stored = collect(folder, executor=dask.client.get_executor())
    killer.join()
    assert len(stored.manifest.shards) > 5
    collect(tmp_path / "here")
    assert content(folder) == content(tmp_path / "here")


# --- submitit --------------------------------------------------------------------------------


def test_submitit(tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    measure = functools.partial(dies_once, tmp_path / "died")
    same(run(measure, executor=executor), run(norm))
    assert (tmp_path / "died").exists()
    collect(tmp_path / "there", executor=executor, max_tokens=70)
    collect(tmp_path / "here", max_tokens=70)
    assert content(tmp_path / "there") == content(tmp_path / "here")


# --- pools of processes ----------------------------------------------------------------------


def test_a_spawned_process_dies(tmp_path: Path) -> None:
    measure = functools.partial(dies_once, tmp_path / "died")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        same(run(measure, executor=pool, to=tmp_path / "run"), run(norm))
    assert (tmp_path / "died").exists()
