"""Models asked for by a part of their name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import CheckpointError
from neox_lab.hub_models import KNOWN, full_name, nearest_models

COMMIT = "a" * 40


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put_into_cache(folder: Path, name: str) -> Any:
    """A model under its full name; returns it."""
    model = nl.load()
    place = folder / "hub" / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    model.save_pretrained(place / "snapshots" / COMMIT)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(place / "snapshots" / COMMIT)
    return model


@pytest.mark.parametrize("name", ["pythia-70m-deduped", "Pythia-70M-deduped", "GPT-NeoX-20B"])
def test_a_name_without_its_organisation(offline: Path, name: str) -> None:
    full = f"EleutherAI/{name.lower()}"
    saved = put_into_cache(offline, full)
    loaded = nl.load(name)
    assert loaded.name_or_path == full
    assert torch.equal(loaded("The king").logits, saved("The king").logits)
    # A directory of that name is what is meant, and whatever else has the name is not loaded.
    (offline / name).mkdir()
    with pytest.raises(CheckpointError, match="config"):
        nl.load(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pythia-70m", None),
        ("pyhtia-70m", "EleutherAI/pythia-70m"),
        ("EleutherAI/pythia-70", "EleutherAI/pythia-70m"),
        ("EleutherAI/pythia_410m_deduped", "EleutherAI/pythia-410m-deduped"),
        ("eleuther/pythia-1.4b", "EleutherAI/pythia-1.4b"),
        ("gpt-neox20b", "EleutherAI/gpt-neox-20b"),
        ("dolly-v2-3", "databricks/dolly-v2-3b"),
        ("EleutherAI/pythia-70m", None),
        ("somebody/else-entirely", None),
    ],
)
def test_a_name_that_nothing_has(offline: Path, name: str, meant: str | None) -> None:
    """Another model is suggested, never loaded."""
    put_into_cache(offline, "EleutherAI/pythia-160m")
    with pytest.raises(CheckpointError) as caught:
        nl.load(name)
    message = str(caught.value)
    assert ("Did you mean" in message) == (meant is not None)
    if meant is not None:
        assert f"Did you mean {meant!r}" in message
    elif "/" not in name:
        assert f"There is no directory 'EleutherAI/{name}' here" in message


def test_classes_take_ids_as_they_are_and_suggest(offline: Path) -> None:
    put_into_cache(offline, "EleutherAI/pythia-70m")
    with pytest.raises(CheckpointError, match="Did you mean 'EleutherAI/pythia-70m'"):
        nl.GPTNeoXForCausalLM.from_pretrained("pythia-70m")


def test_names_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert len(set(KNOWN)) == len(KNOWN)
    for name in KNOWN:
        assert full_name(name.partition("/")[2]) == name
        assert full_name(name) is None and nearest_models(name) == ""
    assert full_name("pythia") is None and full_name("") is None
    assert nearest_models("x" * 10_000) == ""
