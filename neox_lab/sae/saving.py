"""This package's own files of dictionaries: ``dictionary.safetensors`` in a folder.

The tensors are ``W_enc [d_in, latent]``, ``b_enc``, ``W_dec [latent, d_out]``, ``b_dec``, perhaps
``W_skip [d_out, d_in]``, and those of the activation. What is no tensor stands as JSON in the
header: sites, kind, activation, normalisation, and where each fact came from.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

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
from neox_lab.safetensors_files import FileFormat

if TYPE_CHECKING:
    from neox_lab.sae.dictionary import Dictionary

FILE = "dictionary.safetensors"
FILE_FORMAT = FileFormat("dictionary", "neox_lab dictionary 1")
ACTIVATIONS = {kind.__name__: kind for kind in (ReLU, TopK, JumpReLU, Gated, GroupMax)}
"""Those that a file can say."""

NORMALISE: dict[str, Normalise] = {
    "unchanged": unchanged,
    "layer_norm": layer_norm,
    "constant_norm": constant_norm,
}
"""Those that a file can say, beside a constant factor."""


def save(dictionary: Dictionary, folder: StrPath) -> Path:
    """Write a dictionary; see ``Dictionary.save_pretrained``.

    Raises:
        InputError: ``folder`` is no path.
        ConfigError: the activation or the normalisation is of another kind, or weights are not
            finite.
        CheckpointError: the file cannot be written.
    """
    dictionary.weights.check()  # what is not finite would not be loaded again
    path = path_of("folder", folder) / FILE
    activation = dictionary.activation
    name = type(activation).__name__
    if name not in ACTIVATIONS or not isinstance(activation, nn.Module):
        raise ConfigError(f"The activation {name} is not one that a file can say.")
    tensors = {n: t for n, t in dictionary.weights._asdict().items() if t is not None}
    held = dict(activation.named_buffers())
    tensors |= {f"activation.{key}": tensor for key, tensor in held.items()}
    settings = {
        key: getattr(activation, key)
        for key in inspect.signature(type(activation)).parameters
        if key in vars(activation)
    }
    FILE_FORMAT.write(
        path,
        tensors,
        {
            "kind": dictionary.kind,
            "activation": {"name": name, **settings},
            "site_in": dictionary.site_in,
            "site_out": dictionary.site_out,
            "subtracts_b_dec": dictionary.subtracts_b_dec,
            "normalise": _said(dictionary.normalise),
            "expected_l0": dictionary.expected_l0,
            "sources": dictionary.sources,
        },
    )
    return path


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
