"""A directory is one revision: every door that takes ``revision=`` refuses another in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import neox_lab as nl
from neox_lab.compat import transformer_lens
from neox_lab.errors import CheckpointError
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.tokenizer import GPTNeoXTokenizerFast

DOORS: dict[str, Callable[[Path, Any], object]] = {
    "nl.load": lambda at, which: nl.load(at, revision=which),
    "model": lambda at, which: nl.GPTNeoXForCausalLM.from_pretrained(at, revision=which),
    "backbone": lambda at, which: nl.GPTNeoXModel.from_pretrained(at, revision=which),
    "configuration": lambda at, which: nl.GPTNeoXConfig.from_pretrained(at, revision=which),
    "configuration's file": lambda at, which: nl.GPTNeoXConfig.from_pretrained(
        at / "config.json", revision=which
    ),
    "tokenizer": lambda at, which: GPTNeoXTokenizerFast.from_pretrained(at, revision=which),
    "tokenizer's file": lambda at, which: GPTNeoXTokenizerFast.from_pretrained(
        at / "tokenizer.json", revision=which
    ),
    "generation": lambda at, which: GenerationConfig.from_pretrained(at, revision=which),
    "tuned lens": lambda at, which: nl.lens.TunedLens.from_pretrained(
        at / "lens", nl.load(), revision=which
    ),
    "dictionary": lambda at, which: nl.sae.load(at / "sae", revision=which),
    "dictionaries": lambda at, which: nl.sae.available(at / "sae", revision=which),
    "TransformerLens": lambda at, which: transformer_lens.HookedTransformer.from_pretrained(
        str(at), revision=which
    ),
    "TransformerLens's step": lambda at, which: transformer_lens.HookedTransformer.from_pretrained(
        str(at), checkpoint_value=None if which in (None, "main") else 1000
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at, model = tmp_path_factory.mktemp("model"), nl.load()
    model.save_pretrained(at)
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(at)
    nl.lens.TunedLens.train(
        model, ["The king went to the city."] * 4, steps=1, progress=False
    ).lens.save_pretrained(at / "lens")
    nl.gym.dictionaries()["mlp_1"].save_pretrained(at / "sae")
    return at


@pytest.mark.filterwarnings("ignore::neox_lab.errors.NeoxLabWarning")
@pytest.mark.parametrize("door", DOORS)
def test_another_revision_is_refused(folder: Path, door: str) -> None:
    for fine in (None, "main"):
        DOORS[door](folder, fine)
    with pytest.raises(CheckpointError, match=r"revision='step1000' of .* is one revision"):
        DOORS[door](folder, "step1000")


@pytest.mark.parametrize("revision", ["ab " * 5000, "a\0b", "\ud800", ".", "..", ""])
def test_names_that_no_folder_can_have(folder: Path, revision: str) -> None:
    with pytest.raises(CheckpointError, match="is one revision") as caught:
        nl.load(folder, revision=revision)
    assert "folder of that name" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_adapter_too(folder: Path) -> None:
    pytest.importorskip("peft")
    with pytest.raises(CheckpointError, match="one revision"):
        nl.load(folder).load_adapter(str(folder), revision="step1000")


def test_the_explorer_says_so_before_anything_is_drawn(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="one revision"):
        nl.explore(nl.load(folder), "The king", revisions=["step0", "main"])


def test_folders_of_a_training_are_its_revisions(tmp_path: Path) -> None:
    """The door that has a meaning for them."""
    for name in ("step0", "step512"):
        model = nl.load(revision=name)
        model.save_pretrained(tmp_path / name)
        assert model.tokenizer is not None
        model.tokenizer.save_pretrained(tmp_path / name)
    norms = nl.dynamics.run(
        lambda model: float(model.W_E.norm()), tmp_path, ["step0", "step512"], progress=False
    )
    values = norms.frame["value"]
    assert values.iloc[0] != values.iloc[1]
    with pytest.raises(CheckpointError) as caught:
        nl.load(tmp_path, revision="step512")
    assert repr(str(tmp_path / "step512")) in str(caught.value)
