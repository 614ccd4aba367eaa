"""Where the heads of a circuit look, for its picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.circuits.prompts import Asked
from neox_lab.dropout import has_dropout
from neox_lab.experiments.graph import Node
from neox_lab.experiments.patching.prompts import read_prompts
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint

if TYPE_CHECKING:
    from neox_lab.views import HeadPatterns

MOST_TOKENS = 512
"""A longer prompt gets no maps: a picture has no room for them."""


@torch.no_grad()
def head_patterns(asked: Asked, nodes: Sequence[Node]) -> HeadPatterns | None:
    """The attention of heads on the first clean prompt, its padding left out.

    Args:
        asked: what the circuit was found with.
        nodes: parts of the picture, heads or not.

    Returns:
        None where there is nothing to show: no heads, a prompt too long, dropout is on, or
        attention is NaN.
    """
    from neox_lab.views import HeadPatterns

    model, parts = asked.model, [at for at, node in enumerate(nodes) if node.kind == "head"]
    given = read_prompts(model, asked.clean, "clean")
    own = given.own[0]
    if not parts or int(own.sum()) > MOST_TOKENS or has_dropout(model):
        return None
    found: dict[tuple[int, int], Tensor] = {}

    def keeping(layer: int) -> tuple[str, HookFunction]:
        heads = sorted({nodes[at].head for at in parts if nodes[at].layer == layer})

        @reads_only
        def keep(pattern: Tensor, _: HookPoint) -> None:
            for head in heads:
                found[layer, head] = pattern[0, head][own][:, own].float().cpu()

        return f"blocks.{layer}.attn.hook_pattern", keep

    layers = sorted({nodes[at].layer for at in parts})
    model.run_with_hooks(
        given.ids[:1],
        [keeping(layer) for layer in layers],
        attention_mask=None if given.mask is None else given.mask[:1],
        stop_at_layer=layers[-1] + 1,
    )
    patterns = torch.stack([found[nodes[at].layer, nodes[at].head] for at in parts])
    if not bool(patterns.isfinite().all()):
        return None
    ids: list[int] = given.ids[0][own].tolist()
    tokenizer = model.tokenizer
    pieces = [f"⟨{i}⟩" for i in ids] if tokenizer is None else list(tokenizer.pieces(ids))
    return HeadPatterns(parts, patterns, pieces, "the first clean prompt")
