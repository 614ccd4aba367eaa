"""Dictionaries as files that SAELens and sparsify load.

What a library has no setting for is folded into the weights, where that is exact: a constant factor
of the input, a scale of the choice, ``b_dec`` taken from the input or not. The rest is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.errors import CheckpointError, ConfigError, InputError
from neox_lab.files import StrPath, path_of, staged_files
from neox_lab.sae.activations import Gated, GroupMax, JumpReLU, ReLU, TopK
from neox_lab.sae.normalisation import constant_factor, constant_norm, layer_norm, unchanged
from neox_lab.sae.sites import module_of
from neox_lab.safetensors_files import write

if TYPE_CHECKING:
    from neox_lab.sae.dictionary import Dictionary, Weights

_VERSION = "6.54.12"  # of SAELens, whose layout is written
_NORMALISE = {unchanged: "none", layer_norm: "layer_norm", constant_norm: "constant_norm_rescale"}


@torch.no_grad()
def _plain(dictionary: Dictionary) -> Weights:
    """Weights that read activations as they are: ``b_dec`` not subtracted, factor and scale in."""
    weights = dictionary.weights
    if dictionary.subtracts_b_dec:
        weights = weights._replace(b_enc=weights.b_enc - weights.b_dec @ weights.W_enc)
    scale = getattr(dictionary.activation, "scale", None)
    if scale is not None:
        weights = weights._replace(
            W_enc=weights.W_enc * scale,
            b_enc=weights.b_enc * scale,
            W_dec=weights.W_dec / scale[:, None],
        )
    normalise = dictionary.normalise
    if isinstance(normalise, constant_factor):
        factor = normalise.factor
        weights = weights._replace(W_enc=weights.W_enc * factor)
        if not dictionary.is_transcoder:
            weights = weights._replace(W_dec=weights.W_dec / factor, b_dec=weights.b_dec / factor)
    return weights


def export(dictionary: Dictionary, folder: StrPath, layout: str) -> Path:
    """See ``Dictionary.export``.

    Raises:
        InputError: ``folder`` is no path, or there is no such layout.
        ConfigError: that library has no such dictionary, or weights are not finite.
        CheckpointError: the files cannot be written.
    """
    dictionary.weights.check()
    make = _LAYOUTS[check("layout", layout, one_of(*_LAYOUTS), InputError)]
    place, name, tensors, config = make(dictionary, path_of("folder", folder))
    kept = {key: tensor.detach().float() for key, tensor in tensors.items()}
    try:
        place.mkdir(parents=True, exist_ok=True)
        with staged_files() as stage:
            write(stage(place / name), kept, {"format": "pt"})
            stage(place / "cfg.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"Cannot write the dictionary to {str(place)!r}: {error}") from error
    return place


_Made = tuple[Path, str, dict[str, Tensor], dict[str, Any]]


def _to_sae_lens(dictionary: Dictionary, folder: Path) -> _Made:
    """``cfg.json`` and ``sae_weights.safetensors`` of version 6."""
    weights, transcoder = _plain(dictionary), dictionary.is_transcoder
    if dictionary.W_skip is not None and not transcoder:
        raise ConfigError("SAELens has no autoencoder with a skip path.")
    name, tensors, more = _sae_lens_kind(dictionary, weights)
    if transcoder and name not in ("standard", "jumprelu"):
        raise ConfigError(f"SAELens has transcoders with ReLU or JumpReLU, none with {name}.")
    tensors |= {"W_enc": weights.W_enc, "W_dec": weights.W_dec, "b_dec": weights.b_dec}
    metadata = {"sae_lens_version": _VERSION, "hook_name": dictionary.site_in}
    if transcoder:
        base = "" if name == "standard" else f"{name}_"
        name = f"{base}skip_transcoder" if weights.W_skip is not None else f"{base}transcoder"
        metadata["hook_name_out"] = dictionary.site_out
        more["d_out"] = dictionary.d_out
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    config = {
        "architecture": name,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": _sae_lens_normalise(dictionary),
        "reshape_activations": "hook_z" if dictionary.site_in.endswith("hook_z") else "none",
        "metadata": metadata,
        **more,
    }
    return folder, "sae_weights.safetensors", tensors, config


def _sae_lens_kind(
    dictionary: Dictionary, weights: Weights
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Architecture, its own tensors and its own settings."""
    activation, b_enc = dictionary.activation, {"b_enc": weights.b_enc}
    if isinstance(activation, ReLU):
        return "standard", b_enc, {}
    if isinstance(activation, TopK) and not activation.negative:
        return ("abstopk" if activation.signed else "topk"), b_enc, {"k": activation.k}
    if isinstance(activation, JumpReLU) and not activation.negative:
        threshold = activation.threshold.expand(dictionary.latents)
        return "jumprelu", {**b_enc, "threshold": threshold}, {}
    if isinstance(activation, Gated):
        scale = activation.log_scale.exp()
        return (
            "gated",
            {
                "b_gate": activation.gate_bias + weights.b_enc,
                "b_mag": activation.magnitude_bias + scale * weights.b_enc,
                "r_mag": activation.log_scale,
            },
            {},
        )
    raise ConfigError(f"SAELens has no dictionary like {dictionary!r}.")


def _sae_lens_normalise(dictionary: Dictionary) -> str:
    if isinstance(dictionary.normalise, constant_factor):
        return "none"
    if dictionary.normalise not in _NORMALISE:
        raise ConfigError("SAELens has no such normalisation.")
    return _NORMALISE[dictionary.normalise]


def _to_sparsify(dictionary: Dictionary, folder: Path) -> _Made:
    """``cfg.json`` and ``sae.safetensors`` in a folder that is called after the module."""
    activation, transcoder = dictionary.activation, dictionary.is_transcoder
    known = isinstance(activation, GroupMax) or (
        isinstance(activation, TopK) and not activation.negative and not activation.signed
    )
    plain = dictionary.normalise is unchanged or isinstance(dictionary.normalise, constant_factor)
    if not known or not plain:
        raise ConfigError(
            f"sparsify has TopK and GroupMax without normalisation, nothing like {dictionary!r}."
        )
    module = module_of(dictionary.site_in, dictionary.site_out)
    if module is None or dictionary.d_in != dictionary.d_out:
        raise ConfigError(
            f"sparsify reads and writes one module, with one width; {dictionary!r} does not."
        )
    weights = _plain(dictionary)
    if not transcoder:  # sparsify takes b_dec from the input
        weights = weights._replace(b_enc=weights.b_enc + weights.b_dec @ weights.W_enc)
    tensors = {
        "encoder.weight": weights.W_enc.T,
        "encoder.bias": weights.b_enc,
        "W_dec": weights.W_dec,
        "b_dec": weights.b_dec,
    }
    if weights.W_skip is not None:
        tensors["W_skip"] = weights.W_skip
    assert isinstance(activation, TopK | GroupMax)
    config = {
        "activation": "groupmax" if isinstance(activation, GroupMax) else "topk",
        "expansion_factor": max(1, dictionary.latents // dictionary.d_in),
        "normalize_decoder": False,
        "num_latents": dictionary.latents,
        "k": min(activation.k, dictionary.latents),
        "multi_topk": False,
        "skip_connection": weights.W_skip is not None,
        "transcode": transcoder,
        "d_in": dictionary.d_in,
    }
    return folder / module, "sae.safetensors", tensors, config


_LAYOUTS: dict[str, Callable[[Dictionary, Path], _Made]] = {
    "sae_lens": _to_sae_lens,
    "sparsify": _to_sparsify,
}
