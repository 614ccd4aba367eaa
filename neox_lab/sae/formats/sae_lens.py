"""SAELens: ``<folder>/{cfg.json, sae_weights.safetensors}``, version 6 and before.

    x' = normalised(x) - b_dec * apply_b_dec_to_input
    pre = x' @ W_enc + b_enc
    standard: relu   topk: the k largest, then relu   abstopk: the k largest of |pre|
    jumprelu: relu where pre > threshold              gated: see ``activations.Gated``
    y = acts @ W_dec + b_dec, and the normalisation undone; transcoders do not undo it

A BatchTopK is saved as a jumprelu. Before version 6 the configuration was flat and its entries had
other names. Source: sae_lens/saes/ and loading/pretrained_sae_loaders.py of version 6.54.12.
"""

from __future__ import annotations

from typing import Any

import torch

from neox_lab.checks import FINITE, check
from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation, Gated, JumpReLU, ReLU, TopK
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.formats.format import (
    Format,
    Found,
    Given,
    Parts,
    site_needed,
    switch,
    unknown,
    whole,
)
from neox_lab.sae.formats.source import Source, Tensors, inside, ways
from neox_lab.sae.normalisation import Normalise, constant_norm, layer_norm, unchanged
from neox_lab.sae.sites import of_name

NAME = "SAELens"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_KINDS = {
    "standard": "ReLU",
    "topk": "TopK",
    "abstopk": "signed TopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
}
_OTHERS = {
    "temporal": "a temporal SAE, whose features read earlier tokens too",
    "matching_pursuit": "a matching-pursuit SAE, which chooses its features one after another",
}
_NORMALISE: dict[str, Normalise] = {
    "none": unchanged,
    "layer_norm": layer_norm,
    "constant_norm_rescale": constant_norm,
    "expected_average_only_in": unchanged,  # folded into the weights
}


def find(source: Source) -> list[Found]:
    """The dictionaries of this format."""
    made = []
    for folder in source.folders_with(WEIGHTS, CONFIG):
        named = next((found for name in ways(source, folder) if (found := of_name(name))), None)
        if named is not None and not source.is_local:  # a request for each would take long
            made.append(Found(NAME, folder, named))
            continue
        config = _config(source, folder)
        made.append(Found(NAME, folder, _sites(config)[1], _refused(config)))
    return made


def _refused(config: dict[str, Any]) -> str:
    return _OTHERS.get(str(config.get("architecture")), "")


def read(source: Source, found: Found, given: Given) -> Dictionary:
    """One of them.

    Raises:
        CheckpointError: its files are damaged, contradict each other, or do not say enough.
    """
    place = inside(found.place, CONFIG)
    config = _config(source, found.place)
    if refused := _refused(config):
        raise CheckpointError(f"{place}: {refused}; it is not read here.")
    if config.get("hook_head_index") is not None:
        raise CheckpointError(
            f"{place}: it reads head {config['hook_head_index']} alone of "
            f"{config.get('hook_name')!r}; dictionaries of single heads are not read here."
        )
    tensors = source.tensors(inside(found.place, WEIGHTS))
    parts = _parts(config, _scaled(config, tensors), given, place)
    read_at, written_at = _sites(config)
    written_at = written_at or site_needed(found, given)
    named = "the argument" if found.site is None else f"{place}: hook_name"
    more = {}
    if config.get("model_name"):
        loaded = config.get("model_from_pretrained_kwargs") or {}
        more["model"] = f"{place}: {config['model_name']}, loaded by TransformerLens with {loaded}"
    return parts.at(read_at or written_at, written_at, format=config["layout"], site=named, **more)


def _config(source: Source, folder: str) -> dict[str, Any]:
    """The configuration as version 6 has it, flat, with its defaults."""
    config = source.json(inside(folder, CONFIG))
    metadata = config.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    version = str(config.get("sae_lens_version") or metadata.get("sae_lens_version") or "")
    if version and version.split(".")[0].isdigit() and int(version.split(".")[0]) >= 6:
        layout = f"SAELens {version}: cfg.json and sae_weights.safetensors"
        return {**metadata, **config, "layout": layout}
    config = {_RENAMED.get(name, name): value for name, value in config.items()}
    kwargs = config.get("activation_fn_kwargs")
    if config.get("activation_fn") == "topk" and isinstance(kwargs, dict) and "k" in kwargs:
        config |= {"architecture": "topk", "k": kwargs["k"]}
    if isinstance(config.get("normalize_activations"), bool):
        scaled = config["normalize_activations"]
        config["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    return config | {"layout": "SAELens of before version 6: cfg.json and sae_weights.safetensors"}


def _sites(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """The hook points it reads and writes; TransformerLens's names are ours."""
    read, written = config.get("hook_name"), config.get("hook_name_out")
    read = read if isinstance(read, str) and read else None
    transcoder = "transcoder" in str(config.get("architecture"))
    return read, written if transcoder and isinstance(written, str) and written else read


def _scaled(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """The tensors without the finetuning factor, which is 1 in all but a few early files.

    Raises:
        CheckpointError: it is not 1.
    """
    factor = tensors.get("scaling_factor", tensors.get("finetuning_scaling_factor"))
    if factor is None:
        return tensors
    if not torch.allclose(factor, torch.ones_like(factor)):
        raise CheckpointError(
            f"{tensors.path} holds a finetuning factor for each feature (scaling_factor), which is "
            "not read here; multiply the rows of W_dec by it and leave it out."
        )
    left = {name: tensor for name, tensor in tensors.items() if tensor is not factor}
    return Tensors(tensors.path, left)


def _parts(config: dict[str, Any], tensors: Tensors, given: Given, place: str) -> Parts:
    architecture = str(config.get("architecture", "standard"))
    transcoder = "transcoder" in architecture
    base = architecture.removesuffix("transcoder").removesuffix("_").removesuffix("skip")
    base = base.removesuffix("_") or "standard"
    if base not in _KINDS:
        raise unknown("architecture", architecture, place)
    bias = ["b_gate", "b_mag", "r_mag"] if base == "gated" else ["b_enc"]
    needed = ["W_enc", "W_dec", "b_dec", *bias]
    needed += ["threshold"] * (base == "jumprelu") + ["W_skip"] * ("skip" in architecture)
    tensors.check(needed)
    tensors = tensors.dtyped(given.dtype, given.device)
    b_enc = torch.zeros_like(tensors["b_gate"]) if base == "gated" else tensors["b_enc"]
    weights = Weights(
        tensors["W_enc"], b_enc, tensors["W_dec"], tensors["b_dec"], tensors.get("W_skip")
    )
    subtracts = switch(config, "apply_b_dec_to_input", not transcoder, place)
    facts = {
        "kind": f"{place}: architecture {architecture!r}",
        "subtracts_b_dec": f"{place}: apply_b_dec_to_input"
        if "apply_b_dec_to_input" in config
        else "the default of SAELens",
    }
    weights, normalise = _normalised(config, weights, given, facts, place)
    k = whole(config, "k", place) if "topk" in base else None
    activation = _activation(base, config, tensors, weights, k, place)
    return Parts(weights, activation, _KINDS[base], subtracts, facts, k, normalise)


def _activation(
    base: str,
    config: dict[str, Any],
    tensors: Tensors,
    weights: Weights,
    k: int | None,
    place: str,
) -> Activation:
    if base == "gated":
        return Gated(tensors["b_gate"], tensors["b_mag"], tensors["r_mag"])
    if base == "jumprelu":
        return JumpReLU(tensors["threshold"])
    if k is None:
        name = config.get("activation_fn", "relu")
        if name != "relu":
            raise unknown("activation_fn", name, place)
        return ReLU()
    rescaled = switch(config, "rescale_acts_by_decoder_norm", False, place)
    scale = tensors["W_dec"].norm(dim=-1) if rescaled else None
    return TopK(k, signed=base == "abstopk", scale=scale)


def _normalised(
    config: dict[str, Any], weights: Weights, given: Given, facts: dict[str, str], place: str
) -> tuple[Weights, Normalise]:
    """What is done to the input; a constant factor goes into the weights.

    Raises:
        CheckpointError: it is not known, or its factor is not.
    """
    name = config.get("normalize_activations") or "none"
    if not isinstance(name, str) or name not in _NORMALISE:
        raise unknown("normalize_activations", name, place)
    facts["normalise"] = f"{place}: normalize_activations {name!r}"
    if name != "expected_average_only_in":
        return weights, _NORMALISE[name]
    factor = given.norm_scaling_factor
    if factor is None:
        raise CheckpointError(
            f"{place}: activations were multiplied by one number (expected_average_only_in) that "
            "is not in the file; SAELens has it in pretrained_saes.yaml. Give "
            "norm_scaling_factor=, or √d_model / (mean norm of activations at the site)."
        )
    factor = check("norm_scaling_factor", factor, FINITE, CheckpointError)
    facts["normalise"] += f"; the argument {factor:g}, folded into the weights"
    folded = weights._replace(
        W_enc=weights.W_enc * factor, W_dec=weights.W_dec / factor, b_dec=weights.b_dec / factor
    )
    return folded, unchanged


FORMAT = Format(NAME, find, read)
