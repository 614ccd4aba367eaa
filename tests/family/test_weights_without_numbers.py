"""Models whose weights are nowhere: on the device ``meta``, or with other processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import neox_lab as nl
from neox_lab.errors import CheckpointError, DeviceError

TEXT, OTHER = "The best school of Sweden is in", "The best school of Russia is in"
METRIC = nl.patching.logit_difference(5, 6)
ASKED: dict[str, Callable[[Any], object]] = {
    "a text": lambda model: model(TEXT),
    "a cache": lambda model: model.run_with_cache(TEXT),
    "generating": lambda model: model.generate(TEXT, max_new_tokens=2),
    "generating from ids": lambda model: model.generate(model.to_tokens(TEXT), max_new_tokens=2),
    "a sweep": lambda model: nl.patching.sweep(model, TEXT, OTHER, METRIC),
    "a lens": lambda model: nl.lens.logit_lens(model, TEXT),
    "attribution": lambda model: nl.attribution.direct_logit_attribution(model, TEXT, 5, 6),
}


@pytest.mark.parametrize("what", ASKED)
def test_shapes_without_numbers_give_no_answer(what: str) -> None:
    with pytest.raises(DeviceError, match=r"'meta': shapes without numbers.*nl\.load\(name\)"):
        ASKED[what](nl.load().to("meta"))


def test_what_makes_do_with_shapes_still_does() -> None:
    model = nl.load().to("meta")
    tokens = model.to_tokens(TEXT)
    assert model(tokens).logits.shape == (1, tokens.shape[1], model.config.vocab_size)
    assert len(model.hook_table()) == len(nl.load().hook_table())


def test_weights_that_other_processes_have_are_not_saved(tmp_path: Path) -> None:
    """As DeepSpeed leaves them between passes (ZeRO-3)."""
    model = nl.load()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    with pytest.raises(CheckpointError, match=r"embed_in.* no numbers: .* \[0\].*state_dict="):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    model.save_pretrained(tmp_path / "gathered", state_dict=whole)
    assert (tmp_path / "gathered" / "model.safetensors").read_bytes() == before
