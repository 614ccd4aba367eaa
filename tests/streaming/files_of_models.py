"""Models in files, in memory and streamed, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import neox_lab as nl
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.heads import CLASSES
from neox_lab.streaming import LayerStore, store_of
from neox_lab.streaming.placement import sizes_of

LAYERS = 5


def config(*, parallel: bool = True, layers: int = LAYERS) -> nl.GPTNeoXConfig:
    """A small shape; matrices of some size, vectors of little."""
    return nl.GPTNeoXConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        use_parallel_residual=parallel,
    )


def written(
    folder: Path,
    *,
    parallel: bool = True,
    head: str = "causal-lm",
    dtype: torch.dtype = torch.float32,
    shards: str = "50GB",
) -> Path:
    """A loud random model in a folder; all its layers differ."""
    model = CLASSES[head](config(parallel=parallel)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    return folder


def both(
    folder: Path, *, resident: int = 1, head: str = "causal-lm", dtype: str = "auto"
) -> tuple[GPTNeoXPreTrainedModel, GPTNeoXPreTrainedModel, LayerStore]:
    """The model in memory, and with only its first layers there; the store of the others."""
    load = CLASSES[head].from_pretrained
    whole = load(folder, dtype=dtype)
    parameters = dict(whole.named_parameters())
    stored = dict.fromkeys(parameters, stored_dtype(folder))
    needed = sizes_of(parameters, LAYERS, whole.dtype, stored)
    budget = needed.fixed + needed.passing + (2 + resident) * needed.layers[0]
    streamed = load(folder, dtype=dtype, max_memory={"cpu": budget})
    store = store_of(streamed)
    assert store is not None
    assert list(store.sources) == list(range(resident, LAYERS))
    return whole, streamed, store


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the weights in a folder."""
    return nl.GPTNeoXModel.from_pretrained(folder).dtype


def tokens(batch: int = 2, pos: int = 9, seed: int = 0) -> Tensor:
    """Random ids ``[batch, pos]``."""
    return torch.randint(1, 97, (batch, pos), generator=torch.Generator().manual_seed(seed))


def gradient(model: GPTNeoXPreTrainedModel, run: Callable[..., Tensor], ids: Tensor) -> Tensor:
    """The gradient of ``run(inputs_embeds)`` with respect to the embeddings of ``ids``."""
    embeds = model.backbone.embed_in(ids).detach().requires_grad_()
    run(embeds).sum().backward()
    assert embeds.grad is not None
    return embeds.grad
