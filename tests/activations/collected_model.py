"""A small model that every test of collections reads with."""

from __future__ import annotations

from typing import Any

import torch

import neox_lab as nl


def build(**settings: Any) -> Any:
    """A random model with large weights and biases; 16 positions at most."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        **{"vocab_size": 50, "hidden_size": 12, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"intermediate_size": 20, "max_position_embeddings": 16},
    }
    model = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes | settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    return model
