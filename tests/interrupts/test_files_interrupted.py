"""Ctrl-C while something is written: files whole or absent, the old ones or the new ones."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import randomize
from striking import chosen, moments, strike, strike_by_clock

import neox_lab as nl
from neox_lab.hooks.cache import ActivationCache
from neox_lab.views.notebooks import clean_notebook


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


def model(seed: int) -> Any:
    ours = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**SIZES, rotary_emb_base=10.0**seed)).eval()
    randomize(ours, std=0.3, seed=seed)
    return ours


OLD, NEW = model(1), model(2)
IDS = torch.arange(6)[None] + 3


@dataclasses.dataclass
class Writing:
    """Something that writes files into a folder: an old state of them, and then a new one."""

    write: Callable[[Any, Path], object]
    read: Callable[[Path], object] = lambda folder: None
    fresh: bool = False  # what was there before is not replaced, but refused
    costly: bool = False


def _sharded(which: Any, folder: Path) -> None:
    which.save_pretrained(folder, max_shard_size=4000 if which is OLD else 6000)


def _cache(which: Any, folder: Path) -> None:
    which.run_with_cache(IDS)[1].save(folder / "cache.safetensors")


def _spill(which: Any, folder: Path) -> None:
    which.run_with_cache(IDS, budget=10, spill=folder / "cache.safetensors")


def _result(which: Any) -> Any:
    metric = nl.patching.logit_difference([3], [5])
    return nl.patching.sweep(which, IDS, IDS + 1, metric, "z")


RESULTS = {id(which): _result(which) for which in (OLD, NEW)}
VIEWS = {key: result.view() for key, result in RESULTS.items()}


def _view(how: str, ending: str) -> Callable[[Any, Path], object]:
    return lambda which, folder: getattr(VIEWS[id(which)], how)(folder / f"view{ending}")


def _notebook(which: Any, folder: Path) -> None:
    """A first, clean notebook; then one to clean, which is a link."""
    content: dict[str, Any] = {"cells": [], "metadata": {"name": "a"}, "nbformat": 4}
    target, link = folder / "target.ipynb", folder / "link.ipynb"
    if which is OLD:
        content["metadata"]["widgets"] = {"state": list(range(100))}
        target.write_text(json.dumps(content))
        link.symlink_to(target.name)
    else:
        clean_notebook(link)
        assert link.is_symlink()


def _tokenizer(which: Any, folder: Path) -> None:
    tokenizer = nl.load().tokenizer
    tokenizer.chat_template = "{{ messages }}" if which is OLD else "{{ messages[0] }}"
    tokenizer.save_pretrained(folder)


@functools.cache
def _adapted(rank: int) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    adapted = model(1)
    adapted.add_adapter(peft.LoraConfig(r=rank, target_modules=["query_key_value"]))
    return adapted


def _adapter(which: Any, folder: Path) -> None:
    _adapted(2 if which is OLD else 3).save_pretrained(folder)


def _training_state(which: Any, folder: Path) -> None:
    from neox_lab.tasks import checkpoints

    checkpoints.save(folder, 1 if which is OLD else 2, {"weights": which.state_dict()})


def _load_model(folder: Path) -> None:
    loaded = nl.GPTNeoXForCausalLM.from_pretrained(folder)
    either = [
        all(torch.equal(loaded.state_dict()[name], w) for name, w in which.state_dict().items())
        and loaded.config.rope_parameters == which.config.rope_parameters
        for which in (OLD, NEW)
    ]
    assert any(either), "a mixture was loaded"


WRITINGS = {
    "save_pretrained": Writing(lambda which, folder: which.save_pretrained(folder), _load_model),
    "save_pretrained in shards": Writing(_sharded, _load_model),
    "config": Writing(lambda which, folder: which.config.save_pretrained(folder)),
    "generation_config": Writing(
        lambda which, folder: nl.generation.GenerationConfig(
            max_new_tokens=3 if which is OLD else 4
        ).save_pretrained(folder)
    ),
    "cache": Writing(_cache, lambda f: ActivationCache.load(f / "cache.safetensors")),
    "spill": Writing(_spill, lambda f: ActivationCache.load(f / "cache.safetensors"), fresh=True),
    "result": Writing(
        lambda which, folder: RESULTS[id(which)].save(folder / "a.safetensors"),
        lambda folder: type(RESULTS[id(OLD)]).load(folder / "a.safetensors"),
    ),
    "result to_csv": Writing(lambda which, folder: RESULTS[id(which)].to_csv(folder / "a.csv")),
    "to_png": Writing(_view("to_png", ".png"), costly=True),
    "to_html": Writing(_view("to_html", ".html"), costly=True),
    "to_csv": Writing(_view("to_csv", ".csv")),
    "clean_notebook": Writing(_notebook),
    "tokenizer": Writing(_tokenizer, lambda f: nl.GPTNeoXTokenizerFast.from_pretrained(f)),
    "adapter": Writing(_adapter),
    "training state": Writing(_training_state),
}


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _strike_all(name: str, folder: Path, strikes: int, by_clock: int) -> None:
    writing = WRITINGS[name]
    old, new, now = folder / "old", folder / "new", folder / "now"
    for place in (old, new):
        place.mkdir()
        if not writing.fresh:
            writing.write(OLD, place)
    start = time.monotonic()
    writing.write(NEW, new)
    seconds = time.monotonic() - start
    allowed = [_contents(old), _contents(new)]
    assert allowed[0] != allowed[1]

    def begin() -> None:
        shutil.rmtree(now, ignore_errors=True)
        shutil.copytree(old, now, symlinks=True)

    def check(where: object) -> None:
        gc.collect(0)
        found = _contents(now)
        left = sorted(found.keys() - allowed[0].keys() - allowed[1].keys())
        assert not left, f"interrupted at {where}: {left} is left over"
        assert _same(found, allowed, name), f"interrupted at {where}: neither old nor new"
        if found:
            writing.read(now)

    begin()
    count = strikes // 5 if writing.costly else strikes
    for at in chosen(moments(lambda: writing.write(NEW, now)), count, name):
        begin()
        where = strike(lambda: writing.write(NEW, now), at)
        check(where)
    chance = random.Random(name)
    for _ in range(by_clock // 5 if writing.costly else by_clock):
        begin()
        strike_by_clock(lambda: writing.write(NEW, now), chance.uniform(0, 1.2 * seconds))
        check("some time")


def _same(found: dict[str, bytes], allowed: list[dict[str, bytes]], name: str) -> bool:
    if name == "training state":  # an interrupt after the new one has its name leaves both
        return found in (*allowed, allowed[0] | allowed[1])
    return found in allowed


@pytest.mark.parametrize("name", WRITINGS)
def test_an_interrupted_write_leaves_old_or_new(name: str, tmp_path: Path) -> None:
    _strike_all(name, tmp_path, strikes=20, by_clock=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITINGS)
def test_five_hundred_interrupted_writes(name: str, tmp_path: Path) -> None:
    _strike_all(name, tmp_path, strikes=400, by_clock=100)
