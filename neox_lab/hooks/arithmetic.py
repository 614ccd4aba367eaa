"""Arithmetic on cached activations."""

from __future__ import annotations


class CacheArithmetic:
    """Sums and decompositions of the residual stream."""
