"""Small models with large weights, and the same with LoRA adapters of PEFT's put in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracle import randomize
from torch import Tensor

import neox_lab as nl

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "eos_token_id": 0,
    "num_labels": 3,
}
MATRICES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
LM = "GPTNeoXForCausalLM"
METRIC = nl.patching.logit_difference([3, 4], [6, 7])


def build(name: str = LM, **overrides: Any) -> Any:
    """A model in float64, where rounding hides no difference and makes none."""
    model = getattr(nl, name)(nl.GPTNeoXConfig(**SMALL | overrides)).eval()
    randomize(model, std=0.3)
    return model.double()


def ids(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 53, (2, 6), generator=generator)


def with_lora(model: Any, targets: list[str] = MATRICES, **settings: Any) -> Any:
    """``model`` with an adapter beside its matrices that changes a lot."""
    peft = pytest.importorskip("peft", reason="peft is not installed (extra: lora)")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **settings)
    peft.inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.3 * noise)
    return model.double().eval()


def merged(model: Any) -> Any:
    """A copy of ``model`` whose adapters went into plain matrices, by PEFT's own arithmetic."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "get_base_layer"):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    return model


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(b.detach().abs().nan_to_num().max().clamp(min=1))
    torch.testing.assert_close(
        a.double(), b.double(), rtol=0, atol=tolerance * scale, equal_nan=True
    )
