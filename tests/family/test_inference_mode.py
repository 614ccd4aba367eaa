"""What is loaded while inference mode is on can be asked for gradients, then and later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import neox_lab as nl
from neox_lab.sae import Dictionary, Weights, screening
from neox_lab.sae.activations import TopK

METRIC = nl.patching.logit_difference(5, 6)


def test_a_model_that_is_loaded_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nl.load()
        inside = nl.circuits.scores(model, "The cat sat", "The dog sat", METRIC, "eap")
    outside = nl.circuits.scores(model, "The cat sat", "The dog sat", METRIC, "eap")
    assert inside == outside
    model("The cat sat").logits.sum().backward()
    assert model.gpt_neox.embed_in.weight.grad is not None


def test_a_dictionary_that_is_loaded_or_made_in_inference_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "is_fast", lambda: True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=generator)
    with torch.inference_mode():
        numbers = torch.randn(16, 4096, generator=generator)
        weights = Weights(numbers, torch.zeros(4096), numbers.T, torch.zeros(16))
        made = Dictionary(weights, TopK(4), site_in="blocks.0.hook_mlp_out", kind="TopK")
        first = made.encode(x)
        made.save_pretrained(tmp_path)
        loaded = nl.sae.load(tmp_path)
        torch.testing.assert_close(loaded.encode(x).values, first.values)
        made.encoder.mul_(2)
        torch.testing.assert_close(made.encode(x).values, 2 * first.values)
    loaded(x).sum().backward()
    assert loaded.W_dec.grad is not None
