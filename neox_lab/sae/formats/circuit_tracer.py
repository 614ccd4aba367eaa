"""circuit-tracer: ``layer_{i}.safetensors`` of every layer, and ``config.yaml``.

A cross-layer transcoder is a folder of other files, see ``circuit_tracer_cross_layer``.

    pre = x @ W_enc.T + b_enc                        W_enc [latent, d]; b_dec is not subtracted
    relu, or pre where pre > threshold, or the k largest, negative ones too
    y = acts @ W_dec + b_dec (+ x @ W_skip.T)

The files have a threshold or none. Without one they are read as ReLU, though a set of TopK looks
the same: that stands in ``config.yaml``, if anywhere. Source:
circuit_tracer/transcoder/single_layer_transcoder.py of version 0.5.0.
"""

from __future__ import annotations

import re
from typing import Any

from neox_lab.checks import shown
from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation, JumpReLU, ReLU, TopK
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.formats import circuit_tracer_cross_layer as cross_layer
from neox_lab.sae.formats.format import Format, Found, Given, Parts, scalar, unknown, whole
from neox_lab.sae.formats.source import Source, Tensors, inside
from neox_lab.sae.sites import in_block

NAME = "circuit-tracer"
CONFIG = "config.yaml"
_FILE = re.compile(r"layer_(\d+)\.safetensors")
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")
THRESHOLD = "activation_function.threshold"
_ELSEWHERE = "a list of files that lie elsewhere; load these, each from its own repository:"
READ, WRITTEN = "mlp.hook_in", "hook_mlp_out"


def find(source: Source) -> list[Found]:
    """The transcoders of this format, each in its file."""
    made = []
    for name in source.names:
        folder, _, last = name.rpartition("/")
        if found := _FILE.fullmatch(last):
            written = _sites(_config(source, folder), int(found[1]))[1]
            made.append(Found(NAME, name, written))
        elif last == CONFIG and "transcoders" in (config := _config(source, folder)):
            made.append(Found(NAME, name, None, f"{_ELSEWHERE} {shown(config['transcoders'])}"))
    return made + [Found(NAME, folder, None) for folder in cross_layer.folders(source)]


def read(source: Source, found: Found, given: Given) -> Dictionary | CrossLayerTranscoder:
    """One of them.

    Raises:
        CheckpointError: its files are damaged or do not say enough.
    """
    if found.place not in source.names:
        return _cross_layer(source, found.place, given)
    folder, _, last = found.place.rpartition("/")
    config = _config(source, folder)
    number = _FILE.fullmatch(last)
    assert number is not None
    sites = _sites(config, int(number[1]))
    tensors = source.tensors(found.place)
    if {"w_enc", "w_dec"} <= set(tensors):
        tensors = _of_gemma_scope(tensors)
    tensors.check(_TENSORS, ["W_skip", THRESHOLD, "k"])
    tensors = tensors.dtyped(given.dtype, given.device)
    return _parts(config, tensors, given, inside(folder, CONFIG)).at(
        *sites, format="circuit-tracer: layer_{i}.safetensors", site=_who_says(config)
    )


def _cross_layer(source: Source, folder: str, given: Given) -> CrossLayerTranscoder:
    """The cross-layer transcoder of a folder, each layer's encoder read like a transcoder.

    Raises:
        CheckpointError: its files are damaged, or one is missing.
    """
    config, place = _config(source, folder), inside(folder, CONFIG)
    layers = cross_layer.tensors(source, folder)
    parts = [_parts(config, each.dtyped(given.dtype, given.device), given, place)
             for each in layers]  # fmt: skip
    if len({each.kind for each in parts}) > 1:
        raise CheckpointError(
            f"{inside(source.where, folder)}: layers are {', '.join(each.kind for each in parts)}; "
            "of one cross-layer transcoder all have thresholds or none."
        )
    sites = [_sites(config, layer) for layer in range(len(parts))]
    return CrossLayerTranscoder(
        cross_layer.weights(source, folder, layers, [each.weights for each in parts], given),
        [each.activation for each in parts],
        sites_in=[read for read, _ in sites],
        sites_out=[written for _, written in sites],
        kind=parts[0].kind,
        sources={
            "format": "circuit-tracer: W_enc_{i}.safetensors, W_dec_{i}.safetensors",
            "site": _who_says(config),
            **parts[0].facts,
        },
    )


def _who_says(config: dict[str, Any]) -> str:
    """Where the sites come from."""
    if "feature_input_hook" in config:
        return f"{CONFIG}: feature_input_hook, feature_output_hook"
    return f"no {CONFIG} says; usual are {READ} and {WRITTEN}"


def _parts(config: dict[str, Any], tensors: Tensors, given: Given, place: str) -> Parts:
    weights = Weights(
        tensors["W_enc"].T,
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        tensors.get("W_skip"),
    )
    facts = {"subtracts_b_dec": "circuit-tracer does not"}
    kind, facts["kind"] = _kind(config, tensors, given, place)
    activation: Activation = ReLU()
    k = None
    if kind == "TopK":
        if "k" in tensors:
            k = int(scalar(tensors["k"], "k", str(tensors.path)))
        else:
            k = given.k or whole(config, "k", place)
        activation = TopK(k, negative=True)
        facts["negative"] = "circuit-tracer's TopK keeps the k largest, negative ones too"
    elif kind == "JumpReLU":
        below = bool((tensors[THRESHOLD] < 0).any())  # what lies between it and 0 is kept
        activation = JumpReLU(tensors[THRESHOLD], negative=below)
    return Parts(weights, activation, kind, False, facts, k)


def _kind(config: dict[str, Any], tensors: Tensors, given: Given, place: str) -> tuple[str, str]:
    """What the activation is, and who says so."""
    if THRESHOLD in tensors:
        return "JumpReLU", "the file has thresholds"
    named = config.get("activation")
    if named is not None and str(named) not in ("relu", "topk"):
        raise unknown("activation", named, place)
    if named is not None:
        return ("TopK" if named == "topk" else "ReLU"), f"{place}: activation {named!r}"
    if "k" in tensors:
        return "TopK", "the file has a number k"
    if given.kind is not None:
        if given.kind not in ("ReLU", "TopK"):
            raise CheckpointError(f"{tensors.path} has no threshold: it is ReLU or TopK.")
        return given.kind, "the argument"
    return "ReLU", (
        "nothing says; without thresholds circuit-tracer reads ReLU, and a TopK looks the same "
        "(kind='TopK', k=... reads that)"
    )


def _of_gemma_scope(tensors: Tensors) -> Tensors:
    """GemmaScope 2 has other names and two matrices the other way round."""
    tensors.check(["w_enc", "w_dec", "b_enc", "b_dec", "threshold"], ["affine_skip_connection"])
    renamed = {
        "W_enc": tensors["w_enc"].T,
        "W_dec": tensors["w_dec"],
        "b_enc": tensors["b_enc"],
        "b_dec": tensors["b_dec"],
        THRESHOLD: tensors["threshold"],
    }
    if "affine_skip_connection" in tensors:
        renamed["W_skip"] = tensors["affine_skip_connection"].T
    return Tensors(tensors.path, renamed)


def _config(source: Source, folder: str) -> dict[str, Any]:
    """The YAML file of a set; empty where there is none.

    Raises:
        CheckpointError: it is no YAML.
    """
    name = inside(folder, CONFIG)
    if name not in source.names:
        return {}
    import yaml  # type: ignore[import-untyped]  # huggingface_hub brings it along

    path = source.path(name)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as YAML: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(config).__name__}; expected settings.")
    return config


def _sites(config: dict[str, Any], layer: int) -> tuple[str, str]:
    """The hook points it reads and writes."""
    read, written = (
        config.get(name, default)
        for name, default in (("feature_input_hook", READ), ("feature_output_hook", WRITTEN))
    )
    return in_block(str(read), layer), in_block(str(written), layer)


FORMAT = Format(NAME, find, read)
