"""Kinds of file that came after ``file_kinds.py`` was long: lenses, directions, records, states."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dictionaries import random_cross_layer
from file_kinds import FileKind, _bytes, _described, _json
from patching_oracle import prompts, small

import neox_lab as nl
from neox_lab.activations.writing import noted
from neox_lab.circuits import read_circuit, read_scores, scores
from neox_lab.dynamics.fetching import Fetcher
from neox_lab.dynamics.sources import Hub
from neox_lab.experiments.lens.tuned_files import OURS
from neox_lab.experiments.lens.tuned_training import STATE
from neox_lab.gym import planting
from neox_lab.hub_revisions import StoredFile, _read
from neox_lab.interchange import InterchangeResult, Pairs, Site, das
from neox_lab.steering.directions import AtSite

SHARES = {
    "tuned lens": 15,
    "tuned lens bytes": 15,
    "tuned lens's config.json": 15,
    "tuned lens's params.pt": 15,
    "state of a tuned lens": 15,
    "state of a tuned lens bytes": 15,
    "direction": 20,
    "direction bytes": 20,
    "direction of GGUF": 30,
    "direction of torch": 20,
    "activations.json": 20,
    "rows of activations": 10,
    "note of rows": 20,
    "run.json": 20,
    "record": 20,
    "faults.json": 20,
    "note of a download": 20,
    "files on the hub": 20,
    "scores of EAP-IG": 20,
    "scores of EAP-IG in torch": 20,
    "interchange": 20,
    "interchange bytes": 20,
    "trained dictionary": 15,
    "state of a dictionary": 15,
    "state of a dictionary bytes": 15,
    "cross-layer transcoder": 10,
    "cross-layer config.yaml": 10,
}
"""As in ``file_kinds``: how many inputs of every thousand."""

LENS = small(num_hidden_layers=1, hidden_size=12, intermediate_size=8, pad_token_id=None)
IDS = [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]
ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
WIDTH = 12


# How each is read, and what is looked at then.


def in_copy(read: Callable[[Path], object]) -> Callable[[Path], None]:
    """What reads also writes: in a copy, where nothing is left half-written."""

    def whole(path: Path) -> None:
        with tempfile.TemporaryDirectory() as base:
            folder = Path(shutil.copytree(path.parent, Path(base, "copy")))
            try:
                read(folder / path.name)
            finally:
                left = [one.name for one in folder.rglob("*.tmp")]
                assert not left, f"{left} is left over"

    return whole


def _lens(path: Path) -> None:
    lens = nl.lens.TunedLens.from_pretrained(path.parent, LENS)
    assert lens.translate(torch.ones(2, WIDTH), 0).shape == (2, WIDTH)
    repr(lens)


def _train_lens(folder: Path, steps: int = 2) -> Any:
    options: dict[str, Any] = {"tokens_per_step": 6, "held_out": 0.3, "progress": False}
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1], [10, 11, 12, 13]])
    return nl.lens.TunedLens.train(LENS, ids, steps=steps, to=folder, **options)


def _lens_state(path: Path) -> None:
    trained = _train_lens(path.parent)
    assert len(trained.frame) > 0


def _direction(path: Path) -> None:
    found = nl.steering.load(path)
    repr(found)
    for name in found.sites:
        assert found.sites[name].vector.dim() == 1
    found.on(LENS)


def _activations(path: Path) -> None:
    stored = nl.activations.open(path.parent, verify=path.suffix != ".json")
    repr(stored)
    for name in stored.sites:
        assert len(stored[name][:]) == len(stored.token)


def _note(path: Path) -> None:
    found = noted(path.parent, 0, "x")
    if found is not None:
        assert isinstance(found.rows, int) and isinstance(found.sha256, str)
        assert Path(found.file).name == found.file


def _dynamics(path: Path) -> None:
    result = nl.dynamics.read(path.parent)
    repr(result), result.frame.to_csv()


def _download_note(path: Path) -> None:
    Fetcher(Hub("lab/model"), keep=False, notes=path.parent).clean()


def _files_on_hub(path: Path) -> None:
    for files in _read(path).values():
        for name, file in files.items():
            assert isinstance(name, str) and isinstance(file, StoredFile) and file.size >= 0


def _eap(path: Path) -> None:
    repr(read_scores(path)), repr(read_circuit(path))


def _interchange(path: Path) -> None:
    found = InterchangeResult.load(path)
    repr(found), found.frame.to_csv()


def _train_dictionary(folder: Path) -> Any:
    options: dict[str, Any] = {"latents": 8, "k": 2, "steps": 3, "batch_size": 8}
    return nl.sae.train(ROWS, site="x", to=folder, **options)


def _trained(path: Path) -> None:
    found = nl.sae.TrainedDictionary.load(path.parent)
    repr(found), found.frame.to_csv()


def _dictionary(path: Path) -> None:
    repr(nl.sae.load(path.parent))


# A good file of each kind.


def _measure(model: Any) -> dict[str, float]:
    return {"norm": 1.5, "heads": 2}


def _pairs(seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    base, source = torch.randint(2, 50, (2, 4, 3), generator=generator)
    return Pairs(base, source, [3, 4, 5, 6], [20, 21, 22, 23], variable="v")  # type: ignore


def _lenses(base: Path) -> dict[str, FileKind]:
    trained, ours, published = base / "trained lens", base / "lens", base / "published lens"
    lens = _train_lens(trained).lens
    lens.save_pretrained(ours), lens.save_pretrained(published, "published")
    own, state = ours / OURS, trained / STATE
    config = json.loads((published / "config.json").read_text())
    resumed = (state.name, state.read_bytes(), in_copy(_lens_state))
    own_file = (own.name, own.read_bytes(), _lens)
    params = (published / "params.pt").read_bytes()
    return {
        "tuned lens": _described(*own_file),
        "tuned lens bytes": _bytes(*own_file),
        "tuned lens's config.json": _json("config.json", config, _lens, folder=published),
        "tuned lens's params.pt": _bytes("params.pt", params, _lens, folder=published),
        "state of a tuned lens": _described(*resumed),
        "state of a tuned lens bytes": _bytes(*resumed),
    }


def _directions(base: Path) -> dict[str, FileKind]:
    at = AtSite(torch.linspace(0.5, 1, WIDTH), shuffled=torch.ones(2, WIDTH))
    direction = nl.steering.Direction({"blocks.0.hook_resid_post": at}, "made", "last")
    files = {"direction": base / "d.safetensors", "direction of GGUF": base / "d.gguf"}
    files["direction of torch"] = base / "d.pt"
    direction.save(files["direction"])
    direction.export(files["direction of GGUF"], "repeng")
    direction.export(files["direction of torch"], "steering-vectors")
    content = {name: (path.name, path.read_bytes(), _direction) for name, path in files.items()}
    return {
        "direction": _described(*content["direction"]),
        "direction bytes": _bytes(*content["direction"]),
        "direction of GGUF": _bytes(*content["direction of GGUF"]),
        "direction of torch": _bytes(*content["direction of torch"]),
    }


def _stored(base: Path) -> dict[str, FileKind]:
    folder = base / "stored"
    nl.activations.collect(LENS, IDS, "resid_post", folder, progress=False)
    manifest = json.loads((folder / "activations.json").read_text())
    shard = manifest["shards"][0]
    rows = (folder / shard["file"]).read_bytes()
    return {
        "activations.json": _json("activations.json", manifest, _activations, folder=folder),
        "rows of activations": _bytes(shard["file"], rows, _activations, folder=folder),
        "note of rows": _json(".000000.written.json", {**shard, "tokens": "x"}, _note,
                              folder=folder),
    }  # fmt: skip


def _runs(base: Path) -> dict[str, FileKind]:
    model, folder = base / "revisions" / "step3", base / "run"
    LENS.save_pretrained(model), planting.tokenizer().save_pretrained(model)
    nl.dynamics.run(_measure, model.parent, [3], to=folder, progress=False)
    (record,) = folder.glob("*.record.json")
    kinds = {}
    for name, file in (("run.json", folder / "run.json"), ("record", record)):
        kinds[name] = _json(file.name, json.loads(file.read_text()), _dynamics, folder=folder)
    faults = {"step3": ["its weights are those of step 0"]}
    kinds["faults.json"] = _json("faults.json", faults, _dynamics, folder=folder)
    commit = "b" * 40
    note = {"commit": commit, "files": [str(base / "x")], "blobs": [str(base / "y")]}
    name = f".downloaded-{commit}.json"
    kinds["note of a download"] = _json(name, note, in_copy(_download_note))
    kept = {"b" * 40: {"model.safetensors": [5, "sha256:aa"], "config.json": [2, "git:bb"]}}
    kinds["files on the hub"] = _json("files.json", kept, _files_on_hub)
    return kinds


def _edges(base: Path) -> dict[str, FileKind]:
    model = small(num_hidden_layers=1)
    found = scores(model, *prompts(2, 4, first=1), nl.patching.logit_difference([3, 4], [5, 6]))
    found.to_eap_ig(base / "scores.json"), found.to_eap_ig(base / "scores.pt")
    document = json.loads((base / "scores.json").read_text())
    return {
        "scores of EAP-IG": _json("scores.json", document, _eap),
        "scores of EAP-IG in torch": _bytes("scores.pt", (base / "scores.pt").read_bytes(), _eap),
    }


def _trainings(base: Path) -> dict[str, FileKind]:
    folder, saved = base / "training", base / "trained"
    trained = _train_dictionary(folder)
    state = next(folder.glob("*.safetensors"))
    own = trained.save(saved)
    resumed = (state.name, state.read_bytes(), in_copy(lambda path: _train_dictionary(path.parent)))
    across = random_cross_layer(2, 6, 8)
    layers = across.save_pretrained(base / "across")
    foreign = Path(__file__).parents[1] / "sae" / "cross_layer_files" / "relu"
    config = (foreign / "config.yaml").read_bytes()
    return {
        "trained dictionary": _described(own.name, own.read_bytes(), _trained),
        "state of a dictionary": _described(*resumed),
        "state of a dictionary bytes": _bytes(*resumed),
        "cross-layer transcoder": _described(layers.name, layers.read_bytes(), _dictionary),
        "cross-layer config.yaml": _bytes("config.yaml", config, _dictionary, folder=foreign),
    }


def newer_file_kinds(base: Path) -> dict[str, FileKind]:
    """These kinds, by name; see ``file_kinds``."""
    found = das(LENS, _pairs(0), _pairs(1), Site(("resid_post", 0), (-1, 0)), 2, epochs=1,
                progress=False, nulls=1)  # fmt: skip
    saved = found.save(base / "found.safetensors")
    interchange = (saved.name, saved.read_bytes(), _interchange)
    return {
        **_lenses(base),
        **_directions(base),
        **_stored(base),
        **_runs(base),
        **_edges(base),
        **_trainings(base),
        "interchange": _described(*interchange),
        "interchange bytes": _bytes(*interchange),
    }
