"""A disk that is full, a folder that cannot be written, a file in a folder's place.

Each is said in words, and what was written before is as it was. What takes more than a full disk,
such as a checkpoint in shards, is in ``test_full_disk.py``.
"""

from __future__ import annotations

import functools
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from dictionaries import random_cross_layer, random_dictionary
from patching_oracle import prompts, small

import neox_lab as nl
from neox_lab.circuits import scores
from neox_lab.generation import GenerationConfig
from neox_lab.interchange import Pairs, Site, das
from neox_lab.steering.directions import AtSite
from neox_lab.tasks import checkpoints

ROOM = 1 << 20
Closing = Callable[[], AbstractContextManager[None]]
Folder = tuple[Path, Closing, str]
"""A folder, what closes it, and what is said then."""


MOUNTED = [pytest.param(name, marks=pytest.mark.slow) for name in ("full disk", "read-only")]


@pytest.fixture(params=["largest file", *MOUNTED])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "largest file":
        yield tmp_path, _no_file, "File too large"
        return
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems may not be mounted here")
    try:
        if request.param == "full disk":
            yield place, functools.partial(_filled, place), "No space left|no room"
        else:
            yield place, functools.partial(_read_only, place), "Read-only file system"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def _no_file() -> Iterator[None]:
    """No byte can be written to any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


@contextmanager
def _filled(place: Path) -> Iterator[None]:
    ballast = place / ".ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    yield
    ballast.unlink()


@contextmanager
def _read_only(place: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    yield


# --- what writes -------------------------------------------------------------------------------

MODEL = small(num_hidden_layers=1, hidden_size=12, intermediate_size=8, pad_token_id=None)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 1], [10, 11, 12, 13]])
ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
METRIC = nl.patching.logit_difference([3, 4], [5, 6])
Number = int
"""Of the write: things of the same kind that differ."""


def train_lens(folder: Path, number: Number) -> Any:
    options: dict[str, Any] = {"tokens_per_step": 6, "held_out": 0.3, "progress": False}
    return nl.lens.TunedLens.train(MODEL, IDS, steps=2, seed=number, to=folder, **options).lens


def train_dictionary(folder: Path | None, number: Number) -> Any:
    options: dict[str, Any] = {"latents": 8, "k": 2, "steps": 3, "batch_size": 8}
    return nl.sae.train(ROWS, site="x", to=folder, seed=number, **options)


@functools.cache
def lens(number: Number) -> Any:
    with tempfile.TemporaryDirectory() as base:
        return train_lens(Path(base, "lens"), number)


@functools.cache
def direction(number: Number) -> Any:
    at = AtSite(torch.linspace(0.5, 1 + number, 12), shuffled=torch.ones(2, 12))
    return nl.steering.Direction({"blocks.0.hook_resid_post": at}, "made", "last")


@functools.cache
def edges(number: Number) -> Any:
    return scores(MODEL, *prompts(2, 4, first=1, seed=number), METRIC)


@functools.cache
def interchange(number: Number) -> Any:
    def pairs(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        base, source = torch.randint(2, 50, (2, 4, 3), generator=generator)
        return Pairs(base, source, [3, 4, 5, 6], [20, 21, 22, 23], variable="v")  # type: ignore

    site = Site(("resid_post", 0), -1)
    return das(MODEL, pairs(number), pairs(7), site, 2, epochs=1, progress=False, nulls=1)


@functools.cache
def patched(number: Number) -> Any:
    return nl.patching.sweep(MODEL, *prompts(2, 4, first=1, seed=number), METRIC, "z")


@functools.cache
def examples(number: Number) -> Any:
    model = nl.load()
    what = random_dictionary(model.config.hidden_size, "blocks.1.hook_mlp_out", seed=number)
    texts = ["The cat sat on the mat.", "Anna gave the ball to Tom."]
    return nl.features.top_examples(model, what, texts, top=2, progress=False)


def dictionary(number: Number) -> Any:
    return random_dictionary(12, "blocks.0.hook_mlp_out", seed=number)


def state(number: Number) -> dict[str, Any]:
    return {"weights": {"a": torch.full((100,), float(number))}}


def config(number: Number) -> Any:
    return nl.GPTNeoXConfig(hidden_size=24, num_attention_heads=3, vocab_size=50 + number)


def tokenizer(number: Number) -> Any:
    made = nl.load().tokenizer
    made.chat_template = "{{ messages }}" if number else "{{ messages[0] }}"
    return made


def collect(folder: Path, number: Number) -> None:
    nl.activations.collect(MODEL, IDS.tolist(), "resid_post", folder / str(number), progress=False)


def measure(folder: Path, number: Number) -> None:
    def steps(model: Any) -> dict[str, float]:
        return {"number": 1.5}

    place = folder / str(number)
    nl.dynamics.run(steps, None, [512], to=place, progress=False)


def cached(number: Number) -> Any:
    return MODEL.run_with_cache(IDS + number)[1]


Write = Callable[[Path, Number], object]
WRITES: dict[str, Write] = {
    "model": lambda f, n: small(seed=n).save_pretrained(f),
    "config": lambda f, n: config(n).save_pretrained(f),
    "generation config": lambda f, n: GenerationConfig(max_new_tokens=n + 1).save_pretrained(f),
    "tokenizer": lambda f, n: tokenizer(n).save_pretrained(f),
    "cache": lambda f, n: cached(n).save(f / "a.safetensors"),
    "training state": lambda f, n: checkpoints.save(f, 3 + n, state(n)),
    "activations": collect,
    "run over training": measure,
    "tuned lens": lambda f, n: lens(n).save_pretrained(f),
    "published lens": lambda f, n: lens(n).save_pretrained(f, "published"),
    "training of a lens": lambda f, n: train_lens(f / str(n), n),
    "direction": lambda f, n: direction(n).save(f / "d.safetensors"),
    "direction of GGUF": lambda f, n: direction(n).export(f / "d.gguf", "repeng"),
    "direction of torch": lambda f, n: direction(n).export(f / "d.pt", "steering-vectors"),
    "edges in JSON": lambda f, n: edges(n).to_eap_ig(f / "edges.json"),
    "edges of torch": lambda f, n: edges(n).to_eap_ig(f / "edges.pt"),
    "edges": lambda f, n: edges(n).save(f / "edges.safetensors"),
    "interchange": lambda f, n: interchange(n).save(f / "i.safetensors"),
    "dictionary": lambda f, n: dictionary(n).save_pretrained(f),
    "dictionary of SAELens": lambda f, n: dictionary(n).export(f, "sae_lens"),
    "cross-layer transcoder": lambda f, n: random_cross_layer(2, 6, 8, seed=n).save_pretrained(f),
    "training of a dictionary": lambda f, n: train_dictionary(f / str(n), n),
    "trained dictionary": lambda f, n: train_dictionary(None, n).save(f),
    "pages of features": lambda f, n: nl.features.pages(examples(n), f, progress=False),
    "result": lambda f, n: patched(n).save(f / "r.safetensors"),
    "result's numbers": lambda f, n: patched(n).to_csv(f / "r.csv"),
    "picture": lambda f, n: patched(n).to_png(f / "r.png"),
    "page": lambda f, n: patched(n).to_html(f / "r.html"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """All files but locks, which hold nothing, and the ballast."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", ".ballast")
    }


@pytest.mark.parametrize("name", WRITES)
def test_what_cannot_be_written_is_said_and_costs_nothing(folder: Folder, name: str) -> None:
    place, closed, words = folder
    write = WRITES[name]
    write(place, 0)
    before = contents(place)
    assert before
    if name in ("picture", "page", "pages of features"):
        write(_elsewhere(place), 1)
    with closed():
        with pytest.raises(OSError, match=words):  # CheckpointError is one
            write(place, 1)
        assert contents(place) == before


def _elsewhere(place: Path) -> Path:
    """Where something is written once, so that fonts and styles are at hand later."""
    other = place.parent / "elsewhere"
    other.mkdir(exist_ok=True)
    return other


@pytest.mark.parametrize("name", WRITES)
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises((OSError, nl.errors.InputError), match="file"):
        WRITES[name](tmp_path / "file", 0)
    assert contents(tmp_path) == {"file": b"mine"}
