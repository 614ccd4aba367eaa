"""How sure one can be of a mean, a share, or a correlation.

scipy computes what is asked of one row of numbers. What is asked of whole grids, one mean for each
cell, is written here as one matrix product over all cells: scipy's ``permutation_test`` takes ten
times as long for 3,000 cells, and its ``bootstrap`` twice (the tests compare with both).
Everything is seeded, so the same samples give the same intervals.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.checks import SEED, check, number, whole
from neox_lab.errors import InputError

_LEVEL, _COUNT = number(above=0, below=1), whole(least=1, most=10**7)

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def standard_error(samples: Tensor) -> Tensor:
    """Standard error of the mean over the first axis; NaN for a single sample.

    Args:
        samples: ``[pair, ...]``.

    Raises:
        InputError: there is no pair.
    """
    count = _pairs(samples)
    if count < 2:
        return torch.full_like(samples[0], float("nan"))
    return samples.std(dim=0, correction=1) / count**0.5


def bootstrap_interval(
    samples: Tensor, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap of the mean over the first axis (Efron, Ann. Statist. 7, 1979).

    Args:
        samples: ``[pair, ...]``.
        level: share of the resampled means inside.
        draws: how often pairs are drawn again.
        seed: of the draws.

    Returns:
        Lower and upper end, each ``[...]``; NaN of a single pair, which says nothing about others.

    Raises:
        InputError: there is no pair, ``level`` is no share, or nothing is drawn.
    """
    count = _pairs(samples)
    level = check("level", level, _LEVEL, InputError)
    draws = check("draws", draws, _COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    if count == 1:
        unknown = torch.full_like(samples[0], math.nan, dtype=torch.float64)
        return unknown, unknown.clone()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (draws, count), generator=generator)
    weights = (
        torch.zeros(draws, count, dtype=torch.float32).scatter_add_(
            1, drawn, torch.ones(draws, count, dtype=torch.float32)
        )
        / count
    )
    flat = samples.reshape(count, -1).double()
    low, high = torch.empty_like(flat[0]), torch.empty_like(flat[0])
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    for first in range(0, flat.shape[1], 4096):  # the means of many cells would not fit at once
        means = weights.double() @ flat[:, first : first + 4096]
        low[first : first + 4096], high[first : first + 4096] = means.quantile(ends, dim=0)
    shape = samples.shape[1:]
    return low.reshape(shape), high.reshape(shape)


def sign_flip_p_values(effects: Tensor, draws: int = 2000, seed: int = 0) -> Tensor:
    """Two-sided p-values of "the mean effect is zero", by flipping signs of pairs at random.

    If an effect is as likely up as down, flipping a pair's sign changes nothing about its
    distribution (Fisher, The Design of Experiments, 1935). With up to 12 pairs all flips are
    counted; with more, ``draws`` random ones and the one observed.

    Args:
        effects: ``[pair, ...]``, zero if nothing changed.
        draws: random flips.
        seed: of the flips.

    Returns:
        Probabilities ``[...]``, at least 1 / number of flips; NaN where an effect is not finite.

    Raises:
        InputError: there is no pair, or nothing is drawn.
    """
    count = _pairs(effects)
    draws = check("draws", draws, _COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    if count <= 12:
        numbers = torch.arange(2**count)[:, None]
        signs = 1.0 - 2.0 * ((numbers >> torch.arange(count)) & 1).double()
    else:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randint(2, (draws, count), generator=generator).double() * 2 - 1
        signs = torch.cat((torch.ones(1, count, dtype=torch.float64), random))
    flat = effects.reshape(count, -1).double()
    observed = flat.mean(dim=0).abs()
    found = torch.empty_like(observed)
    for first in range(0, flat.shape[1], 4096):
        part = flat[:, first : first + 4096]
        flipped = (signs @ part).abs() / count
        # Sums in another order are equal to within rounding of the effects, not of their mean,
        # which may be nothing but rounding.
        least = observed[first : first + 4096] - 1e-12 * part.abs().mean(dim=0)
        found[first : first + 4096] = (flipped >= least).double().mean(dim=0)
    found[~observed.isfinite()] = float("nan")
    return found.reshape(effects.shape[1:])


def _pairs(samples: Tensor) -> int:
    """How many pairs there are; InputError if none, of which there is no mean."""
    if samples.dim() == 0 or not len(samples):
        raise InputError(f"samples {list(samples.shape)} hold no pair; expected [pair, ..]")
    return len(samples)


def statistic_interval(
    rows: int,
    statistic: Callable[[Integers], float],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic of rows (Efron 1979).

    Args:
        rows: how many rows there are.
        statistic: the number for a choice of rows (indices ``[row]``, with repeats).
        level: share of the resampled statistics inside.
        draws: how often rows are drawn again.
        seed: of the draws.

    Returns:
        Lower and upper end; NaNs of one row, which says nothing about others, and where the
        statistic is not finite.

    Raises:
        InputError: there is no row, ``level`` is no share, or nothing is drawn.
    """
    return _percentiles(np.arange(rows), statistic, False, level, draws, seed)


def mean_interval(values: Sequence[float] | Floats, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean; NaNs of one value, or if one is not finite.

    Args:
        values: at least one.
        seed: of the draws.

    Raises:
        InputError: there is none.
    """
    listed = np.asarray(values, dtype=np.float64)
    return _percentiles(listed, np.mean, True, 0.95, 1000, seed)


def _percentiles(
    rows: Floats | Integers,
    statistic: Callable[..., Any],
    vectorized: bool,
    level: float,
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """Where the middle ``level`` of the statistics of rows drawn again begins and ends."""
    from scipy import stats

    if not len(rows):
        raise InputError("there is no row to draw from")
    level = check("level", level, _LEVEL, InputError)
    draws = check("draws", draws, _COUNT, InputError)
    if len(rows) == 1 or not math.isfinite(statistic(rows)):
        return math.nan, math.nan
    found = stats.bootstrap(
        (rows,),
        statistic,
        vectorized=vectorized,
        n_resamples=draws,
        batch=max(1, 2**20 // len(rows)),  # as many resamples at once as fit into 8 MiB
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def wilson_interval(right: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, ``right`` of ``count`` (JASA 22, 1927); NaNs of nothing.

    ``right`` may be a mean over several draws, which SciPy's intervals do not take.

    Raises:
        InputError: ``level`` is no share.
    """
    from scipy import stats

    level = check("level", level, _LEVEL, InputError)
    if not count or math.isnan(right):
        return math.nan, math.nan
    square, share = float(stats.norm.ppf((1 + level) / 2)) ** 2 / count, right / count
    middle = share + square / 2
    half = math.sqrt(square * (share * (1 - share) + square / 4))
    low, high = ((middle + side) / (1 + square) for side in (-half, half))
    # Rounding may not leave the share outside: none of 10 begins at 0, 10 of 10 end at 1.
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def normal_interval(values: Sequence[float] | Floats, level: float = 0.95) -> tuple[float, float]:
    """Interval of a mean, if it is distributed normally; NaNs of fewer than two values.

    Raises:
        InputError: ``level`` is no share.
    """
    from scipy import stats

    level = check("level", level, _LEVEL, InputError)
    listed = np.asarray(values, dtype=np.float64)
    if len(listed) < 2:
        return math.nan, math.nan
    low, high = stats.norm.interval(level, listed.mean(), stats.sem(listed))
    return float(low), float(high)


def student_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of few values; NaNs of fewer than two.

    Raises:
        InputError: ``level`` is no share.
    """
    from scipy import stats

    level = check("level", level, _LEVEL, InputError)
    listed = np.asarray(values, dtype=np.float64)
    if len(listed) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, len(listed) - 1) * listed.std(ddof=1) / len(listed) ** 0.5
    return float(listed.mean() - half), float(listed.mean() + half)


def correlation(one: Floats, other: Floats, *, ranks: bool = False) -> float:
    """How far two rows of numbers rise together, from -1 to 1.

    Args:
        one: ``[row]``.
        other: ``[row]``.
        ranks: Spearman's, Pearson's of the ranks, instead of Pearson's own.

    Returns:
        The correlation; NaN where a side is constant, or there are fewer than two rows.
    """
    from scipy import stats

    if len(one) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        found = (stats.spearmanr if ranks else stats.pearsonr)(one, other)
    return float(found.statistic)
