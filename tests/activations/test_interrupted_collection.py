"""Whatever stops a collection, no row is lost or doubled, and the message says what to do."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from collected_model import build

import neox_lab as nl
from neox_lab.activations import collecting, shards, writing
from neox_lab.errors import CheckpointError
from neox_lab.files import alone

IDS = [[3, 4, 5, 6, 7, 8, 9], [10], list(range(11, 26)), [3, 4, 5], [7, 7, 7, 7], [9] * 11]


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "FEWEST", 12)
    monkeypatch.setattr(collecting, "SHARD_BYTES", 0)


def collect(model: Any, folder: Path, texts: Any = IDS, **given: Any) -> Any:
    return nl.activations.collect(model, texts, **{"sites": "resid_post", "to": folder} | given)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_killed_at_random_moments_the_folder_is_the_same(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, sys.path), str(here)])}
    ran = subprocess.run(
        [sys.executable, here / "killed.py", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 5, "it was not killed often enough to tell"
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    stored = nl.activations.open(tmp_path / "killed", verify=True)
    assert len(stored.manifest.shards) > 10
    assert stored.manifest.complete


@pytest.mark.parametrize("after", range(7))
def test_interrupted_between_texts_it_goes_on(model: Any, tmp_path: Path, after: int) -> None:
    def broken() -> Iterator[list[int]]:
        yield from IDS[:after]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, tmp_path / "a", broken())
    collect(model, tmp_path / "a")
    collect(model, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_was_read_is_not_computed_again(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(model, tmp_path)
    monkeypatch.setattr(writing, "read_batch", None)
    stored = collect(model, tmp_path, iter(IDS))
    assert len(stored) == sum(map(len, IDS))


def test_a_full_disk_leaves_what_was_written(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = shards.reserve, iter(range(10))

    def full(path: Path, size: int) -> None:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, size)

    monkeypatch.setattr(shards, "reserve", full)
    with pytest.raises(CheckpointError, match=r"is full. 23 rows in 2 files .* the same call"):
        collect(model, tmp_path / "a")
    assert sorted(content(tmp_path / "a")) == [
        ".lock",
        "000000.safetensors",
        "000001.safetensors",
        "activations.json",
    ]
    stored = nl.activations.open(tmp_path / "a", verify=True)
    assert (len(stored), stored.manifest.complete) == (23, False)
    assert "not complete" in repr(stored)
    collect(model, tmp_path / "a")
    collect(model, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_two_collections_in_one_folder(model: Any, tmp_path: Path) -> None:
    collect(model, tmp_path)
    before = content(tmp_path)
    with alone(tmp_path / ".lock"):
        with pytest.raises(CheckpointError, match="Another collection writes into"):
            collect(model, tmp_path)
        nl.activations.open(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sites": "mlp_out"}, r"with sites blocks.0.hook_resid_post, .*, now blocks.0.hook_mlp"),
        ({"dtype": "float16"}, "with dtype='float32', now 'float16'"),
        ({"pos": "last", "context": 4}, "with pos='all', now 'last'; context=16, now 4"),
        ({"skip_first": 1}, "skip_first"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"texts": [[1], *IDS[1:]]}, "other texts"),
        ({"texts": IDS[:3]}, "other texts"),
        ({"texts": [*IDS, [5]]}, "other texts"),
        ({"texts": [*IDS, [5] * 12]}, "other texts"),
        ({"texts": [IDS[0] + IDS[1], *IDS[2:]]}, "other texts"),
    ],
)
def test_another_collection_is_refused(
    model: Any, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    collect(model, tmp_path)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        collect(model, tmp_path, **given)
    assert content(tmp_path) == before


def test_another_model_is_refused(model: Any, tmp_path: Path) -> None:
    collect(model, tmp_path)
    other = build()
    with torch.no_grad():
        next(other.parameters())[0] += 1
    with pytest.raises(CheckpointError, match="another model: weights differ"):
        collect(other, tmp_path)


def test_a_folder_of_other_things_is_refused(model: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds other things \(notes.txt\)"):
        collect(model, tmp_path)
    assert list(content(tmp_path)) == ["notes.txt"]
    with pytest.raises(CheckpointError, match="no collected activations"):
        nl.activations.open(tmp_path)
    with pytest.raises(OSError, match=r"notes\.txt"):
        collect(model, tmp_path / "notes.txt")


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "activations.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


SHARD = {"file": "000000.safetensors", "rows": 8, "size": 1, "tokens": "", "sha256": ""}
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda f: (f / "activations.json").unlink(), "no activations.json"),
    "no JSON": (lambda f: (f / "activations.json").write_text("{"), "cannot be read as JSON"),  # type: ignore[dict-item]
    "a list": (lambda f: (f / "activations.json").write_text("[]"), "expected a JSON object"),  # type: ignore[dict-item]
    "another format": (edit(format="neox_lab activations 9"), "activations 9'; this version"),
    "no shards": (edit(shards=None), "is damaged"),
    "shards of text": (edit(shards=["x"]), "is damaged"),
    "an unknown entry": (edit(more=1), "is damaged"),
    "a wrong dtype": (edit(dtype="float31"), "is damaged"),
    "sites of text": (edit(sites="x"), "is damaged"),
    "a wrong shape": (edit(sites={"x": ["a"]}), "is damaged"),
    "no identity": (edit(identity=None), "is damaged"),
    "a path outside": (edit(shards=[SHARD | {"file": "../x"}]), "is damaged"),
    "rows of text": (edit(shards=[SHARD | {"rows": "8"}]), "is damaged"),
    "another size": (edit(shards=[SHARD]), "bytes and had 1 when"),
    "other sites": (edit(sites={"x": [3]}), "holds other tensors"),
    "another dtype": (edit(dtype="float16"), "holds other tensors"),
    "no shard": (lambda f: (f / "000001.safetensors").unlink(), "is missing. Bring the file back"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_explained(model: Any, tmp_path: Path, kind: str) -> None:
    collect(model, tmp_path)
    damage, message = DAMAGE[kind]
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        nl.activations.open(tmp_path)
    with pytest.raises(CheckpointError):
        collect(model, tmp_path)


def test_a_changed_file_is_refused(model: Any, tmp_path: Path) -> None:
    collect(model, tmp_path)
    path = tmp_path / "000001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    stored = nl.activations.open(tmp_path)  # its size and header are right
    with pytest.raises(CheckpointError, match=r"000001.safetensors' was changed"):
        stored.verify()
    with pytest.raises(CheckpointError, match="was changed"):
        nl.activations.open(tmp_path, verify=True)
    path.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="changed or cut short"):
        nl.activations.open(tmp_path)
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        nl.activations.open(tmp_path)


def test_what_is_in_place_must_be_there_again(model: Any, tmp_path: Path) -> None:
    """Half of the rows would be of another network."""

    calls: list[int] = []

    def halved(x: Any, hook: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the line was cut")
        return x / 2

    at = [("blocks.0.hook_resid_post", halved)]
    with model.hooks(at), pytest.raises(OSError, match="cut"):
        collect(model, tmp_path / "one")
    assert 0 < len(nl.activations.open(tmp_path / "one")) < sum(map(len, IDS))
    before = content(tmp_path / "one")
    with pytest.raises(CheckpointError, match=r"hooks=\['blocks.0.hook_resid_post'\], now \[\]"):
        collect(model, tmp_path / "one")
    assert content(tmp_path / "one") == before
    with model.hooks(at):
        collect(model, tmp_path / "one")
        collect(model, tmp_path / "whole")
    assert content(tmp_path / "one") == content(tmp_path / "whole")
    with model.hooks([("hook_embed", nl.reads_only(lambda x, hook: None))]):
        collect(model, tmp_path / "bare")  # it changes nothing
    collect(model, tmp_path / "bare")
