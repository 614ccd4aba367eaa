"""Names for the cells of a result: layers, heads, and the tokens that stand at positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from neox_lab.experiments.patching.prompts import Prompts


def axis_labels(
    model: Any, patched: Prompts, other: Any, positions: Mapping[str, Any] | None, shape: Any
) -> dict[str, list[str]]:
    """For each axis a name for each index.

    Args:
        model: with or without a tokenizer.
        patched: the prompts that get patched.
        other: where patches come from; tokens are shown if these are Prompts.
        positions: named positions, if those are the cells.
        shape: not used beyond the number of layers.
    """
    config = model.config
    tokens = token_labels(model, patched, other if isinstance(other, Prompts) else None)
    return {
        "layer": [str(layer) for layer in range(config.num_hidden_layers)],
        "head": [str(head) for head in range(config.num_attention_heads)],
        "pos": tokens if positions is None else list(positions),
        "source_pos": tokens,
    }


def token_labels(model: Any, patched: Prompts, other: Prompts | None) -> list[str]:
    """What stands in each column: its token if all pairs agree, otherwise how far from the end."""
    length = patched.ids.shape[1]
    sides = [patched.ids]
    if other is not None and other.ids.shape == patched.ids.shape:
        sides.append(other.ids)
    return [_label(model, [side[:, pos] for side in sides], pos - length) for pos in range(length)]


def _label(model: Any, columns: Iterable[Tensor], from_end: int) -> str:
    found = [set(column.tolist()) for column in columns]
    if any(len(ids) > 1 for ids in found):
        return str(from_end)
    ids = list(dict.fromkeys(next(iter(ids)) for ids in found))
    if model.tokenizer is None:
        return "/".join(map(str, ids))
    return "/".join(str(model.tokenizer.piece_text(token)) for token in ids)
