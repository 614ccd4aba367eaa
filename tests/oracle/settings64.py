"""The networks the oracle is asked about: both wirings, all rope types, with biases and without."""

from __future__ import annotations

from typing import Any

import torch
from network64 import Network64
from oracle import randomize
from torch import Tensor

import neox_lab as nl

PAD = 1
LENGTH = 7
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0},
    "longrope": {
        "original_max_position_embeddings": 6,
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [1.5, 2.5, 4.0],
    },
    "llama3": {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 16,
    },
}
CLASSES = {
    "causal-lm": "GPTNeoXForCausalLM",
    "sequence-classification": "GPTNeoXForSequenceClassification",
    "token-classification": "GPTNeoXForTokenClassification",
    "question-answering": "GPTNeoXForQuestionAnswering",
}
# Each rope type once, and each other setting both ways.
NETWORKS: dict[str, dict[str, Any]] = {
    "default": {"use_parallel_residual": True},
    "sequential": {"use_parallel_residual": False, "tie_word_embeddings": True},
    "linear": {"rope": "linear", "use_parallel_residual": False, "attention_bias": False},
    "dynamic": {"rope": "dynamic", "max_position_embeddings": 5, "tie_word_embeddings": True},
    "yarn": {"rope": "yarn", "use_parallel_residual": False},
    "longrope": {"rope": "longrope", "attention_bias": False, "tie_word_embeddings": True},
    "llama3": {"rope": "llama3", "use_parallel_residual": False, "attention_bias": False},
}
SIDES = ("none", "left", "right")


def build(name: str = "default", head: str = "causal-lm", **more: Any) -> tuple[Any, Network64]:
    """A float64 model with large random weights, and the same network from its formulas."""
    given: dict[str, Any] = {
        **{"vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
        **{"intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": PAD},
        **{"num_labels": 3, "hidden_act": "gelu", "eos_token_id": 0, "bos_token_id": 0},
    }
    given |= NETWORKS[name] | more
    kind = given.pop("rope", "default")
    rope = {"rope_type": kind, "rope_theta": 100.0, "partial_rotary_factor": 0.75, **ROPES[kind]}
    config = nl.GPTNeoXConfig(**given, rope_parameters=rope)
    model = getattr(nl, CLASSES[head])(config).double().eval()
    randomize(model, std=0.3, seed=len(name))
    return model, Network64.of(model)


def texts(side: str = "none", batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Ids and mask ``[batch, pos]``: texts of 7, 4 and 6 tokens, or all of 7."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 41, (batch, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if side != "none":
        for row in range(batch):
            missing = (0, 3, 1)[row % 3]
            where = slice(0, missing) if side == "left" else slice(LENGTH - missing, LENGTH)
            mask[row, where] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def close(got: Any, wanted: Any, tolerance: float = 2e-6) -> None:
    """Assert equality to what angles in float32 leave; NaN stands where NaN stands."""
    got, wanted = (x if isinstance(x, Tensor) else torch.tensor(x) for x in (got, wanted))
    got, wanted = got.double(), wanted.double()
    size = max([1.0, *wanted.nan_to_num(posinf=0, neginf=0).abs().flatten().tolist()])
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * size, equal_nan=True)
