"""GPT-NeoX once more, from its formulas, in float64 and without a line of the package.

    network = Network64.of(model)                 # reads config and state dictionary, nothing else
    run = network(ids, mask)                      # run["blocks.0.attn.hook_z"], run.logits
    network(ids, mask, {"blocks.0.hook_mlp_out": lambda x: 0 * x})    # what if

Everything is written out: no fused attention, no layer norm of PyTorch's, no cache. Angles are the
one thing in float32, as the architecture has them. Autograd goes through all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Edits = Mapping[str, Callable[[Tensor], Tensor]]
"""By name of an activation what stands in its place."""


@dataclass
class Run64:
    """What one run made: activations by hook name, and what the head says."""

    seen: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    def __getitem__(self, name: str) -> Tensor:
        return self.seen[name]


@dataclass(frozen=True)
class Network64:
    """Weights in float64 and a configuration.

    Attributes:
        weights: by their names in checkpoints, without the prefix ``gpt_neox.``.
        config: numbers of the architecture.
    """

    weights: dict[str, Tensor]
    config: Any

    @classmethod
    def of(cls, model: Any) -> Network64:
        """The same network."""
        named = {k.removeprefix("gpt_neox."): v for k, v in model.state_dict().items()}
        return cls({k: v.detach().double().clone() for k, v in named.items()}, model.config)

    @property
    def layers(self) -> int:
        return int(self.config.num_hidden_layers)

    @property
    def heads(self) -> int:
        return int(self.config.num_attention_heads)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x Wᵀ + b."""
        out = x @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def head(self, x: Tensor) -> Tensor:
        """What the head makes of the final layer norm's output."""
        for name in ("embed_out", "score", "classifier", "qa_outputs"):
            if f"{name}.weight" in self.weights:
                return self.linear(name, x)
        return x

    def normalize(self, x: Tensor) -> Tensor:
        """The final layer norm."""
        return self._norm("final_layer_norm", "ln_final", x, lambda _, y: y)

    def __call__(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        edits: Edits | None = None,
        positions: Tensor | None = None,
    ) -> Run64:
        """Read texts.

        Args:
            ids: ``[batch, pos]``.
            mask: 1 for text and 0 for padding, or None.
            edits: see ``Edits``.
            positions: ``[batch, pos]``; from 0 on if None.
        """
        run, edits = Run64(), edits or {}

        def at(name: str, value: Tensor) -> Tensor:
            run.seen[name] = edits[name](value) if name in edits else value
            return run.seen[name]

        batch, length = ids.shape
        own = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask.bool()
        places = torch.arange(length).expand(batch, length) if positions is None else positions
        turn = angles(self.config, places)
        x = at("hook_embed", self.weights["embed_in.weight"][ids])
        for layer in range(self.layers):
            x = self._block(layer, x, own, turn, at)
        run.logits = self.head(self._norm("final_layer_norm", "ln_final", x, at))
        return run

    def _norm(self, name: str, hook: str, x: Tensor, at: Callable[..., Tensor]) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.pow(2).mean(dim=-1, keepdim=True)
        scale = at(f"{hook}.hook_scale", (variance + self.config.layer_norm_eps).sqrt())
        plain = at(f"{hook}.hook_normalized", centred / scale)
        return plain * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _block(
        self, layer: int, x: Tensor, own: Tensor, turn: Any, at: Callable[..., Tensor]
    ) -> Tensor:
        here, stored = f"blocks.{layer}", f"layers.{layer}"
        x = at(f"{here}.hook_resid_pre", x)
        reads = self._norm(f"{stored}.input_layernorm", f"{here}.ln1", x, at)
        added = at(f"{here}.hook_attn_out", self._attention(layer, reads, own, turn, at))
        parallel = self.config.use_parallel_residual
        before = x + added if parallel else at(f"{here}.hook_resid_mid", x + added)
        reads = at(f"{here}.hook_mlp_in", x if parallel else before)
        norm = f"{stored}.post_attention_layernorm"
        reads = self._norm(norm, f"{here}.ln2", reads, at)
        wide = at(f"{here}.mlp.hook_pre", self.linear(f"{stored}.mlp.dense_h_to_4h", reads))
        wide = at(f"{here}.mlp.hook_post", wide * (1 + torch.erf(wide / math.sqrt(2))) / 2)
        out = at(f"{here}.hook_mlp_out", self.linear(f"{stored}.mlp.dense_4h_to_h", wide))
        return at(f"{here}.hook_resid_post", before + out)

    def _attention(
        self, layer: int, x: Tensor, own: Tensor, turn: Any, at: Callable[..., Tensor]
    ) -> Tensor:
        here, stored = f"blocks.{layer}.attn", f"layers.{layer}.attention"
        batch, length, width = x.shape
        size = width // self.heads
        qkv = self.linear(f"{stored}.query_key_value", x).reshape(batch, length, self.heads, -1)
        q = at(f"{here}.hook_q", qkv[..., :size])
        k = at(f"{here}.hook_k", qkv[..., size : 2 * size])
        v = at(f"{here}.hook_v", qkv[..., 2 * size :])
        q = at(f"{here}.hook_rot_q", turned(q, *turn))
        k = at(f"{here}.hook_rot_k", turned(k, *turn))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(size)
        seen = torch.ones(length, length, dtype=torch.bool).tril() & own[:, None, None, :]
        blind = ~seen.any(dim=-1, keepdim=True)  # looks at nothing, and so evenly at everything
        scores = at(f"{here}.hook_attn_scores", scores.masked_fill(~seen, -math.inf))
        scores = torch.where(blind, torch.zeros_like(scores), scores)
        highest = scores.detach().amax(dim=-1, keepdim=True)
        weights = (scores - highest).exp()
        pattern = at(f"{here}.hook_pattern", weights / weights.sum(dim=-1, keepdim=True))
        z = at(f"{here}.hook_z", torch.einsum("bhqk,bkhd->bqhd", pattern, v))
        return self.linear(f"{stored}.dense", z.reshape(batch, length, width))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``[batch, pos, head, d_head]``: number i is turned with i + half."""
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def angles(config: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[batch, pos, rotary_ndims / 2]`` of any rope type."""
    rope, length = config.rope_parameters, int(positions.max()) + 1
    size = config.hidden_size // config.num_attention_heads
    d = int(size * rope["partial_rotary_factor"])
    base, most, factor = rope["rope_theta"], config.max_position_embeddings, rope.get("factor")
    trained = rope.get("original_max_position_embeddings", most)
    kind, scale = rope["rope_type"], 1.0
    if kind == "dynamic" and length > most:
        base = base * (factor * length / most - (factor - 1)) ** (d / (d - 2))
    frequencies = [base ** (-2 * i / d) for i in range(d // 2)]
    if kind == "linear":
        frequencies = [f / factor for f in frequencies]
    if kind == "longrope":
        lists = rope["long_factor" if length > trained else "short_factor"]
        frequencies = [f / by for f, by in zip(frequencies, lists, strict=True)]
        grown = factor or most / trained
        scale = rope.get("attention_factor") or math.sqrt(
            1 + math.log(grown) / math.log(trained) if grown > 1 else 1
        )
    if kind == "llama3":
        frequencies = [llama3(f, trained, rope) for f in frequencies]
    if kind == "yarn":
        frequencies = [yarn(i, f, d, base, trained, rope) for i, f in enumerate(frequencies)]
        scale = rope.get("attention_factor") or 0.1 * math.log(factor) + 1
    inverse = torch.tensor(frequencies, dtype=torch.float32)
    turns = positions[..., None].float() * inverse
    return (turns.cos() * scale).double(), (turns.sin() * scale).double()


def llama3(frequency: float, trained: int, rope: Mapping[str, Any]) -> float:
    """Slow pairs are slowed down, fast ones kept, those between blended."""
    turns = trained * frequency / (2 * math.pi)  # in a text of the length trained on
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return kept * frequency + (1 - kept) * frequency / float(rope["factor"])


def yarn(
    pair: int, frequency: float, d: int, base: float, trained: int, rope: Mapping[str, Any]
) -> float:
    """Pairs that turn often are kept, pairs that hardly turn slowed down, with a ramp between."""

    def turning(turns: float) -> float:
        return d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(turning(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(turning(rope.get("beta_slow") or 1)), d - 1)
    ramp = (pair - low) / (high - low if high != low else 0.001)
    slowed = min(1.0, max(0.0, ramp))
    return frequency * (1 - slowed) + frequency / float(rope["factor"]) * slowed
