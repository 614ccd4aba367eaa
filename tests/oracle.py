"""Pairs of models with the same weights: transformers' and ours.

Weights are large (standard deviation 0.2 and more), biases are not zero and layer norms are not
one, so that an agreement to 1e-5 means that every part is right, not that every part is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
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


def relative(a: Tensor, b: Tensor) -> float:
    """Length of the difference, relative to the length of the reference ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Assert equality to ``tolerance``: absolute for small numbers, relative for large ones."""
    tolerances = {"rtol": tolerance, "atol": tolerance}
    alike = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if not (alike and torch.allclose(ours, theirs, **tolerances)):  # the quick way to say yes
        torch.testing.assert_close(ours, theirs, **tolerances)


@torch.no_grad()
def their_run(theirs: Any, *args: Any, **arguments: Any) -> tuple[Any, list[Tensor]]:
    """Transformers' output with all extras, and the output of each of their blocks."""
    blocks: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _module, _inputs, out: blocks.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in theirs.get_decoder().layers
    ]
    output = theirs(*args, output_hidden_states=True, output_attentions=True, **arguments)
    for handle in handles:
        handle.remove()
    return output, blocks


@torch.no_grad()
def our_run(ours: Any, *args: Any, **arguments: Any) -> tuple[Any, list[Tensor]]:
    """Our output, and the output of each block; attention stays fused if nothing else is asked."""
    blocks: list[Tensor] = []

    def keep(tensor: Tensor, _hook: Any) -> None:
        blocks.append(tensor.clone())

    with ours.hooks(fwd_hooks=[("blocks.*.hook_resid_post", keep)]):
        return ours(*args, **arguments), blocks


def assert_same_run(theirs: Any, ours: Any, *args: Any, **arguments: Any) -> None:
    """Run both and compare logits, the stream after every block, and every attention pattern.

    Ours runs twice: with fused attention, and with attention in the open.
    """
    expected, their_blocks = their_run(theirs, *args, **arguments)
    fused, our_blocks = our_run(ours, *args, **arguments)
    extras = {"output_hidden_states": True, "output_attentions": True}
    opened, our_open_blocks = our_run(ours, *args, **extras, **arguments)
    assert_same_parts(fused, our_blocks, expected, their_blocks)
    assert_same_parts(opened, our_open_blocks, expected, their_blocks)
    for part in ("hidden_states", "attentions"):
        assert len(opened[part]) == len(expected[part]) > 0
        for got, wanted in zip(opened[part], expected[part], strict=True):
            same(got, wanted)


def assert_same_parts(
    ours: Any, our_blocks: list[Tensor], theirs: Any, their_blocks: list[Tensor]
) -> None:
    """Compare logits and the outputs of all blocks, the last one's before the final norm too."""
    same(ours.logits, theirs.logits)
    assert len(our_blocks) == len(their_blocks) > 0
    for got, wanted in zip(our_blocks, their_blocks, strict=True):
        same(got, wanted)


def in_half(theirs: Any, dtype: torch.dtype) -> Any:
    """Transformers' model as if loaded in ``dtype``, which keeps its rotary frequencies float32."""
    rotary = theirs.get_decoder().rotary_emb
    frequencies = rotary.inv_freq.clone()
    theirs.to(dtype)
    rotary.inv_freq = frequencies
    return theirs


@contextmanager
def sorted_draws() -> Iterator[None]:
    """Let transformers before 5.24 sort what beam sampling draws, as 5.24 does."""
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24):
        yield
        return
    draw = torch.multinomial

    def drawn(probabilities: Tensor, num_samples: int, **more: Any) -> Tensor:
        index = draw(probabilities, num_samples, **more)
        order = probabilities.gather(-1, index).argsort(dim=-1, descending=True)
        return index.gather(-1, order)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", drawn)
        yield
