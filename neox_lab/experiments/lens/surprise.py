"""Surprise of the token that really follows, layer by layer, with an interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from neox_lab.data.statistics import bootstrap_interval, statistic_interval
from neox_lab.errors import InputError
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView


def mean_surprise(surprise: Tensor, entropy: Tensor, labels: list[str], seed: int) -> pd.DataFrame:
    """Means over the positions whose surprise is known in every row.

    Args:
        surprise: bits ``[layer, batch, pos]``, NaN where nothing follows or nobody knows.
        entropy: bits, of the same shape.
        labels: names of the rows.
        seed: of the draws for the interval.

    Returns:
        ``layer``, ``surprise_bits``, ``low`` and ``high`` (a 95 % bootstrap interval: of several
        texts whole texts are drawn, of one text its positions), ``entropy_bits`` at the same
        positions, and ``positions`` and ``texts``, how many there were.

    Raises:
        InputError: there is no such position.
    """
    known = surprise.isfinite().all(dim=0)
    if not known.any():
        raise InputError("Nothing follows any token here, or every prediction is NaN.")
    texts = known.any(dim=1).nonzero().flatten().tolist()
    values = surprise[:, known].double().T  # [position, layer]
    if len(texts) == 1:
        low, high = (end.tolist() for end in bootstrap_interval(values, seed=seed))
    else:
        counts = known[texts].sum(dim=1).double().numpy()
        sums = surprise.where(known, 0).double().sum(dim=2)[:, texts].numpy()
        ends = [_of_texts(row, counts, seed) for row in sums]
        low, high = (list(side) for side in zip(*ends, strict=True))
    return make_frame(
        {
            "layer": labels,
            "surprise_bits": values.mean(dim=0).tolist(),
            "low": low,
            "high": high,
            "entropy_bits": entropy[:, known].double().mean(dim=1).tolist(),
            "positions": [len(values)] * len(labels),
            "texts": [len(texts)] * len(labels),
        }
    )


def _of_texts(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Interval of the mean over positions when texts are drawn, each with all its positions."""
    return statistic_interval(
        len(sums), lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), seed=seed
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
