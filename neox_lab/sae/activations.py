"""From what the encoder computes to the features that are active: the kinds of dictionaries.

    pre = x @ W_enc + b_enc                              [token, latent]

    ReLU        max(pre, 0)                              Bricken et al. 2023
    TopK        the k largest, if positive               Gao et al., arXiv:2406.04093
    JumpReLU    pre where pre > threshold                Rajamanoharan et al., arXiv:2407.14435
    Gated       magnitude where a gate is open           Rajamanoharan et al., arXiv:2404.16014
    GroupMax    the largest of each of k groups          EleutherAI's sparsify

BatchTopK dictionaries (Bussmann et al., arXiv:2412.06410) choose among the tokens of a batch while
they are trained; used afterwards they are JumpReLU with one threshold. P-annealed and Matryoshka
dictionaries are trained otherwise and encode like ReLU and BatchTopK.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from neox_lab.errors import ConfigError
from neox_lab.sae.codes import Codes, packed


class Activation(Protocol):
    """Chooses the active features."""

    def __call__(self, pre: Tensor) -> Codes:
        """From ``[token, latent]`` to codes."""


class ReLU(nn.Module):
    """Every feature whose pre-activation is positive."""

    def forward(self, pre: Tensor) -> Codes:
        """From ``[token, latent]`` to codes with as many slots as the busiest token needs."""
        return packed(pre.relu())


class TopK(nn.Module):
    """The k features of the largest pre-activation.

    Whether ReLU comes before or after the choice makes no difference to what is active.

    Attributes:
        k: how many.
        negative: negative values survive, as in circuit-tracer.
        signed: the k of the largest magnitude, with their sign, as in sparsify of summer 2024.
        scale: the pre-activations are multiplied by this before the choice, ``[latent]``, as with
            SAELens's ``rescale_acts_by_decoder_norm``; None for ones.
    """

    scale: Tensor | None

    def __init__(
        self, k: int, *, negative: bool = False, signed: bool = False, scale: Tensor | None = None
    ) -> None:
        """See the class.

        Raises:
            ConfigError: k is no number of features.
        """
        super().__init__()
        if k < 1:
            raise ConfigError(f"k={k}; expected how many features are active, at least 1.")
        self.k, self.negative, self.signed = k, negative, signed
        self.register_buffer("scale", scale)

    @property
    def is_plain(self) -> bool:
        """Neither scaled nor signed, and nothing negative survives."""
        return self.scale is None and not self.negative and not self.signed

    def forward(self, pre: Tensor) -> Codes:
        """From ``[token, latent]`` to codes with k slots."""
        pre = pre if self.scale is None else pre * self.scale
        rank = pre.abs() if self.signed else pre
        indices = rank.detach().topk(min(self.k, pre.shape[-1]), dim=-1).indices
        values = pre.gather(-1, indices)
        kept = values if self.negative or self.signed else values.relu()
        return Codes(indices, kept, pre.shape[-1])


class JumpReLU(nn.Module):
    """Every feature above its threshold, and above 0.

    Attributes:
        threshold: of each feature ``[latent]``, or one for all ``[]``.
        negative: below 0 too, where the threshold is lower, as in circuit-tracer.
    """

    threshold: Tensor

    def __init__(self, threshold: Tensor, *, negative: bool = False) -> None:
        """See the class."""
        super().__init__()
        self.negative = negative
        self.register_buffer("threshold", threshold)

    def forward(self, pre: Tensor) -> Codes:
        """From ``[token, latent]`` to codes; a NaN stays one."""
        kept = pre if self.negative else pre.relu()
        return packed(kept.masked_fill(pre <= self.threshold, 0))


class Gated(nn.Module):
    """A gate says which features are active, a magnitude how much; both read one product.

    Attributes:
        gate_bias: the gate is open where ``pre + gate_bias > 0``, ``[latent]``.
        magnitude_bias: ``[latent]``.
        log_scale: the magnitude is ``ReLU(exp(log_scale) * pre + magnitude_bias)``, ``[latent]``.
    """

    gate_bias: Tensor
    magnitude_bias: Tensor
    log_scale: Tensor

    def __init__(self, gate_bias: Tensor, magnitude_bias: Tensor, log_scale: Tensor) -> None:
        """See the class."""
        super().__init__()
        self.register_buffer("gate_bias", gate_bias)
        self.register_buffer("magnitude_bias", magnitude_bias)
        self.register_buffer("log_scale", log_scale)

    def forward(self, pre: Tensor) -> Codes:
        """From ``[token, latent]`` to codes."""
        magnitude = (self.log_scale.exp() * pre + self.magnitude_bias).relu()
        return packed(magnitude.masked_fill(pre + self.gate_bias <= 0, 0))


class GroupMax(nn.Module):
    """The features stand in k groups of neighbours; of each group the largest is active.

    Attributes:
        k: how many groups.
    """

    def __init__(self, k: int) -> None:
        """See the class.

        Raises:
            ConfigError: k is no number of groups.
        """
        super().__init__()
        if k < 1:
            raise ConfigError(f"k={k}; expected how many groups there are, at least 1.")
        self.k = k

    def forward(self, pre: Tensor) -> Codes:
        """From ``[token, latent]`` to codes with k slots.

        Raises:
            ConfigError: the features do not make k groups of one size.
        """
        latents = pre.shape[-1]
        if latents % self.k:
            raise ConfigError(f"{latents} features do not make {self.k} groups of one size.")
        values, at = pre.relu().view(*pre.shape[:-1], self.k, -1).max(dim=-1)
        indices = at + torch.arange(self.k, device=pre.device) * (latents // self.k)
        values, order = values.sort(dim=-1, descending=True)
        return Codes(indices.gather(-1, order), values, latents)
