"""Statistics of training data that activations were normalised with, outside the weights."""

from __future__ import annotations

from torch import Tensor, nn

from neox_lab.errors import ConfigError


class Affine(nn.Module):
    """``(x - mean) / scale``, and back.

    Attributes:
        mean: ``[d]``, or ``[]``.
        scale: likewise.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        """See the class.

        Raises:
            ConfigError: numbers that are not finite, or no positive scale.
        """
        super().__init__()
        if not (mean.isfinite().all() and scale.isfinite().all() and (scale > 0).all()):
            raise ConfigError("Statistics of activations must be finite, and deviations positive.")
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def into(self, x: Tensor) -> Tensor:
        """As the encoder reads it."""
        return (x - self.mean) / self.scale

    def back(self, written: Tensor) -> Tensor:
        """As it stands in the network."""
        return written * self.scale + self.mean
