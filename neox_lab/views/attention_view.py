"""Attention as maps: where each token looks, head by head.

A row of a map is a query, the token that looks; a column is a key, the token looked at. One head
fills the picture with labels on both sides and, when it is small, its numbers; many heads become
small maps on one colour scale. That scale grows with the square root of the weight, because in a
long text most weights are small and the first token always has weight 1 on itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neox_lab.errors import InputError
from neox_lab.head_names import head_words
from neox_lab.progress import counted
from neox_lab.selections import whole_number
from neox_lab.views.attention_data import attention_data
from neox_lab.views.attention_maps import draw_head, draw_heads
from neox_lab.views.attention_patterns import AttentionPatterns, entropies, measures, strongest
from neox_lab.views.base import View
from neox_lab.views.drawing import Sheet, number
from neox_lab.views.markup import Table
from neox_lab.views.tokens import html_text, isolated, label

if TYPE_CHECKING:
    pass

TOKEN_LIMIT = 400  # tokens listed below the picture
LABEL_LIMIT = 24  # characters of a token in a table
SKETCH_FIELDS = 100_000  # of all small maps together, in a notebook's picture
PAIRS = 3  # strongest pairs told of a head


class AttentionView(AttentionPatterns, View):
    """Attention patterns of some layers and heads over one text.

    Args:
        patterns: weights ``[layer, head, query, key]``, finite and not negative.
        pieces: the tokens, one string for each position.
        layers: the layers' numbers; 0, 1, … if not given.
        heads: the heads' numbers; 0, 1, … if not given.
        title: the headline.

    Raises:
        InputError: these do not fit together.
    """

    asset = "attention"

    def __init__(
        self,
        patterns: object,
        pieces: Sequence[str],
        layers: Sequence[int] | None = None,
        title: str | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        AttentionPatterns.__init__(self, patterns, pieces, layers, heads)
        View.__init__(self, title, self._own_title())

    def _own_title(self) -> str:
        """A headline that names what is shown."""
        if len(self.layers) > 1:
            return f"Attention of {len(self.layers)} layers × {counted(len(self.heads), 'head')}"
        layer = self.layers[0]
        single = len(self.heads) == 1
        return f"Attention in {head_words(layer, self.heads[0]) if single else f'layer {layer}'}"

    def layer(self, layer: int) -> AttentionView:
        """Only the heads of one layer, named by its number."""
        at = _position(layer, self.layers, "layer")
        return AttentionView(self.patterns[at : at + 1], self.pieces, [layer], heads=self.heads)

    def head(self, layer: int, head: int) -> AttentionView:
        """Only one head, as one large map.

        Args:
            layer: its number in the model.
            head: likewise.
        """
        at, of = _position(layer, self.layers, "layer"), _position(head, self.heads, "head")
        chosen = self.patterns[at : at + 1, of : of + 1]
        return AttentionView(chosen, self.pieces, [layer], heads=[head])

    @property
    def alt_text(self) -> str:
        """What is drawn, and the strongest weight in it."""
        layers, heads = counted(len(self.layers), "layer"), counted(len(self.heads), "head")
        single = len(self.layers) == len(self.heads) == 1
        shown = "One map" if single else f"{layers} by {heads}, a map each,"
        text = (
            f"{shown} of attention over {counted(len(self.pieces), 'token')}; "
            f"a row for each query, a column for each key."
        )
        if len(self.pieces) == 1:
            return text
        later = self.patterns[:, :, 1:]
        at, of, query, key = np.unravel_index(int(later.argmax()), later.shape)
        return (
            f"{text} After the first query, the largest weight is {float(later.max()):.2f}, in "
            f"{head_words(self.layers[at], self.heads[of])}, from "
            f"{self._token(int(query) + 1)} to {self._token(int(key))}."
        )

    def tables(self) -> list[Table]:
        """For each head, or for each query of a single head, where it looks."""
        if len(self.layers) == len(self.heads) == 1:
            return [self._query_table()]
        rows = []
        for at, layer in enumerate(self.layers):
            for of, head in enumerate(self.heads):
                pattern = self.patterns[at, of]
                entropy, first, previous = measures(pattern)
                pairs = strongest(pattern, PAIRS) if len(pattern) > 1 else []
                shown = "; ".join(
                    f"{self._token(query)} → {self._token(key)} {pattern[query, key]:.2f}"
                    for query, key in pairs
                )
                numbers = [number(entropy, 2), _percent(first), _percent(previous)]
                rows.append([str(layer), str(head), *numbers, shown])
        names = ["layer", "head", "entropy (bits)", "on first", "on previous"]
        columns = [*((name, "r") for name in names), ("strongest query → key", "l")]
        note = "Means over all queries but the first; tokens are written with their position."
        return [Table("Where each head looks", columns, rows, note, ".head_frame")]

    def _query_table(self) -> Table:
        """For each query of the only head, the keys it looks at most."""
        pattern = self.patterns[0, 0]
        rows = []
        for query, weights in enumerate(pattern):
            best = np.argsort(-weights, kind="stable")[:PAIRS]
            keys = [f"{self._token(int(k))} {weights[k]:.2f}" for k in best if weights[k] > 0]
            entropy = entropies(weights[None])[0]
            rows.append(
                [
                    str(query),
                    isolated(label(self.pieces[query], LABEL_LIMIT)),
                    number(entropy, 2),
                    "; ".join(keys),
                ]
            )
        names = ["position", "query", "entropy (bits)", "looks most at"]
        columns = list(zip(names, "rlrl", strict=True))
        return Table("Where each token looks", columns, rows)

    def _token(self, position: int) -> str:
        """A token for running text, with its position: repeated tokens look alike."""
        return f"{isolated(label(self.pieces[position], LABEL_LIMIT))}@{position}"

    def _running_text(self) -> str:
        """All tokens with their positions, for maps too small to name them."""
        shown = "  ".join(
            f"{position} {isolated(label(piece, LABEL_LIMIT))}"
            for position, piece in enumerate(self.pieces[:TOKEN_LIMIT])
        )
        rest = len(self.pieces) - TOKEN_LIMIT
        more = f" … and {rest} more" if rest > 0 else ""
        return (
            f"<details><summary>The {counted(len(self.pieces), 'token')} by position</summary>"
            f"<p>{html_text(shown + more)}</p></details>\n"
        )

    def data(self) -> dict[str, Any]:
        """Weights in 256 steps, of as many heads as fit into a small file."""
        return attention_data(self)

    def _draw(self) -> Sheet:
        single = len(self.layers) == len(self.heads) == 1
        return draw_head(self) if single else draw_heads(self)

    def _sketch(self) -> Sheet:
        single = len(self.layers) == len(self.heads) == 1
        return draw_head(self) if single else draw_heads(self, SKETCH_FIELDS)


def _position(number: int, numbers: list[int], name: str) -> int:
    """Where a layer or head of this number is."""
    number = whole_number(name, number, InputError)
    if number not in numbers:
        raise InputError(f"this view has no {name} {number}; it has {name}s {numbers}")
    return numbers.index(number)


def _percent(share: float) -> str:
    """A share as a percentage."""
    return "–" if np.isnan(share) else f"{100 * share:.0f} %"
