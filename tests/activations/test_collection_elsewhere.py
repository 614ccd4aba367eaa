"""A collection whose files other processes write: the same bytes, whatever becomes of these."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from backwards import Backwards
from collected_model import build

import neox_lab as nl
from neox_lab.activations import collecting, writing
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.family import origins

pytestmark = pytest.mark.usefixtures("one_thread")
IDS = [[1 + (row * pos) % 49 for pos in range(1 + row % 13)] for row in range(30)]


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "FEWEST", 20)
    monkeypatch.setattr(collecting, "SHARD_BYTES", 0)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    build().save_pretrained(folder)
    return nl.GPTNeoXForCausalLM.from_pretrained(folder)


def collect(model: Any, folder: Path, texts: Any = IDS, **given: Any) -> Any:
    settings = {"sites": ["resid_post", "mlp_out"], "to": folder, "context": 8, "progress": False}
    return nl.activations.collect(model, texts, **settings | given)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_are_those_of_one_machine(loaded: Any, tmp_path: Path) -> None:
    collect(loaded, tmp_path / "here")
    executor = Backwards()
    stored = collect(loaded, tmp_path / "there", iter(IDS), executor=executor)
    assert stored.manifest.complete
    assert len(stored.manifest.shards) > 8
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert len(executor.sent) == len(stored.manifest.shards)
    assert max(map(len, executor.sent)) < 4000, "what is sent is small"


def test_each_process_loads_once(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins._kept.clear()
    loads = []
    real = origins.Origin._load
    monkeypatch.setattr(
        origins.Origin, "_load", lambda origin: loads.append(origin.place) or real(origin)
    )
    collect(loaded, tmp_path / "a", executor=Backwards())
    collect(loaded, tmp_path / "b", executor=Backwards())
    assert loads == [loaded.config.name_or_path]
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = type(loaded).from_pretrained(loaded.config.name_or_path, dtype=dtype)
        collect(other, tmp_path / str(dtype), executor=Backwards())
    assert len(origins._kept) == origins.KEPT


def test_the_built_in_model(tmp_path: Path) -> None:
    texts = ["The cat sat on the mat.", "The dog saw the cat.", "A bird sang."] * 4
    for kind in ("causal-lm", "token-classification"):
        model = nl.load(head=kind)
        collect(model, tmp_path / f"here {kind}", texts)
        collect(model, tmp_path / f"there {kind}", texts, executor=Backwards())
        assert content(tmp_path / f"here {kind}") == content(tmp_path / f"there {kind}")


# --- stopped ---------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [Backwards, lambda: None])
def test_what_workers_wrote_before_it_stopped_is_not_made_again(
    again: Callable[[], Any], loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writing.write_shard

    def interrupted(*arguments: Any) -> Any:
        if arguments[4] == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(writing, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(loaded, tmp_path / "there", executor=Backwards())
    assert nl.activations.open(tmp_path / "there").manifest.shards == []
    there = {int(path.stem) for path in (tmp_path / "there").glob("0*")}
    assert len(there) > 5 and not there & {0, 1}
    made = []

    def counted(*arguments: Any) -> Any:
        made.append(arguments[4])
        return real(*arguments)

    for module in (writing, collecting):
        monkeypatch.setattr(module, "write_shard", counted)
    stored = collect(loaded, tmp_path / "there", executor=again())
    everything = set(range(len(stored.manifest.shards)))
    assert sorted(made) == sorted(everything - there)
    for module in (writing, collecting):
        monkeypatch.setattr(module, "write_shard", real)
    collect(loaded, tmp_path / "here")
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_long_manifest_is_written_as_it_grows(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "GROWTH", 2)
    collect(loaded, tmp_path / "here")
    real, write = writing.write_shard, collecting.Manifest.write
    lengths = []

    def counted(manifest: Any, folder: Path) -> None:
        lengths.append(len(manifest.shards))
        write(manifest, folder)

    def interrupted(*arguments: Any) -> Any:
        if arguments[4] == 9:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(collecting.Manifest, "write", counted)
    monkeypatch.setattr(writing, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(loaded, tmp_path / "there", executor=Backwards(0))
    assert lengths == [0, 1, 2, 4, 7]
    assert len(nl.activations.open(tmp_path / "there").manifest.shards) == 7
    assert len(list((tmp_path / "there").glob(".*.written.json"))) == 2  # 7 and 8
    monkeypatch.setattr(writing, "write_shard", real)
    collect(loaded, tmp_path / "there", executor=Backwards(0))
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_note_of_other_texts_or_of_half_a_file_counts_for_nothing(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(loaded, tmp_path / "here")
    shard = nl.activations.open(tmp_path / "here").manifest.shards[0]
    folder = tmp_path / "there"
    monkeypatch.setattr(collecting, "write_shard", None)
    with pytest.raises(TypeError):
        collect(loaded, folder)
    (folder / shard.file).write_bytes(b"half")
    for text in ("{", "[]", '{"file": 3}'):
        (folder / ".000000.written.json").write_text(text)
        assert writing.noted(folder, 0, shard.tokens) is None
    writing.write_text(folder / ".000000.written.json", writing.json.dumps(writing.asdict(shard)))
    assert writing.noted(folder, 0, shard.tokens) is None
    (folder / shard.file).write_bytes((tmp_path / "here" / shard.file).read_bytes())
    assert writing.noted(folder, 0, "other") is None
    assert writing.noted(folder, 0, shard.tokens) == shard
    collect(loaded, folder, executor=Backwards())
    assert content(folder) == content(tmp_path / "here")


@pytest.mark.slow
def test_a_worker_that_dies(loaded: Any, tmp_path: Path) -> None:
    collect(loaded, tmp_path / "here")
    context = multiprocessing.get_context("forkserver")
    prepare = functools.partial(one_thread_that_dies_at, tmp_path / "died", 3)
    with ProcessPoolExecutor(2, context, prepare) as pool:
        collect(loaded, tmp_path / "there", executor=pool)
    assert (tmp_path / "died").exists()
    assert content(tmp_path / "there") == content(tmp_path / "here")


def one_thread_that_dies_at(mark: Path, number: int) -> None:
    """Make this process end in the middle of a file, if none has before."""
    torch.set_num_threads(1)
    real = writing.checksum

    def checksum(path: Path) -> str:
        if f".{number:06d}." in path.name and not mark.exists():
            mark.touch()
            os._exit(1)
        return real(path)

    writing.checksum = checksum


# --- refused ---------------------------------------------------------------------------------


def test_models_that_nobody_could_load_again(loaded: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"made here and came from no folder.*save_pretrained"):
        collect(build(), tmp_path / "a", executor=Backwards())
    hooks = [("blocks.0.hook_resid_post", lambda value, hook: value * 2)]
    with loaded.hooks(fwd_hooks=hooks), pytest.raises(InputError, match="Hooks are in place at bl"):
        collect(loaded, tmp_path / "a", executor=Backwards())
    streamed = type(loaded).from_pretrained(loaded.config.name_or_path, max_memory={"cpu": "18KB"})
    with pytest.raises(InputError, match=r"Layers of the model are read from its files here"):
        collect(streamed, tmp_path / "a", executor=Backwards())
    assert not (tmp_path / "a").exists()
    changed = type(loaded).from_pretrained(loaded.config.name_or_path)
    with torch.no_grad():
        changed.gpt_neox.embed_in.weight[3, 3] += 1
    with pytest.raises(InputError, match=r"another model than the one given: weights differ.*save"):
        collect(changed, tmp_path / "b", executor=Backwards())
    changed.save_pretrained(tmp_path / "changed")
    saved = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path / "changed")
    collect(saved, tmp_path / "b", executor=Backwards())


def test_what_is_wrong_is_said_as_on_one_machine(loaded: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        collect(loaded, tmp_path / "a", executor=3)
    collect(loaded, tmp_path / "a", executor=Backwards())
    with pytest.raises(CheckpointError, match="other texts"):
        collect(loaded, tmp_path / "a", IDS[:5], executor=Backwards())
    broken = type(loaded).from_pretrained(loaded.config.name_or_path)
    with torch.no_grad():
        broken.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[0] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    broken = type(loaded).from_pretrained(tmp_path / "broken")
    with pytest.warns(NeoxLabWarning, match=r"'blocks.1.hook_mlp_out' in float32 is NaN"):
        collect(broken, tmp_path / "b", executor=Backwards())
