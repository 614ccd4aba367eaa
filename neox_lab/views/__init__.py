"""Results as pictures, tables and text.

    view = nl.views.attention(model, "The cat sat on the mat")
    view                       # in a notebook: maps and a table that outlive the kernel
    view.head(2, 1)            # one head, large
    view.frame                 # every weight, tidy
    view.to_svg("maps.svg")    # also to_png, to_pdf, to_html, to_csv
    nl.views.hooks(model)      # what can be read and changed, to search

The views draw plain arrays and labels and know no model; only ``attention`` and ``hooks`` below ask
one for its patterns and its table, by the names that every model here has.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.errors import InputError
from neox_lab.views.attention import AttentionView
from neox_lab.views.bars import BarsView
from neox_lab.views.base import View, array
from neox_lab.views.confusion import ConfusionView
from neox_lab.views.curves import CurvesView, Line
from neox_lab.views.heatmap import HeatmapView
from neox_lab.views.lens import LensView
from neox_lab.views.notebooks import clean_notebook, notebook_faults
from neox_lab.views.predictions import PredictionsView
from neox_lab.views.report import report, write_report
from neox_lab.views.scatter import ScatterView
from neox_lab.views.strips import Piece, StripView
from neox_lab.views.text import TextView
from neox_lab.views.tokens import label
from neox_lab.views.tree import TreeView

__all__ = [
    "AttentionView",
    "BarsView",
    "ConfusionView",
    "CurvesView",
    "HeatmapView",
    "LensView",
    "Line",
    "Piece",
    "PredictionsView",
    "ScatterView",
    "StripView",
    "TextView",
    "TreeView",
    "View",
    "attention",
    "clean_notebook",
    "hooks",
    "label",
    "notebook_faults",
    "report",
    "write_report",
]

PATTERN = re.compile(r"blocks\.(\d+)\.attn\.hook_pattern")


def attention(
    model_or_cache: Any, text: Any = None, layer: int | None = None, batch_index: int = 0
) -> AttentionView:
    """Attention patterns of a model on a text, or of a cache that already holds them.

    Args:
        model_or_cache: a model (anything with ``run_with_cache`` and ``to_str_tokens``) or a cache
            with patterns `[batch, head, query_pos, key_pos]`.
        text: for a model, what it reads: a string, a list of strings or token ids. For a cache,
            the tokens as a list of strings, where the cache does not know them; without, positions.
        layer: one layer only; all layers that are there if not given.
        batch_index: which text of a batch; its padding is left out.

    Raises InputError if there is no text for a model, no pattern in a cache, or no such layer or
    text in the batch.
    """
    cache, pieces = model_or_cache, text
    if hasattr(model_or_cache, "run_with_cache"):
        if text is None:
            raise InputError("a model needs a text to read: attention(model, 'The cat sat')")
        wanted = "*" if layer is None else str(layer)
        _, cache = model_or_cache.run_with_cache(
            text, names_filter=f"blocks.{wanted}.attn.hook_pattern"
        )
        pieces = model_or_cache.to_str_tokens(text)
    elif not hasattr(cache, "keys"):
        raise InputError(
            f"expected a model with run_with_cache or a cache of activations, got "
            f"{type(model_or_cache).__name__}"
        )
    elif isinstance(text, str):
        raise InputError("a cache cannot cut a text into tokens; give them as a list of strings")
    if pieces is None and batch_index == 0:
        pieces = getattr(cache, "pieces", None)  # a cache knows the tokens of its first text
    pieces = _row(pieces, batch_index)
    layers = _layers(cache, layer)
    patterns = np.stack([_pattern(cache, at, batch_index) for at in layers])
    if pieces is None:
        pieces = [str(position) for position in range(patterns.shape[-1])]
    return AttentionView(
        _without_padding(patterns, cache, batch_index, len(pieces)), pieces, layers
    )


def hooks(model: Any) -> TreeView:
    """The hook points of a model in groups that fold and can be searched; one block for all.

    Args:
        model: anything with a ``hook_table()`` of columns name, shape, meaning and aliases.
    """
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


def _layers(cache: Any, layer: int | None) -> list[int]:
    """The numbers of the layers whose patterns the cache holds, or the one asked for."""
    names = [match for name in cache.keys() if (match := PATTERN.fullmatch(str(name)))]
    layers = sorted(int(match[1]) for match in names)
    if not layers:
        raise InputError(
            "the cache holds no attention patterns; run the model with "
            "names_filter='blocks.*.attn.hook_pattern'"
        )
    if layer is None:
        return layers
    if layer not in layers:
        raise InputError(f"the cache holds no pattern of layer {layer}; it has layers {layers}")
    return [layer]


def _pattern(cache: Any, layer: int, batch_index: int) -> NDArray[np.float32]:
    """One text's patterns `[head, query, key]` of one layer."""
    patterns = array(cache["pattern", layer], "batch head query key", f"layer {layer}'s pattern")
    if not -len(patterns) <= batch_index < len(patterns):
        raise InputError(f"no text {batch_index} in a batch of {len(patterns)}")
    chosen: NDArray[np.float32] = patterns[batch_index]
    return chosen


def _row(pieces: Any, batch_index: int) -> Any:
    """One text's tokens, whether there is one list of them or one for each text of a batch."""
    if pieces is None or not len(pieces) or isinstance(pieces[0], str):
        return pieces
    if not -len(pieces) <= batch_index < len(pieces):
        raise InputError(f"no text {batch_index} in a batch of {len(pieces)}")
    return pieces[batch_index]


def _without_padding(
    patterns: NDArray[np.float32], cache: Any, batch_index: int, count: int
) -> NDArray[np.float32]:
    """`[layer, head, query, key]` at the ``count`` positions that are text, if the rest is padding.

    Texts of one batch are padded to one length, but only their own tokens have names.
    """
    mask = getattr(cache, "attention_mask", None)
    if mask is None or count == patterns.shape[-1]:
        return patterns
    real = np.flatnonzero(array(mask, "batch pos", "the attention mask")[batch_index])
    fits = len(real) == count and patterns.shape[-2] == patterns.shape[-1]
    return patterns[:, :, real[:, None], real] if fits else patterns
