"""The files of circuit-tracer's cross-layer transcoders.

    W_enc_{i}.safetensors     W_enc_{i} [latent, d], b_enc_{i}, b_dec_{i}, perhaps threshold_{i}
    W_dec_{i}.safetensors     W_dec_{i} [latent, layers - i, d]: of layer i, i + 1, …

The library's class has skip paths ``W_skip [layers, d, d]`` from each layer to itself, applied as
``x @ W_skip``, without a transpose, unlike those of its single layers; version 0.5.0 writes none.
A file may hold one as ``W_skip_{i}``. Source: circuit_tracer/transcoder/cross_layer_transcoder.py.
"""

from __future__ import annotations

import re

import torch

from neox_lab.errors import CheckpointError
from neox_lab.sae.cross_layer_weights import CrossLayerWeights, Pair
from neox_lab.sae.dictionary import Weights
from neox_lab.sae.formats.format import Given
from neox_lab.sae.formats.source import Source, Tensors, inside

_FILE = re.compile(r"(W_enc|W_dec)_(\d+)\.safetensors")
_NAMES = {"threshold": "activation_function.threshold"}


def folders(source: Source) -> list[str]:
    """Folders with such files."""
    places = [name.rpartition("/") for name in source.names]
    return list(dict.fromkeys(folder for folder, _, last in places if _FILE.fullmatch(last)))


def tensors(source: Source, folder: str) -> list[Tensors]:
    """The tensors of each layer's encoder, called as those of a single layer are.

    ``W_dec`` is not among them but a placeholder, as the matrices of all layers are large.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    held: dict[str, set[int]] = {"W_enc": set(), "W_dec": set()}
    for name in source.names:
        place, _, last = name.rpartition("/")
        if place == folder and (found := _FILE.fullmatch(last)):
            held[found[1]].add(int(found[2]))
    count = max(held["W_enc"] | held["W_dec"]) + 1
    layers = range(min(count, len(held["W_enc"] | held["W_dec"]) + 3))  # a number may be absurd
    missing = [f"{kind}_{i}.safetensors" for kind in held for i in layers if i not in held[kind]]
    if missing:
        raise CheckpointError(
            f"{inside(source.where, folder)} is a cross-layer transcoder of {count} layers "
            f"and lacks {', '.join(missing)}."
        )
    made = []
    for layer in layers:
        file = source.tensors(inside(folder, f"W_enc_{layer}.safetensors"))
        needed = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")]
        file.check(needed, [f"{name}_{layer}" for name in ("threshold", "W_skip")])
        short = {name.removesuffix(f"_{layer}"): tensor for name, tensor in file.items()}
        named = {_NAMES.get(name, name): tensor for name, tensor in short.items()}
        named["W_dec"] = torch.empty(0, 0, dtype=torch.float32)
        made.append(Tensors(file.path, named))
    return made


def weights(
    source: Source, folder: str, layers: list[Tensors], encoders: list[Weights], given: Given
) -> CrossLayerWeights:
    """All tensors of a cross-layer transcoder.

    Raises:
        CheckpointError: a file is damaged, or does not have a matrix for each layer.
    """
    decoders = {}
    for layer in range(len(layers)):
        file = source.tensors(inside(folder, f"W_dec_{layer}.safetensors"))
        name = f"W_dec_{layer}"
        file.check([name])
        stored = file[name]
        if stored.dim() != 3 or stored.shape[1] != len(layers) - layer:
            raise CheckpointError(
                f"{file.path}: {name} is {list(stored.shape)}; expected [latent, "
                f"{len(layers) - layer}, d], a matrix for each layer from {layer} on."
            )
        for target in range(layer, len(layers)):
            matrix = stored[:, target - layer].to(given.device, given.dtype, copy=True)
            decoders[layer, target] = matrix.contiguous()
    skips: dict[Pair, torch.Tensor] = {
        (i, i): each["W_skip"].T.to(given.device, given.dtype).contiguous()
        for i, each in enumerate(layers)
        if "W_skip" in each
    }
    return CrossLayerWeights(
        W_enc=[each.W_enc for each in encoders],
        b_enc=[each.b_enc for each in encoders],
        W_dec=decoders,
        b_dec=[each.b_dec for each in encoders],
        W_skip=skips,
    )
