"""What is done to activations before a dictionary reads them, and undone after it wrote.

Each is a function of the input that returns what the encoder reads and how to come back: a factor
and a shift, so that ``output = factor * written + shift``. The three are SAELens's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from torch import Tensor

Undo = tuple[Tensor | float, Tensor | float]
"""Factor and shift that bring what was written back to the scale of the input."""

Normalise = Callable[[Tensor], tuple[Tensor, Undo]]

EPSILON = 1e-5  # added to the standard deviation itself, as SAELens does


def unchanged(x: Tensor) -> tuple[Tensor, Undo]:
    """Activations as they are."""
    return x, (1.0, 0.0)


def layer_norm(x: Tensor) -> tuple[Tensor, Undo]:
    """Mean 0 and standard deviation 1 at each token (n - 1 in the variance).

    What was written is multiplied by the standard deviation alone, without the epsilon, as in
    SAELens.
    """
    mean = x.mean(dim=-1, keepdim=True)
    deviation = (x - mean).std(dim=-1, keepdim=True)
    return (x - mean) / (deviation + EPSILON), (deviation, mean)


def constant_norm(x: Tensor) -> tuple[Tensor, Undo]:
    """Norm √d at each token."""
    factor = math.sqrt(x.shape[-1]) / x.norm(dim=-1, keepdim=True)
    return x * factor, (1 / factor, 0.0)


@dataclasses.dataclass(frozen=True)
class constant_factor:  # noqa: N801 (called as the functions are)
    """One factor for all tokens, estimated when the dictionary was trained.

    Attributes:
        factor: what the input is multiplied by.
    """

    factor: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Undo]:
        """See ``Normalise``."""
        return x * self.factor, (1 / self.factor, 0.0)
