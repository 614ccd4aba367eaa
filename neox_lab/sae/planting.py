"""Planted truth: activations whose features are known, because we wrote them.

    planted = nl.sae.planted(features=256, d_model=64, active=4)
    trained = nl.sae.train(planted.activations, latents=256, k=4)
    planted.recovered(trained.dictionary)        # mean max cosine: how well each was found

A toy model of superposition (Elhage et al. 2022; Sharkey et al. 2022): more features than
dimensions, each a random direction, few of them active at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.checks import COUNT, SEED, check, number
from neox_lab.errors import InputError
from neox_lab.sae.dictionary import Dictionary

_OWN = 1_000_003


@dataclass(frozen=True)
class Planted:
    """Activations and the features that made them.

    Attributes:
        activations: ``[row, d_model]``.
        directions: of the features, of norm 1, ``[feature, d_model]``.
        coefficients: how active each is in each row, ``[row, feature]``, sparse (COO).
    """

    activations: Tensor
    directions: Tensor
    coefficients: Tensor

    def cosines(self, dictionary: Dictionary | Tensor) -> Tensor:
        """Of every planted feature the cosine with the nearest feature found, ``[feature]``.

        Args:
            dictionary: it, or directions ``[latent, d_model]``.

        Raises:
            InputError: another width.
        """
        found = dictionary.W_dec.detach() if isinstance(dictionary, Dictionary) else dictionary
        if found.dim() != 2 or found.shape[1] != self.directions.shape[1]:
            raise InputError(
                f"directions are {list(found.shape)}; expected [latent, {self.directions.shape[1]}]"
            )
        unit = found / found.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return (self.directions @ unit.T.to(self.directions)).max(dim=1).values

    def recovered(self, dictionary: Dictionary | Tensor) -> float:
        """Mean max cosine: the mean of ``cosines``; see ``control`` for what chance gives.

        Raises:
            InputError: another width.
        """
        return float(self.cosines(dictionary).mean())

    def control(self, latents: int, seed: int = 0) -> float:
        """Mean max cosine of ``latents`` random directions, drawn by ``seed``."""
        generator = torch.Generator().manual_seed((seed * _OWN + 2) % 2**63)
        return self.recovered(
            torch.randn(latents, self.directions.shape[1], generator=generator, dtype=torch.float32)
        )


def planted(
    *,
    features: int = 256,
    d_model: int = 64,
    active: float = 4,
    rows: int = 100_000,
    noise: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Make activations out of sparse features.

    Args:
        features: how many, more than dimensions for superposition.
        d_model: how many dimensions.
        active: features of a row, on average; each is active by itself, with one probability.
        rows: how many.
        noise: standard deviation of what is added to every number.
        seed: of everything.

    Raises:
        InputError: an argument is not what it can be.
    """
    features = check("features", features, COUNT, InputError)
    d_model, rows = (
        check("d_model", d_model, COUNT, InputError),
        check("rows", rows, COUNT, InputError),
    )
    share = check("active", active, number(above=0, most=features), InputError) / features
    noise = check("noise", noise, number(least=0), InputError)
    seed = check("seed", seed, SEED, InputError)
    # Numbers of its own: a training of the same seed must not begin with the planted directions.
    generator = torch.Generator().manual_seed((seed * _OWN + 1) % 2**63)
    directions = torch.randn(features, d_model, generator=generator, dtype=torch.float32)
    directions /= directions.norm(dim=1, keepdim=True)
    parts, sums = [], []
    for start in range(0, rows, 8192):
        size = min(8192, rows - start), features
        on = torch.rand(size, generator=generator, dtype=torch.float32) < share
        much = (0.5 + torch.rand(size, generator=generator, dtype=torch.float32)) * on
        sums.append(much @ directions)
        parts.append(much.to_sparse())
    activations = torch.cat(sums)
    if noise:
        activations += noise * torch.randn(
            activations.shape, generator=generator, dtype=torch.float32
        )
    return Planted(activations, directions, torch.cat(parts))
