"""Collected activations are those of the model, whatever interrupts the collection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import CheckpointError

TEXTS = ["Anna gave the ball to Tom.", "The king", "One two three four", "red", "blue green"]


def test_rows_are_those_of_run_with_cache(tmp_path: Path) -> None:
    model = nl.load()
    stored = nl.activations.collect(model, iter(TEXTS), "resid_post", tmp_path, batch_size=2)
    for name in stored.sites:
        alone = [model.run_with_cache(text, [name])[1][name][0] for text in TEXTS]
        torch.testing.assert_close(stored.site(name), torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert stored.document.unique().tolist() == [0, 1, 2, 3, 4]
    seen = torch.cat(list(stored.batches(stored.sites[0], 3)))
    torch.testing.assert_close(seen.sum(0), stored.site(stored.sites[0]).sum(0))


def test_an_interrupted_collection_goes_on(tmp_path: Path) -> None:
    model = nl.load()

    def broken() -> Iterator[str]:
        yield from TEXTS[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nl.activations.collect(model, broken(), "resid_post", tmp_path / "a", batch_size=2)
    assert len(nl.activations.open(tmp_path / "a").document.unique()) == 2
    again = nl.activations.collect(model, TEXTS, "resid_post", tmp_path / "a", batch_size=2)
    whole = nl.activations.collect(model, TEXTS, "resid_post", tmp_path / "b", batch_size=2)
    assert torch.equal(again.site(again.sites[0]), whole.site(again.sites[0]))
    with pytest.raises(CheckpointError, match="other texts"):
        nl.activations.collect(model, TEXTS[1:], "resid_post", tmp_path / "a", batch_size=2)


def test_a_changed_shard_is_refused(tmp_path: Path) -> None:
    nl.activations.collect(nl.load(), TEXTS, "resid_post", tmp_path)
    shard = tmp_path / "000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="changed"):
        nl.activations.open(tmp_path)
