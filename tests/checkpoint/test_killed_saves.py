"""Saves that end before their end: a process that is killed, a disk that is full."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import neox_lab as nl
from neox_lab.built_in import weights_directory
from neox_lab.errors import CheckpointError


def _model(seed: int, rope: float = 10_000.0) -> nl.GPTNeoXForCausalLM:
    torch.manual_seed(seed)
    config = nl.GPTNeoXConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        initializer_range=0.3,
        rotary_emb_base=rope,
    )
    return nl.GPTNeoXForCausalLM(config).eval()


OLD, NEW = _model(1), _model(2, 500.0)
"""Nothing in a file shows that it is of one and not of the other, but numbers."""


def _save(model: nl.GPTNeoXForCausalLM, folder: Path, shards: bool) -> None:
    model.save_pretrained(folder, max_shard_size=9000 if shards else "1GB")


def _killed(action: Callable[[], None], call: int) -> bool:
    """Run it in a process that dies at one of its calls of ``os.replace``; whether it did."""
    child = os.fork()
    if not child:
        left, replace = [call], os.replace

        def dying(source: Path, target: Path) -> None:
            if not left[0]:
                os._exit(9)
            left[0] -= 1
            replace(source, target)

        os.replace = dying
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _is(model: nl.GPTNeoXForCausalLM, other: nl.GPTNeoXForCausalLM) -> bool:
    weights = other.state_dict()
    same = all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    return same and model.config.rope_parameters == other.config.rope_parameters


@pytest.mark.parametrize("before", ["one file", "shards", "bin"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_killed_save_is_never_read_as_a_mixture(
    tmp_path: Path, before: str, shards: bool
) -> None:
    earlier, folder = tmp_path / "earlier", tmp_path / "now"
    _save(OLD, earlier, before == "shards")
    if before == "bin":
        torch.save(OLD.state_dict(), earlier / "pytorch_model.bin")
        (earlier / "model.safetensors").unlink()
    seen = set()
    for call in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(earlier, folder)
        if not _killed(lambda: _save(NEW, folder, shards), call):
            break
        try:
            found = nl.GPTNeoXForCausalLM.from_pretrained(folder)
            assert _is(found, NEW) or _is(found, OLD), f"a mixture after {call} renames"
            seen.add("old" if _is(found, OLD) else "new")
        except CheckpointError as error:
            seen.add("said" if "A process was killed while it saved" in str(error) else str(error))
        _save(NEW, folder, shards)
        assert _is(nl.GPTNeoXForCausalLM.from_pretrained(folder), NEW), "saving again mends it"
    assert 3 < call < 99 and {"old", "said"} <= seen <= {"old", "new", "said"}


@pytest.mark.parametrize("failing", range(3, 12, 2))
def test_a_rename_that_fails_keeps_the_checkpoint(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(OLD, tmp_path, True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    count, replace = iter(range(1000)), os.replace

    def sometimes(source: Path, target: Path) -> None:
        if next(count) == failing:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(CheckpointError, match=r"Input/output error.*is kept"):
        _save(NEW, tmp_path, True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_directory_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    _save(OLD, tmp_path, True)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=rf"{name}.*is kept"):
        _save(NEW, tmp_path, False)
    assert sorted(tmp_path.iterdir()) == before


def _tokenizer(template: str, token: str) -> nl.GPTNeoXTokenizerFast:
    tokenizer = nl.GPTNeoXTokenizerFast.from_pretrained(weights_directory())
    tokenizer.chat_template = template
    tokenizer.add_tokens([token])
    return tokenizer


def test_a_killed_save_of_a_tokenizer_is_never_read_as_a_mixture(tmp_path: Path) -> None:
    earlier, folder = tmp_path / "earlier", tmp_path / "now"
    _tokenizer("a", "one").save_pretrained(earlier)
    new, seen = _tokenizer("b", "two"), set()
    for call in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(earlier, folder)
        if not _killed(lambda: new.save_pretrained(folder), call):
            break
        try:
            found = nl.GPTNeoXTokenizerFast.from_pretrained(folder)
            seen.add((str(found.chat_template), *sorted({"one", "two"} & found.get_vocab().keys())))
        except CheckpointError as error:
            seen.add("said" if "A process was killed while it saved" in str(error) else str(error))
        new.save_pretrained(folder)
        assert nl.GPTNeoXTokenizerFast.from_pretrained(folder).chat_template == "b"
    assert 3 < call < 99 and {("a", "one"), "said"} <= seen <= {("a", "one"), ("b", "two"), "said"}
