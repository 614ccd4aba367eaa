"""Pairs of models with the same weights: transformers' and ours.

Weights are large (standard deviation 0.2 and more), biases are not zero and layer norms are not
one, so that an agreement to 1e-5 means that every part is right, not that every part is small.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

import neox_lab as nl

SIZES: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
    "pad_token_id": 1,
}

CLASSES = (
    "GPTNeoXModel",
    "GPTNeoXForCausalLM",
    "GPTNeoXForSequenceClassification",
    "GPTNeoXForTokenClassification",
    "GPTNeoXForQuestionAnswering",
)


def randomize(model: torch.nn.Module, std: float = 0.2, seed: int = 0) -> None:
    """Large weights, non-zero biases, layer norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            is_norm_weight = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + noise if is_norm_weight else noise)


def pair(
    name: str = "GPTNeoXForCausalLM", attention: str = "eager", seed: int = 0, **overrides: Any
) -> tuple[Any, Any]:
    """Transformers' model and ours of class ``name``, equal weights, evaluation mode."""
    sizes = SIZES | overrides
    theirs_config = transformers.GPTNeoXConfig(**sizes)
    theirs_config._attn_implementation = attention
    theirs = getattr(transformers, name)(theirs_config).eval()
    randomize(theirs, seed=seed)
    ours = getattr(nl, name)(nl.GPTNeoXConfig(**sizes)).eval()
    copy_weights(theirs, ours)
    return theirs, ours


def copy_weights(theirs: torch.nn.Module, ours: torch.nn.Module) -> None:
    """Load transformers' weights into our model; every key must match."""
    weights = {k.replace("lm_head.", "embed_out."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(weights, strict=True)


def tokens(batch: int = 3, pos: int = 12, vocab: int = 211, seed: int = 0) -> Tensor:
    """Random ids without the padding id 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocab, (batch, pos), generator=generator)


def padding_masks(batch: int = 3, pos: int = 12) -> dict[str, Tensor | None]:
    """No mask, all ones, left padding, right padding, and holes."""
    ones = torch.ones(batch, pos, dtype=torch.long)
    left, right, holes = ones.clone(), ones.clone(), ones.clone()
    left[0, :5] = 0
    left[2, :1] = 0
    right[0, 7:] = 0
    right[1, 11:] = 0
    holes[1, 3:5] = 0
    return {"none": None, "ones": ones, "left": left, "right": right, "holes": holes}


def furthest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return float((a.float() - b.float()).abs().max())
