"""How well tensors are rebuilt: four definitions in use, which give different numbers.

    sparsify             1 - sum |y - ŷ|² / sum |y - mean y|²         its complement is the FVU here
    dictionary_learning  1 - sum of Var(y - ŷ) / sum of Var(y)        a constant error is free
    sae_lens_legacy      mean over tokens of 1 - |y - ŷ|² / |y - mean y|²
                                                                 tokens near the mean decide
    sae_bench            1 - E|y - ŷ|² / (E|y|² - (mean of y²)²)      no variance is below

The mean is that of all tokens; sparsify takes it for each batch. SAELens 6.54 has corrected its
``explained_variance``, which was ``sae_bench``'s, to the first.
"""

from __future__ import annotations

from torch import Tensor


def fvu(y: Tensor, rebuilt: Tensor) -> float:
    """Fraction of variance unexplained.

    Args:
        y: what stands there ``[token, d]``.
        rebuilt: what was written ``[token, d]``.
    """
    y, rebuilt = y.double(), rebuilt.double()
    return float((y - rebuilt).square().sum() / (y - y.mean(0)).square().sum())


def definitions(y: Tensor, rebuilt: Tensor) -> dict[str, float]:
    """The share that is explained, by the four definitions.

    Args:
        y: what stands there ``[token, d]``.
        rebuilt: what was written ``[token, d]``.
    """
    y, rebuilt = y.double(), rebuilt.double()
    error = y - rebuilt
    missed, spread = error.square().sum(1), (y - y.mean(0)).square().sum(1)
    square = y.square()
    below = square.sum(1).mean() - square.mean().square()
    return {
        "sparsify": float(1 - missed.sum() / spread.sum()),
        "dictionary_learning": float(1 - _variance(error) / _variance(y)),
        "sae_lens_legacy": float((1 - missed / spread).mean()),
        "sae_bench": float(1 - missed.mean() / below),
    }


def _variance(tensor: Tensor) -> Tensor:
    """Summed over dimensions; the number of tokens cancels in a ratio."""
    return (tensor - tensor.mean(0)).square().sum()
