"""crosslayer-coding's TopK and BatchTopK: features compete across tokens and layers.

    rank = (pre - mean over tokens) / (standard deviation over tokens + 1e-6)
    TopK        of each token the k of the largest rank
    BatchTopK   of all tokens together k times their number
    active      pre of what was chosen, negative ones too

Ranks depend on which tokens are encoded together, as they do in the library. Its dictionaries that
were made JumpReLU after training do not have that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from neox_lab.errors import ConfigError, InputError
from neox_lab.sae.codes import Codes, joined, packed

_EPSILON = 1e-6  # added to the standard deviation, as the library does
_DENSE = 2**24  # numbers of [token, latent of all layers] at a time

Layer = tuple[Tensor, Tensor, Tensor]
"""What a layer reads ``[token, d_in]``, its encoder ``[latent, d_in]`` and ``b_enc``."""


@dataclasses.dataclass(frozen=True)
class SharedTopK:
    """The choice among the features of several tokens.

    Attributes:
        k: active features of a token; below 1 a part of all.
        batch: tokens share, so that some have more than others.
        joint: layers share.
    """

    k: float
    batch: bool = False
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.k > 0 or (self.batch and self.k < 1):
            raise ConfigError(f"k={self.k}; expected how many features of a token are active.")

    def __call__(self, layers: Sequence[Layer]) -> list[Codes]:
        """The codes of each layer.

        Raises:
            InputError: fewer than two tokens, which have no standard deviation.
        """
        if len(layers[0][0]) < 2:
            raise InputError(
                "This TopK ranks features by how far they are from their mean over the tokens that "
                "are encoded together; give at least two tokens."
            )
        groups = [list(layers)] if self.joint else [[layer] for layer in layers]
        return [codes for group in groups for codes in self._chosen(group)]

    def _chosen(self, layers: list[Layer]) -> list[Codes]:
        """The codes of layers that share."""
        sizes = [len(b_enc) for _, _, b_enc in layers]
        mean, deviation = _moments(layers)
        of_token = math.ceil(self.k * sum(sizes)) if self.k < 1 else int(self.k)
        of_token = min(of_token, sum(sizes))
        least: Tensor | None = None
        if self.batch:
            wanted = of_token * len(layers[0][0])
            best = mean.new_empty(0)
            for pre in _parts(layers):
                best = torch.cat([best, ((pre - mean) / deviation).detach().flatten()])
                best = best.topk(min(wanted, len(best))).values
            least = best[-1]
        parts = []
        for pre in _parts(layers):
            rank = ((pre - mean) / deviation).detach()
            limit = rank.topk(of_token).values[:, -1:] if least is None else least
            chosen = pre.masked_fill(rank < limit, 0)
            parts.append([packed(part) for part in torch.split(chosen, sizes, dim=1)])
        return [joined(list(of_layer)) for of_layer in zip(*parts, strict=True)]


def _parts(layers: list[Layer]) -> Iterator[Tensor]:
    """Pre-activations of all layers side by side, ``[token, latent]``, some tokens at a time."""
    step = max(1, _DENSE // sum(len(b_enc) for _, _, b_enc in layers))
    for start in range(0, len(layers[0][0]), step):
        yield torch.cat(
            [torch.nn.functional.linear(x[start : start + step], w, b) for x, w, b in layers], dim=1
        )


@torch.no_grad()
def _moments(layers: list[Layer]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pre-activation over all tokens, with the epsilon."""
    tokens, dtype = len(layers[0][0]), layers[0][2].dtype
    total = sum(pre.double().sum(0) for pre in _parts(layers))
    assert isinstance(total, Tensor)
    mean = total / tokens
    square = sum((pre.double() - mean).square().sum(0) for pre in _parts(layers))
    assert isinstance(square, Tensor)
    return mean.to(dtype), (square / (tokens - 1)).sqrt().to(dtype) + _EPSILON
