"""A circuit run the slow way: a network written out by hand, reader by reader and edge by edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Edge = tuple[str, str]


def norm(x: Tensor, module: Any) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + module.eps).sqrt() * module.weight + module.bias


def turned(x: Tensor, places: Tensor, width: int) -> Tensor:
    """Rotary embedding of ``[pos, d_head]`` at ``places`` ``[pos]``."""
    half = width // 2
    frequencies = 10000.0 ** (-2 * torch.arange(half) / width)
    angles = places[:, None] * frequencies
    first, second = x[:, :half], x[:, half:width]
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    return torch.cat((rotated, x[:, width:]), -1)


class ByHand:
    """One text, ``ids`` ``[pos]`` without padding, through a model's weights."""

    def __init__(self, model: Any) -> None:
        self.model, config = model, model.config
        self.layers, self.heads = config.num_hidden_layers, config.num_attention_heads
        self.parallel = config.use_parallel_residual
        self.width = int(config.rotary_pct * config.hidden_size // self.heads)

    def run(
        self, ids: Tensor, seen: Callable[[str, dict[str, Tensor]], Tensor] | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What each writer writes, and the logits.

        Args:
            ids: ``[pos]``.
            seen: what a reader sees of the writers before it; their sum if None. Shared biases of
                attention are added by themselves.
        """
        network = self.model.gpt_neox
        wrote: dict[str, Tensor] = {"embed": network.embed_in.weight[ids]}
        shared = torch.zeros(self.model.config.hidden_size)

        def stream(reader: str, before: dict[str, Tensor], shared: Tensor) -> Tensor:
            total = sum(before.values()) if seen is None else seen(reader, before)
            return total + shared  # type: ignore[no-any-return]

        for layer in range(self.layers):
            block, weights = network.layers[layer], self.model.blocks[layer]
            before, bias = dict(wrote), shared
            for head in range(self.heads):
                name = f"L{layer}H{head}"
                parts = {}
                for part in "qkv":
                    x = norm(stream(f"{name}.{part}", before, bias), block.input_layernorm)
                    matrix = getattr(weights, f"W_{part.upper()}")[head]
                    parts[part] = x @ matrix + getattr(weights, f"b_{part.upper()}")[head]
                wrote[name] = self.attend(**parts) @ weights.W_O[head]
            shared = shared + weights.b_O
            if not self.parallel:
                before, bias = dict(wrote), shared
            x = norm(stream(f"MLP{layer}", before, bias), block.post_attention_layernorm)
            inner = torch.nn.functional.gelu(x @ weights.W_in + weights.b_in)
            wrote[f"MLP{layer}"] = inner @ weights.W_out + weights.b_out
        x = norm(stream("logits", dict(wrote), shared), network.final_layer_norm)
        return wrote, x @ self.model.W_U

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        places = torch.arange(len(q))
        q, k = turned(q, places, self.width), turned(k, places, self.width)
        scores = q @ k.T / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(places[:, None] < places, -torch.inf)
        return scores.softmax(-1) @ v

    def under(self, ids: Tensor, kept: set[Edge], replaced: dict[str, Tensor]) -> Tensor:
        """Logits where a reader sees ``replaced`` along every edge that is not kept."""

        def seen(reader: str, before: dict[str, Tensor]) -> Tensor:
            total = torch.zeros_like(before["embed"])
            for writer, value in before.items():
                total = total + (value if (writer, reader) in kept else replaced[writer])
            return total

        return self.run(ids, seen)[1]
