"""Texts that workers read: the tables of one process, to the last bit."""

from __future__ import annotations

import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from backwards import Backwards

import neox_lab as nl
from neox_lab.errors import InputError
from neox_lab.features import top
from neox_lab.gym.built_in_dictionaries import FOLDER

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [f"The {noun} sat on the {place}. {noun}!" for noun in ("cat", "dog") for place in "abcdef"]
SITE = "blocks.1.mlp.hook_post"
RESIDUAL = "blocks.1.hook_resid_post"


def read(what: Any = SITE, **more: Any) -> Any:
    settings: dict[str, Any] = {"held_out": 0.3, "top": 4, "quantiles": 3, "window": 4}
    return nl.features.top_examples(nl.load(), what, TEXTS, progress=False, **settings | more)


def same(there: Any, here: Any) -> None:
    for name in ("active", "mean", "highest", "histogram"):
        assert torch.equal(getattr(there, name), getattr(here, name)), name
    assert there.counted == here.counted
    assert there.held_out_documents == here.held_out_documents > 0
    assert there.corpus == here.corpus
    assert torch.equal(there.pairs.counts, here.pairs.counts)
    assert int(there.pairs.counts.sum()) > 0
    for split in ("train", "held-out"):
        for one, other in zip(there.splits[split], here.splits[split], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("what", [SITE, nl.features.Head(1, 2), "dictionary"])
def test_the_tables_are_those_of_one_process(what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "TOGETHER", 30)
    if what == "dictionary":
        what = functools.partial(nl.sae.load, FOLDER, site=RESIDUAL)
    executor = Backwards()
    same(read(what, executor=executor), read(what))
    assert len(executor.sent) > 3
    assert max(map(len, executor.sent)) < 30_000


def test_pages_are_those_of_one_process(tmp_path: Path) -> None:
    for number, together in enumerate(([], None)):
        found = read(functools.partial(nl.sae.load, FOLDER, site=RESIDUAL), together=together)
        latents = [int(at) for at in found.active.argsort(descending=True)[:5]]
        executor = Backwards()
        folders = tmp_path / f"here{number}", tmp_path / f"there{number}"
        nl.features.pages(found, folders[0], latents, progress=False)
        nl.features.pages(found, folders[1], latents, executor=executor, progress=False)
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1] and len(names[0]) == 6
        for name in names[0]:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
        assert len(executor.sent) == 5
        assert max(map(len, executor.sent)) < 30_000
        assert not found._looked
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        nl.features.pages(found, tmp_path / "no", executor=3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_pages_by_other_processes(tmp_path: Path) -> None:
    found = read()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        index = nl.features.pages(found, tmp_path / "a", range(3), executor=executor)
    assert index.is_file()
    nl.features.pages(found, tmp_path / "b", range(3))
    assert all(
        (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
        for path in index.parent.iterdir()
    )


@pytest.mark.slow
def test_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "TOGETHER", 60)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        same(read(executor=executor), read())


def test_what_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    source = nl.features.Source("odd", "thing", (SITE,), 3, lambda cache, ids: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match="cannot be sent to workers"):
        read(source, executor=Backwards())
    monkeypatch.setattr("neox_lab.features.top_reading.LARGEST", 100)
    with pytest.raises(InputError, match=r"functools\.partial\(nl\.sae\.load"):
        read(
            nl.features.Direction(torch.ones(128), "blocks.1.hook_resid_post"), executor=Backwards()
        )
    with pytest.raises(InputError, match="executor=3; expected an executor"):
        read(executor=3)
