"""Surprise of the token that really follows, layer by layer, with an interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from neox_lab.checks import SEED, check
from neox_lab.data.statistics import mean_interval, statistic_interval
from neox_lab.errors import InputError
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView


def mean_surprise(
    surprise: Tensor, entropy: Tensor, follows: Tensor, labels: list[str], seed: int
) -> pd.DataFrame:
    """Means over the positions that a token follows.

    Args:
        surprise: bits ``[layer, batch, pos]``.
        entropy: bits, of the same shape.
        follows: whether a token follows, ``[batch, pos]``.
        labels: names of the rows.
        seed: of the draws for the interval.

    Returns:
        What ``LensResult.mean_surprise`` does.

    Raises:
        InputError: there is no such position.
    """
    seed = check("seed", seed, SEED, InputError)
    if not follows.any():
        raise InputError("No token follows another here, so there is no surprise to average.")
    values = surprise[:, follows].double()  # [layer, position]
    counts = follows.sum(dim=1)
    ends = [_interval(row, counts[counts > 0].tolist(), seed) for row in values]
    return make_frame(
        {
            "layer": labels,
            "surprise_bits": values.mean(dim=1).tolist(),
            "low": [low for low, _ in ends],
            "high": [high for _, high in ends],
            "entropy_bits": entropy[:, follows].double().mean(dim=1).tolist(),
            "positions": [int(counts.sum())] * len(labels),
            "texts": [int((counts > 0).sum())] * len(labels),
        }
    )


def _interval(values: Tensor, counts: list[int], seed: int) -> tuple[float, float]:
    """Interval of the mean over positions, those of each text together; NaN where one is.

    Args:
        values: ``[position]``, text after text.
        counts: how many positions each text has.
        seed: of the draws.
    """
    if not values.isfinite().all():
        return math.nan, math.nan
    if len(counts) == 1:
        return mean_interval(values.numpy(), seed)
    sizes = np.array(counts)
    sums = np.add.reduceat(values.numpy(), np.cumsum(sizes) - sizes)
    return statistic_interval(
        len(sums), lambda drawn: float(sums[drawn].sum() / sizes[drawn].sum()), seed=seed
    )


def surprise_curve(means: pd.DataFrame, vocab_size: int, name: str, site: str) -> CurvesView:
    """What ``mean_surprise`` found, over the rows of the lens.

    Args:
        means: its frame.
        vocab_size: for the surprise of a guess without any knowledge.
        name: which lens.
        site: what it read.
    """
    from neox_lab.views import CurvesView, Line

    places = list(range(len(means)))
    positions, texts = int(means["positions"][0]), int(means["texts"][0])
    drawn = f"{texts} texts" if texts > 1 else f"{positions} positions"
    return CurvesView(
        f"{name} on {site}: surprise of the next token, mean of {drawn}",
        {
            "surprise of the token that follows": Line(
                places, means["surprise_bits"], means["low"], means["high"]
            ),
            "entropy: the surprise that is expected": Line(places, means["entropy_bits"]),
        },
        "layer",
        "bits",
        list(means["layer"]),
        {"every token equally likely": math.log2(vocab_size)},
    )
