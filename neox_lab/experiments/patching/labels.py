"""Names for the cells of a result: layers, heads, and the tokens that stand at positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.views.tokens import label as piece_label

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


def axis_labels(
    model: HookedModel, sides: Sequence[Prompts], positions: Mapping[str, object] | None
) -> dict[str, list[str]]:
    """For each axis a name for each index.

    Args:
        model: with or without a tokenizer.
        sides: the prompts that get patched, and those patches come from, clean ones first.
        positions: named positions, if those are the cells.
    """
    config = model.config
    tokens = token_labels(model, sides)
    return {
        "layer": [str(layer) for layer in range(config.num_hidden_layers)],
        "head": [str(head) for head in range(config.num_attention_heads)],
        "pos": tokens if positions is None else [str(name) for name in positions],
        "source_pos": tokens,
    }


def token_labels(model: HookedModel, sides: Sequence[Prompts]) -> list[str]:
    """What stands in each column: its token if all pairs agree, otherwise how far from the end.

    Where clean and corrupted prompts have different tokens, the labels of both, so that their
    spaces are seen: ``"·clean/·corrupted"``.
    """
    length = max(side.ids.shape[1] for side in sides)
    ids = [side.ids for side in sides]
    if any(side.shape[1] != length for side in ids):
        return [str(pos - length) for pos in range(length)]
    return [_label(model, [side[:, pos] for side in ids], pos - length) for pos in range(length)]


def _label(model: HookedModel, columns: Iterable[Tensor], from_end: int) -> str:
    found = [set(column.tolist()) for column in columns]
    if any(len(ids) > 1 for ids in found):
        return str(from_end)
    ids = list(dict.fromkeys(next(iter(ids)) for ids in found))
    if model.tokenizer is None:
        return "/".join(map(str, ids))
    pieces = [str(model.tokenizer.piece_text(token)) for token in ids]
    return pieces[0] if len(pieces) == 1 else "/".join(map(piece_label, pieces))
