"""This package's own files of dictionaries: ``dictionary.safetensors`` in a folder.

The tensors are ``W_enc [d_in, latent]``, ``b_enc``, ``W_dec [latent, d_out]``, ``b_dec``, perhaps
``W_skip [d_out, d_in]``, and those of the activation. What is no tensor stands as JSON in the
header: sites, kind, activation, normalisation, and where each fact came from. A dictionary that a
training gave may have the record of it beside: ``training.history``, and the rest in the header.

Of crosscoders the tensors have the axis ``n``, as in the class, beside ``penalty_weights`` and
``normalise.0.mean``. Cross-layer transcoders have one of each for a layer, such as ``W_enc.3`` and
``activation.3.threshold``, and for pairs ``W_skip.0.3``, as ``skips`` of the header says; a
``W_dec.5`` is of the pairs that ``decoders`` of the header names. There, ``what`` says which of the
three a file holds.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from neox_lab.errors import ConfigError
from neox_lab.files import StrPath, path_of
from neox_lab.sae.activations import Gated, GroupMax, JumpReLU, ReLU, TopK
from neox_lab.sae.normalisation import (
    Normalise,
    constant_factor,
    constant_norm,
    layer_norm,
    unchanged,
)
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.safetensors_files import FileFormat

if TYPE_CHECKING:
    from neox_lab.sae.affine import Affine
    from neox_lab.sae.cross_layer import CrossLayerTranscoder
    from neox_lab.sae.crosscoder import Crosscoder
    from neox_lab.sae.dictionary import Dictionary

FILE = "dictionary.safetensors"
FILE_FORMAT = FileFormat("dictionary", "neox_lab dictionary 1")
ACTIVATIONS = {kind.__name__: kind for kind in (ReLU, TopK, JumpReLU, Gated, GroupMax)}
"""Those that a file can say."""

CROSSCODER, CROSS_LAYER = "crosscoder", "cross-layer transcoder"
"""What a file holds, if no ``Dictionary``."""

SHARED = SharedTopK.__name__
LISTS = ("b_enc", "b_dec", "W_enc", "offset", "scale")
"""Tensors of which a cross-layer transcoder has one for each layer."""

NORMALISE: dict[str, Normalise] = {
    "unchanged": unchanged,
    "layer_norm": layer_norm,
    "constant_norm": constant_norm,
}
"""Those that a file can say, beside a constant factor."""


TRAINING = "training"
"""What the record of a training is called."""


def save(
    dictionary: Dictionary,
    folder: StrPath,
    history: Tensor | None = None,
    record: Mapping[str, object] | None = None,
) -> Path:
    """Write a dictionary; see ``Dictionary.save_pretrained``.

    Args:
        dictionary: it.
        folder: where.
        history: of its training, see ``TrainedDictionary``.
        record: what else there is to say of it.

    Raises:
        InputError: ``folder`` is no path.
        ConfigError: the activation or the normalisation is of another kind, or weights are not
            finite.
        CheckpointError: the file cannot be written.
    """
    dictionary.weights.check()  # what is not finite would not be loaded again
    path = path_of("folder", folder) / FILE
    tensors = {n: t for n, t in dictionary.weights._asdict().items() if t is not None}
    said, held = _activation(dictionary.activation)
    if history is not None:
        tensors[f"{TRAINING}.history"] = history
    FILE_FORMAT.write(
        path,
        tensors | _named("activation", held.items()),
        {
            **({} if record is None else {TRAINING: dict(record)}),
            "kind": dictionary.kind,
            "activation": said,
            "site_in": dictionary.site_in,
            "site_out": dictionary.site_out,
            "subtracts_b_dec": dictionary.subtracts_b_dec,
            "normalise": _said(dictionary.normalise),
            "expected_l0": dictionary.expected_l0,
            "sources": dictionary.sources,
        },
    )
    return path


def save_crosscoder(crosscoder: Crosscoder, folder: StrPath) -> Path:
    """Write a crosscoder; see ``Crosscoder.save_pretrained``.

    Raises:
        InputError: ``folder`` is no path.
        ConfigError: the activation is of another kind, or numbers are not finite.
        CheckpointError: the file cannot be written.
    """
    crosscoder.require_sound()
    path = path_of("folder", folder) / FILE
    tensors = {
        name: getattr(crosscoder, name)
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "penalty_weights")
    }
    said, held = _activation(crosscoder.activation)
    tensors |= _named("activation", held.items())
    FILE_FORMAT.write(
        path,
        tensors | _statistics("normalise", [crosscoder.normalise]),
        {
            "what": CROSSCODER,
            "kind": crosscoder.kind,
            "activation": said,
            "sites": crosscoder.sites,
            "expected_l0": crosscoder.expected_l0,
            "sources": crosscoder.sources,
        },
    )
    return path


def save_cross_layer(transcoder: CrossLayerTranscoder, folder: StrPath) -> Path:
    """Write a cross-layer transcoder; see ``CrossLayerTranscoder.save_pretrained``.

    Raises:
        InputError: ``folder`` is no path.
        ConfigError: an activation is of another kind, or numbers are not finite.
        CheckpointError: the file cannot be written.
    """
    transcoder.require_sound()
    path = path_of("folder", folder) / FILE
    weights, chosen = transcoder.weights, transcoder.activation
    tensors = _named("W_dec", enumerate(transcoder.decoders))
    tensors |= _named("W_skip", ((f"{i}.{j}", w) for (i, j), w in weights.W_skip.items()))
    for name in LISTS:
        tensors |= _named(name, enumerate(getattr(weights, name)))
    said: object
    if isinstance(chosen, SharedTopK):
        said = {"name": SHARED, **dataclasses.asdict(chosen)}
    else:
        each = [_activation(activation) for activation in chosen]
        said = [settings for settings, _ in each]
        for layer, (_, held) in enumerate(each):
            tensors |= _named(f"activation.{layer}", held.items())
    FILE_FORMAT.write(
        path,
        tensors | _statistics("into", transcoder.into) | _statistics("out", transcoder.out),
        {
            "what": CROSS_LAYER,
            "kind": transcoder.kind,
            "activation": said,
            "decoders": [[*pair, number] for pair, number in transcoder.decoder_of.items()],
            "skips": [*weights.W_skip],
            "sites_in": transcoder.sites_in,
            "sites_out": transcoder.sites_out,
            "sources": transcoder.sources,
        },
    )
    return path


def _activation(activation: object) -> tuple[dict[str, object], dict[str, Tensor]]:
    """An activation as JSON, and its tensors.

    Raises:
        ConfigError: it is none of those known here, or a number is NaN.
    """
    name = type(activation).__name__
    if name not in ACTIVATIONS or not isinstance(activation, nn.Module):
        raise ConfigError(f"The activation {name} is not one that a file can say.")
    settings = {
        key: getattr(activation, key)
        for key in inspect.signature(type(activation)).parameters
        if key in vars(activation)
    }
    held = dict(activation.named_buffers())
    if bad := [key for key, tensor in held.items() if tensor.isnan().any()]:
        raise ConfigError(f"{bad[0]} of the activation holds NaN.")
    return {"name": name, **settings}, held


def _named(name: str, tensors: Iterable[tuple[object, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in tensors}


def _statistics(name: str, held: Sequence[Affine | None]) -> dict[str, Tensor]:
    """Means and scales, by number; nothing where there are none."""
    return {
        f"{name}.{number}.{part}": getattr(each, part)
        for number, each in enumerate(held)
        for part in ("mean", "scale")
        if each is not None
    }


def _said(normalise: Normalise) -> object:
    """A normalisation as JSON.

    Raises:
        ConfigError: it is none of those known here.
    """
    if isinstance(normalise, constant_factor):
        return {"constant_factor": normalise.factor}
    for name, function in NORMALISE.items():
        if function is normalise:
            return name
    raise ConfigError("The normalisation is a function of your own, which no file can say.")
