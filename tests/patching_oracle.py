"""Patching the slow way: one forward pass with a hook for each cell."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from oracle import randomize
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments.metrics import bind, output_logits
from neox_lab.experiments.patching.sites import SITES, Site

CLASSES = {
    "causal-lm": "GPTNeoXForCausalLM",
    "sequence-classification": "GPTNeoXForSequenceClassification",
    "token-classification": "GPTNeoXForTokenClassification",
    "question-answering": "GPTNeoXForQuestionAnswering",
}


def small(head: str = "causal-lm", seed: int = 0, **sizes: Any) -> Any:
    """A model with large random weights."""
    given: dict[str, Any] = {
        "vocab_size": 53,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "rotary_pct": 0.5,
        "max_position_embeddings": 32,
        "pad_token_id": 1,
        "num_labels": 4,
    }
    model = getattr(nl, CLASSES[head])(nl.GPTNeoXConfig(**given | sizes)).eval()
    randomize(model, std=0.3, seed=seed)
    return model


def prompts(batch: int, pos: int, first: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids ``[batch, pos]`` that differ at ``first``, and now and then after."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(2, 50, (batch, pos), generator=generator)
    corrupted = clean.clone()
    again = torch.rand(batch, pos, generator=generator) < 0.3
    again[:, : first + 1] = False
    again[:, first] = True
    corrupted[again] = (clean[again] - 2 + 7) % 48 + 2
    return clean, corrupted


def put(target: Tensor, value: Tensor, site: Site, at: dict[str, int]) -> Tensor:
    """``target`` with the part of ``value`` that a cell names."""
    every = slice(None)
    head, pos, source = (at.get(axis, every) for axis in ("head", "pos", "source_pos"))
    where: Any = (every, pos)
    if site.is_pattern:
        where = (every, head, pos, source)
    elif site.by_head:
        where = (every, pos, head)
    target[where] = value[where]
    return target


@torch.no_grad()
def one_by_one(
    model: Any, clean: Tensor, corrupted: Tensor, metric: Any, name: str, mask: Tensor | None = None
) -> Tensor:
    """The metric of every cell of a site, each by a forward pass of its own."""
    site = SITES[name]
    arguments = {} if mask is None else {"attention_mask": mask}
    _, cache = model.run_with_cache(clean, f"blocks.*.{site.hook}", **arguments)
    length = clean.shape[1]
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    sizes = {"layer": layers, "head": heads, "pos": length, "source_pos": length}
    shape = tuple(sizes[axis] for axis in site.axes)
    bound = bind(metric, model, {"input_ids": corrupted} | arguments)
    values = torch.empty(shape)
    for cell in itertools.product(*map(range, shape)):
        at = dict(zip(site.axes, cell, strict=True))
        hook = f"blocks.{at['layer']}.{site.hook}"
        hooks = [(hook, lambda x, _, hook=hook, at=at: put(x, cache[hook], site, at))]
        output = model.run_with_hooks(corrupted, hooks, **arguments)
        values[cell] = bound(output_logits(output))
    return values
