"""How sure one can be of a mean over pairs of prompts.

Everything is seeded, so the same samples give the same intervals.
"""

from __future__ import annotations

import torch
from torch import Tensor


def standard_error(samples: Tensor) -> Tensor:
    """Standard error of the mean over the first axis; NaN for a single sample.

    Args:
        samples: ``[pair, ...]``.
    """
    count = samples.shape[0]
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
        Lower and upper end, each ``[...]``.
    """
    count = samples.shape[0]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (draws, count), generator=generator)
    weights = torch.zeros(draws, count).scatter_add_(1, drawn, torch.ones(draws, count)) / count
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
        Probabilities ``[...]``, at least 1 / number of flips.
    """
    count = effects.shape[0]
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
        here = observed[first : first + 4096]
        found[first : first + 4096] = (flipped >= here * (1 - 1e-12)).double().mean(dim=0)
    return found.reshape(effects.shape[1:])
