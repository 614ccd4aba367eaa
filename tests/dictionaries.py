"""Dictionaries with large random weights, and what they compute written out densely."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neox_lab.sae import CrossLayerTranscoder, CrossLayerWeights, Dictionary, Weights
from neox_lab.sae.activations import Activation, Gated, JumpReLU, ReLU, TopK
from neox_lab.sae.affine import Affine

MLP = "blocks.1.hook_mlp_out"


def numbers(*shape: int, seed: int, std: float = 1.0) -> Tensor:
    """Normal random numbers."""
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activation(kind: str, latents: int) -> Activation:
    """Any of the kinds, with random parameters."""
    if kind == "TopK scaled":
        return TopK(6, scale=numbers(latents, seed=91).abs() + 0.5)
    made: dict[str, Activation] = {
        "ReLU": ReLU(),
        "TopK": TopK(6),
        "TopK signed": TopK(6, signed=True),
        "JumpReLU": JumpReLU(numbers(latents, seed=92).abs()),
        "Gated": Gated(*(numbers(latents, seed=seed, std=0.3) for seed in (93, 94, 95))),
    }
    return made[kind]


def random_dictionary(
    d_in: int,
    site: str = MLP,
    *,
    d_out: int | None = None,
    latents: int = 40,
    kind: str = "TopK",
    site_out: str | None = None,
    skip: bool = False,
    seed: int = 0,
    **options: Any,
) -> Dictionary:
    """A dictionary that is far from giving back what it reads."""
    d_out = d_in if d_out is None else d_out
    weights = Weights(
        numbers(d_in, latents, seed=seed + 1, std=d_in**-0.5),
        numbers(latents, seed=seed + 2, std=0.3),
        numbers(latents, d_out, seed=seed + 3, std=0.3),
        numbers(d_out, seed=seed + 4, std=0.3),
        numbers(d_out, d_in, seed=seed + 5, std=0.2) if skip else None,
    )
    return Dictionary(
        weights,
        activation(kind, latents),
        site_in=site,
        site_out=site_out,
        kind=kind,
        **options,
    )


def dense(dictionary: Dictionary, acts: Tensor, x: Tensor) -> Tensor:
    """What a matrix of activations stands for, by matrix products alone."""
    scale = getattr(dictionary.activation, "scale", None)
    written = (acts if scale is None else acts / scale) @ dictionary.W_dec + dictionary.b_dec
    if not dictionary.is_transcoder:
        factor, shift = dictionary.normalise(x)[1]
        written = factor * written + shift
    if dictionary.W_skip is not None:
        written = written + x @ dictionary.W_skip.T
    return written


def random_cross_layer(
    layers: int = 3,
    d: int = 64,
    latents: int = 40,
    *,
    sites: tuple[str, str] = ("blocks.{}.mlp.hook_in", "blocks.{}.hook_mlp_out"),
    jump: bool = False,
    skip: bool = False,
    received: bool = False,
    normalised: bool = False,
    seed: int = 0,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder that is far from writing what the MLPs write."""

    def each(start: int, *shape: int, std: float = 1.0) -> list[Tensor]:
        return [numbers(*shape, seed=seed + start + i, std=std) for i in range(layers)]

    def affine(start: int) -> list[Affine]:
        spread = each(start, d)
        means = each(start + 50, d, std=0.3)
        return [Affine(m, s.abs() + 0.5) for m, s in zip(means, spread, strict=True)]

    pairs = [(i, j) for i in range(layers) for j in range(i, layers)]
    weights = CrossLayerWeights(
        each(100, d, latents, std=0.2),
        each(200, latents, std=0.2),
        {(i, j): numbers(latents, d, seed=seed + 300 + 10 * i + j, std=0.3) for i, j in pairs},
        each(500, d, std=0.3),
        {(i, j): numbers(d, d, seed=seed + 600 + 10 * i + j, std=0.1) for i, j in pairs[1:]}
        if skip
        else {},
        each(800, latents, std=0.5) if received else (),
        each(900, latents) if received else (),
    )
    thresholds = [t.abs() for t in each(1000, latents)]
    return CrossLayerTranscoder(
        weights,
        [JumpReLU(t) if jump else ReLU() for t in thresholds],
        sites_in=[sites[0].format(layer) for layer in range(layers)],
        sites_out=[sites[1].format(layer) for layer in range(layers)],
        into=affine(1100) if normalised else (),
        out=affine(1300) if normalised else (),
        kind="JumpReLU" if jump else "ReLU",
    )
