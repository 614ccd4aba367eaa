"""What the live attention view gets: as many heads as fit, a byte for each weight.

A byte is 255 · weight / top, so a weight is off by at most 0.002 where the largest is 1. Deflated
and as text that is about half a byte for each weight of a causal map, where a decimal takes twenty.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neox_lab.views.attention_patterns import AttentionPatterns
from neox_lab.views.live import packed, rounded
from neox_lab.views.tokens import label, told

WEIGHTS = 720_000  # characters for the weights, of a fragment of a million bytes
MOST_PACKED = 40  # weights a character could hold at best; more need not be tried
LABEL_LIMIT = 40
ABOVE = ", and in a live widget the choice of a layer above does"


class Part(NamedTuple):
    """Which layers, heads and positions are shown: of everything, or as many as fit."""

    layers: list[int]
    heads: list[int]
    first: int


def attention_data(view: AttentionPatterns, room: int = WEIGHTS) -> dict[str, Any]:
    """Data for ``assets/attention.js``, with a note on what is rounded and what is left out.

    Args:
        view: the patterns.
        room: characters that the weights may take.
    """
    part, weights = _fitting(view, room)
    pieces = told(view.pieces)[part.first :]
    measured = view.head_frame[["entropy_bits", "first", "previous"]].to_numpy()
    shape = len(view.layers), len(view.heads), 3
    measures = rounded(measured.reshape(shape)[np.ix_(part.layers, part.heads)], 3)
    return {
        "title": view.title,
        "notes": [_note(view, part)],
        "pieces": [label(piece, LABEL_LIMIT) for piece in pieces],
        "first": part.first,
        "layers": [view.layers[at] for at in part.layers],
        "heads": [view.heads[of] for of in part.heads],
        "causal": view.causal,
        "top": view.top,
        "measures": measures,
        "weights": weights,
    }


def _fitting(view: AttentionPatterns, room: int) -> tuple[Part, str]:
    """The largest part that fits, with its weights: fewer layers first, then heads, then tokens."""
    layers, heads, first = list(range(len(view.layers))), list(range(len(view.heads))), 0
    while True:
        part = Part(layers, heads, first)
        count = len(layers) * len(heads) * (len(view.pieces) - first) ** 2 / 2
        excess = count / (MOST_PACKED * room)
        if excess <= 1:
            text = packed(_levels(view, part))
            excess = len(text) / room
            if excess <= 1:
                return part, text
        if len(layers) > 1:
            layers = _spread(layers, excess)
        elif len(heads) > 1:
            heads = _spread(heads, excess)
        else:
            count = len(view.pieces) - first
            first = len(view.pieces) - math.floor(count / math.sqrt(excess) * 0.98)


def _spread(numbers: list[int], excess: float) -> list[int]:
    """Evenly spaced ones of ``numbers``, so many that a size ``excess`` times too large fits."""
    count = max(1, min(len(numbers) - 1, math.floor(len(numbers) / excess)))
    return [numbers[at] for at in np.linspace(0, len(numbers) - 1, count).round().astype(int)]


def _levels(view: AttentionPatterns, part: Part) -> NDArray[np.uint8]:
    """A byte for each weight ``[layer, head, weight]``; if causal, of keys up to the query."""
    weights = view.patterns[np.ix_(part.layers, part.heads)][:, :, part.first :, part.first :]
    if view.causal:
        weights = weights[:, :, np.tri(weights.shape[-1], dtype=bool)]
    levels: NDArray[np.uint8] = np.rint(255 * (weights / view.top)).astype(np.uint8)
    return levels


def _note(view: AttentionPatterns, part: Part) -> str:
    """How exact the numbers are, and what is not among them."""
    said = f"Weights are rounded to ±{view.top / 510:.1g} here; .frame has them exactly."
    for name, chosen, every in (
        ("layers", part.layers, view.layers),
        ("heads", part.heads, view.heads),
    ):
        if len(chosen) < len(every):
            listed = ", ".join(str(every[at]) for at in chosen)
            said += (
                f" To stay small this shows only {name} {listed} of {len(every)}; "
                f".{name[:-1]}(…) shows any{ABOVE if name == 'layers' else ''}."
            )
    if part.first:
        kept = len(view.pieces) - part.first
        said += f" To stay small this shows only the last {kept} of {len(view.pieces)} tokens."
    return said
