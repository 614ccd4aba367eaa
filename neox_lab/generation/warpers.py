"""Cutting off the unlikely end of a distribution before sampling from it.

Each warper sets the scores ``[batch, vocab]`` of tokens it rules out to minus infinity.
``at_least`` tokens always remain, so that there is something to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.generation.processors import NEVER, LogitsProcessor


@dataclass
class Temperature(LogitsProcessor):
    """Divide the scores by ``temperature``: below 1 sharpens the distribution, above 1 flattens."""

    temperature: float

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return scores / self.temperature


def _keep_best(scores: Tensor, count: int) -> Tensor:
    """Boolean ``[batch, vocab]``: among the ``count`` best; ties with the last of them count."""
    count = min(count, scores.shape[-1])
    return scores >= scores.topk(count).values[:, -1:]


@dataclass
class TopK(LogitsProcessor):
    """Keep the ``k`` most likely tokens (Fan et al., arXiv:1805.04833)."""

    k: int
    at_least: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return scores.masked_fill(~_keep_best(scores, max(self.k, self.at_least)), NEVER)


@dataclass
class TopP(LogitsProcessor):
    """Keep the most likely tokens that together have probability ``p`` (nucleus; 1904.09751)."""

    p: float
    at_least: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        # From the least likely up: what is removed has at most 1 - p together.
        ascending, order = scores.sort(dim=-1)
        remove = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.p
        remove[:, -self.at_least :] = False
        return scores.masked_fill(remove.scatter(1, order, remove), NEVER)


@dataclass
class TopH(LogitsProcessor):
    """Keep the most likely tokens whose share of the entropy is at most ``h`` (2509.02510).

    Entropies are those of the 100 most likely tokens.
    """

    h: float
    considered: int = 100

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        best, index = scores.topk(min(self.considered, scores.shape[-1]))
        log_probabilities = (best - best.logsumexp(dim=-1, keepdim=True)).log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        # A token of probability 0 adds nothing (0 times minus infinity is NaN otherwise).
        parts = -(probabilities * log_probabilities.clamp(min=torch.finfo(scores.dtype).min))
        keep = parts.cumsum(dim=-1) <= parts.sum(dim=-1, keepdim=True) * self.h
        keep[:, 0] = True
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, keep)
        return scores.masked_fill(~kept, NEVER)


@dataclass
class MinP(LogitsProcessor):
    """Keep tokens at least ``p`` times as likely as the likeliest (arXiv:2407.01082)."""

    p: float
    at_least: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        probabilities = scores.softmax(dim=-1)
        remove = probabilities < self.p * probabilities.amax(dim=-1, keepdim=True)
        best = probabilities.topk(min(self.at_least, scores.shape[-1])).indices
        return scores.masked_fill(remove.scatter(1, best, False), NEVER)


@dataclass
class Typical(LogitsProcessor):
    """Keep tokens about as surprising as expected (Meister et al., arXiv:2202.00666).

    Those whose surprise is nearest to the entropy, until they have probability ``mass`` together.
    """

    mass: float
    at_least: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        log_probabilities = scores.log_softmax(dim=-1)
        entropy = -(log_probabilities * log_probabilities.exp()).nansum(dim=-1, keepdim=True)
        distance, order = (-log_probabilities - entropy).abs().sort(dim=-1)
        cumulative = scores.gather(1, order).softmax(dim=-1).cumsum(dim=-1)
        last = (cumulative < self.mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        remove = distance > distance.gather(1, last)
        remove[:, : self.at_least] = False
        return scores.masked_fill(remove.scatter(1, order, remove), NEVER)


@dataclass
class Epsilon(LogitsProcessor):
    """Keep tokens of probability ``epsilon`` or more (Hewitt et al., arXiv:2210.15191)."""

    epsilon: float
    at_least: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        unlikely = scores.softmax(dim=-1) < self.epsilon
        return scores.masked_fill(unlikely & ~_keep_best(scores, self.at_least), NEVER)


@dataclass
class Eta(LogitsProcessor):
    """``Epsilon`` with a threshold that falls with the entropy (arXiv:2210.15191).

    ``eta = min(epsilon, sqrt(epsilon) exp(-entropy))``.
    """

    epsilon: float
    at_least: int = 1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        log_probabilities = scores - scores.logsumexp(dim=-1, keepdim=True)
        probabilities = scores.softmax(dim=-1)
        lowest = torch.finfo(scores.dtype).min
        entropy = -(probabilities * log_probabilities.clamp(min=lowest)).sum(dim=-1, keepdim=True)
        epsilon = torch.tensor(self.epsilon, device=scores.device, dtype=torch.float32)
        eta = torch.minimum(epsilon, epsilon.sqrt() * (-entropy).exp())
        unlikely = probabilities < eta
        return scores.masked_fill(unlikely & ~_keep_best(scores, self.at_least), NEVER)
