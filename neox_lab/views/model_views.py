"""Views of a model: where it attends, and what of it can be read and changed.

These two functions are the only ones in this room that ask a model for something. They know models
and caches by their types alone, which are named for the reader and never imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neox_lab.checks import check, or_none, shown, whole
from neox_lab.errors import InputError
from neox_lab.selections import entry, whole_number
from neox_lab.views.attention_view import AttentionView
from neox_lab.views.base import array
from neox_lab.views.tree import TreeView

if TYPE_CHECKING:
    from torch import Tensor

    from neox_lab.family.contract import HookedModel

Pieces = Sequence[str] | Sequence[Sequence[str]]
"""The tokens of one text, or of each text of a batch."""

_PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")


def attention(
    model_or_cache: HookedModel | Mapping[str, Tensor],
    text: str | list[str] | Tensor | None = None,
    layer: int | None = None,
    batch_index: int = 0,
) -> AttentionView:
    """Attention patterns of a model on a text, or of a cache that already holds them.

    Args:
        model_or_cache: a model, or a cache with patterns ``[batch, head, query_pos, key_pos]``.
        text: for a model, what it reads: a string, a list of strings or token ids. For a cache,
            the tokens as a list of strings, where the cache does not know them; without, positions.
        layer: one layer only; all layers that are there if not given.
        batch_index: which text of a batch; its padding is left out.

    Raises:
        InputError: dropout is on, no text for a model, no pattern in a cache, or no such layer or
            text in the batch.
    """
    from neox_lab.dropout import refuse_dropout  # with torch, which views do without

    pieces: Pieces | None
    if isinstance(model_or_cache, Mapping):
        cache = model_or_cache
        if isinstance(text, str):
            raise InputError(
                "a cache cannot cut a text into tokens; give them as a list of strings"
            )
        pieces = None if text is None else list(text)
        if pieces is None and batch_index == 0:
            pieces = _own_pieces(cache)
    elif hasattr(model_or_cache, "run_with_cache"):
        if text is None:
            raise InputError("a model needs a text to read: attention(model, 'The cat sat')")
        refuse_dropout(model_or_cache)
        layer = check("layer", layer, or_none(whole()), InputError)
        wanted = "*" if layer is None else str(layer)
        _, cache = model_or_cache.run_with_cache(
            text, names_filter=f"blocks.{wanted}.attn.hook_pattern"
        )
        pieces = model_or_cache.to_str_tokens(text)
    else:
        raise InputError(
            f"expected a model with run_with_cache or a cache of activations, got "
            f"{type(model_or_cache).__name__}"
        )
    shown = None if pieces is None else _row(pieces, batch_index)
    layers = _layers(cache, layer)
    patterns = np.stack([_pattern(cache, at, batch_index) for at in layers])
    if shown is None:
        own = _own_positions(cache, batch_index)
        count = patterns.shape[-1] if own is None else len(own)
        shown = [str(position) for position in range(count)]
    return AttentionView(_without_padding(patterns, cache, batch_index, len(shown)), shown, layers)


def hooks(model: HookedModel) -> TreeView:
    """The hook points of a model in groups that fold and can be searched; one block for all.

    Args:
        model: any of the five classes; its ``hook_table()`` is shown.

    Raises:
        InputError: it is none.
    """
    if isinstance(model, type) or not hasattr(model, "hook_table"):
        raise InputError(f"model={shown(model)}; expected a model with a table of hook points")
    table = model.hook_table().astype(str)
    groups: dict[str, list[list[str]]] = {}
    last = max((int(n.split(".")[1]) for n in table["name"] if n.startswith("blocks.")), default=0)
    inside = "blocks.0" if last == 0 else f"blocks.0 … blocks.{last}"
    for row in table.itertuples(index=False):
        name = str(row[0])
        if name.startswith("blocks."):
            if name.startswith("blocks.0."):
                short = name.removeprefix("blocks.0.")
                groups.setdefault(inside, []).append([short, *map(str, row[1:])])
        else:
            where = "after the blocks" if inside in groups else "before the blocks"
            groups.setdefault(where, []).append([name, *map(str, row[1:])])
    return TreeView(list(table.columns), groups, title=f"Hook points of {type(model).__name__}")


def _layers(cache: Mapping[str, Tensor], layer: int | None) -> list[int]:
    """The numbers of the layers whose patterns the cache holds, or the one asked for."""
    names = [match for name in cache.keys() if (match := _PATTERN.fullmatch(str(name)))]
    layers = sorted(int(match[1]) for match in names)
    if not layers:
        raise InputError(
            "the cache holds no attention patterns; run the model with "
            "names_filter='blocks.*.attn.hook_pattern'"
        )
    if layer is None:
        return layers
    layer = whole_number("layer", layer, InputError)
    if layer not in layers:
        raise InputError(f"the cache holds no pattern of layer {layer}; it has layers {layers}")
    return [layer]


def _pattern(cache: Mapping[str, Tensor], layer: int, batch_index: int) -> NDArray[np.float32]:
    """One text's patterns ``[head, query_pos, key_pos]`` of one layer."""
    name = f"blocks.{layer}.attn.hook_pattern"
    patterns = array(cache[name], "batch head query key", f"layer {layer}'s pattern")
    chosen: NDArray[np.float32] = patterns[
        entry("batch_index", batch_index, len(patterns), InputError)
    ]
    return chosen


def _row(pieces: Pieces, batch_index: int) -> Sequence[str]:
    """One text's tokens, whether there is one list of them or one for each text of a batch."""
    if not pieces or isinstance(pieces[0], str):
        return pieces  # type: ignore[return-value]  # a list of strings, as its first entry says
    return pieces[entry("batch_index", batch_index, len(pieces), InputError)]


def _own_positions(cache: Mapping[str, Tensor], batch_index: int) -> NDArray[np.intp] | None:
    """Positions of a text that are no padding; None if the cache does not know."""
    mask = getattr(cache, "attention_mask", None)
    if mask is None or mask.ndim != 2:
        return None
    rows = array(mask, "batch pos", "the attention mask")
    return np.flatnonzero(rows[batch_index if len(rows) > 1 else 0])


def _own_pieces(cache: Mapping[str, Tensor]) -> Sequence[str] | None:
    """Tokens of a cache's first text, the only one that it knows those of; without padding."""
    pieces: Sequence[str] | None = getattr(cache, "pieces", None)
    own = _own_positions(cache, 0)
    return pieces if pieces is None or own is None else [pieces[at] for at in own]


def _without_padding(
    patterns: NDArray[np.float32], cache: Mapping[str, Tensor], batch_index: int, count: int
) -> NDArray[np.float32]:
    """``[layer, head, query_pos, key_pos]`` where there is text, if the rest is padding.

    Texts of one batch are padded to one length, but only their own tokens, ``count``, have names.
    """
    real = _own_positions(cache, batch_index)
    if real is None or count == patterns.shape[-1]:
        return patterns
    fits = len(real) == count and patterns.shape[-2] == patterns.shape[-1]
    return patterns[:, :, real[:, None], real] if fits else patterns
