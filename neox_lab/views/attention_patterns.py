"""Attention patterns with their tokens, and numbers that say where a head looks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.selections import one_each
from neox_lab.views.base import array, texts

if TYPE_CHECKING:
    import pandas as pd


class AttentionPatterns:
    """Patterns of some layers and heads over one text: what ``AttentionView`` draws.

    Args:
        patterns: weights ``[layer, head, query, key]``, finite and not negative.
        pieces: the tokens, one string for each position.
        layers: the layers' numbers; 0, 1, … if not given.
        heads: the heads' numbers; 0, 1, … if not given.

    Attributes:
        title: the headline of their picture.

    Raises:
        InputError: these do not fit together.
    """

    title: str

    def __init__(
        self,
        patterns: object,
        pieces: Sequence[str],
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
    ) -> None:
        self.patterns = array(patterns, "layer head query key", "patterns")
        layer_count, head_count, queries, keys = self.patterns.shape
        if queries != keys or 0 in self.patterns.shape:
            raise InputError(
                f"patterns must be [layer, head, query, key] with as many queries as keys and at "
                f"least one of each; got {self.patterns.shape}"
            )
        if not np.isfinite(self.patterns).all() or self.patterns.min() < 0:
            raise InputError(
                "attention weights must be finite and not negative; these are not. Of a run: "
                "model.check() names weights that are NaN or infinite. Scores and gradients can be "
                "drawn with HeatmapView."
            )
        self.pieces = texts(pieces, keys, "pieces", "token")
        self.layers = _numbers(layers, layer_count, "layers")
        self.heads = _numbers(heads, head_count, "heads")

    @cached_property
    def causal(self) -> bool:
        """Whether no token looks ahead; then the part above the diagonal is left white."""
        return not np.triu(self.patterns, 1).any()

    @cached_property
    def top(self) -> float:
        """The weight with the last colour: 1, or the largest if an edited pattern has larger."""
        return max(1.0, float(self.patterns.max()))

    @property
    def frame(self) -> pd.DataFrame:
        """Columns layer, head, query_pos, query, key_pos, key, weight; causal weights only."""
        count = len(self.pieces)
        shown = np.tri(count, dtype=bool) if self.causal else np.ones((count, count), dtype=bool)
        query, key = np.nonzero(shown)
        weights = self.patterns[:, :, query, key]
        layer, head, pair = np.unravel_index(np.arange(weights.size), weights.shape)
        pieces = np.array(self.pieces, dtype=object)
        return make_frame(
            {
                "layer": np.array(self.layers)[layer],
                "head": np.array(self.heads)[head],
                "query_pos": query[pair],
                "query": pieces[query[pair]],
                "key_pos": key[pair],
                "key": pieces[key[pair]],
                "weight": weights.ravel(),
            }
        )

    @property
    def head_frame(self) -> pd.DataFrame:
        """One row for each head: where it looks on average over all queries but the first.

        Columns: layer, head, entropy_bits (mean over queries), first (mean weight on token 0),
        previous (mean weight on the token before), and the strongest pair: strongest_query_pos,
        strongest_key_pos, strongest_weight. The first query has no choice and is left out; a text
        of one token has nothing else, and its numbers are NaN.
        """
        rows = []
        for at, layer in enumerate(self.layers):
            for of, head in enumerate(self.heads):
                pattern = self.patterns[at, of]
                query, key = strongest(pattern, 1)[0] if len(pattern) > 1 else (0, 0)
                where = (query, key, float(pattern[query, key]))
                rows.append((layer, head, *measures(pattern), *where))
        names = ["layer", "head", "entropy_bits", "first", "previous"]
        best = ["strongest_query_pos", "strongest_key_pos", "strongest_weight"]
        return make_frame(rows, columns=names + best)


def measures(pattern: NDArray[np.float32]) -> tuple[float, float, float]:
    """Entropy in bits, weight on token 0 and weight on the token before, of ``[query, key]``.

    Means over all queries but the first; NaN if there is no other.
    """
    if len(pattern) < 2:
        return (float("nan"),) * 3
    entropy = float(entropies(pattern[1:]).mean())
    return entropy, float(pattern[1:, 0].mean()), float(np.diagonal(pattern, -1).mean())


def strongest(pattern: NDArray[np.float32], count: int) -> list[tuple[int, int]]:
    """The ``count`` (query, key) positions of the largest weights after the first query."""
    best = np.argsort(-pattern[1:], axis=None, kind="stable")[:count]
    return [(int(at) // pattern.shape[1] + 1, int(at) % pattern.shape[1]) for at in best]


def entropies(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shannon entropy in bits of each row of ``[query, key]``; 0 log 0 is 0."""
    wide = weights.astype(np.float64)
    logarithm = np.log2(wide, out=np.zeros_like(wide), where=wide > 0)
    entropy: NDArray[np.float64] = -(wide * logarithm).sum(-1) + 0.0
    return entropy


def _numbers(given: Sequence[int] | None, count: int, name: str) -> list[int]:
    """The numbers of the layers or heads, checked against how many there are."""
    numbers = list(range(count)) if given is None else one_each(name, given, count, InputError)
    if len(numbers) != count or len(set(numbers)) != count:
        raise InputError(f"{name} must be {count} different numbers, got {numbers}")
    return numbers
