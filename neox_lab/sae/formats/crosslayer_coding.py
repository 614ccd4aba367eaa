"""crosslayer-coding: ``cfg.json`` beside the weights, and statistics of its data set.

    encoder_module.encoders.{i}.weight [latent, d], .bias_param
    decoder_module.decoders.{i}->{j}.weight [d, latent], .bias_param      a pair of layers each
    decoder_module.decoders.{i}.weight, .bias_param      tied: of the source, or of the target
    decoder_module.skip_weights.{i}->{j} or .{j} [d, d]                   applied as x @ W.T
    decoder_module.feature_offset.{j}, .feature_scale.{j} [latent]        of active features
    theta_manager.log_threshold [layer, latent]

A JumpReLU passes what is equal to its threshold, too; here what is above it.
Each source adds the bias of its decoder; where targets share, a bias counts once. Early files lack
the names of the modules. Activations were normalised outside the weights, by ``norm_stats.json``
of the data set: ``{"0": {"inputs": {"mean", "std"}, "targets": ...}, ...}``. Source: clt/models/
and clt/training/data/ of crosslayer-coding, May to August 2025.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from neox_lab.checks import check as checked
from neox_lab.checks import number, shown
from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation, JumpReLU, ReLU
from neox_lab.sae.affine import Affine
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.cross_layer_weights import CrossLayerWeights, Pair
from neox_lab.sae.formats.format import Format, Found, Given, switch, unknown, whole
from neox_lab.sae.formats.source import Source, Tensors, inside
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.sae.sites import of_module

NAME = "crosslayer-coding"
CONFIG, STATISTICS = "cfg.json", "norm_stats.json"
_ENTRIES = {"num_features", "num_layers", "activation_fn"}
_LATEST = "clt_checkpoint_latest.pt"
_FILES = re.compile(r".+\.safetensors|clt.*\.pt")
_OTHERS = ("sae.safetensors", "sae_weights.safetensors")  # of SAELens, beside a cfg.json too
_MODULE = re.compile(r"(encoder_module|decoder_module|theta_manager)\.")
_NORMALISED = {
    "none": "none",
    "mean_std": "mean_std",
    "auto": "mean_std",
    "estimated_mean_std": "mean_std",
    "sqrt_d_model": "sqrt_d_model",
    "auto_sqrt_d_model": "sqrt_d_model",
    "estimated_mean_std_sqrt_d_model": "sqrt_d_model",
}
_EPSILON = 1e-6  # added to deviations, as the library does
_USUAL = "blocks.{}.mlp.hook_in", "blocks.{}.hook_mlp_out"


def find(source: Source) -> list[Found]:
    """Folders with such a configuration; of several files of weights each."""
    made = []
    for folder in source.folders_with(CONFIG):
        if any(inside(folder, name) in source.names for name in _OTHERS):
            continue
        if not _ENTRIES <= set(source.json(inside(folder, CONFIG))):
            continue
        files = list(_weights(source, folder))
        if len(files) < 2:
            made.append(Found(NAME, folder, None))
        made += [Found(NAME, name, None) for name in files if len(files) > 1]
    return made


def read(source: Source, found: Found, given: Given) -> CrossLayerTranscoder:
    """One of them.

    Raises:
        CheckpointError: its files are damaged, unfinished, or do not say enough.
    """
    is_file = found.place in source.names
    folder = found.place.rpartition("/")[0] if is_file else found.place
    files = [found.place] if is_file else list(_weights(source, folder))
    if not files:
        raise CheckpointError(
            f"{inside(source.where, folder)} has {CONFIG} and no file of weights."
        )
    place = inside(folder, CONFIG)
    config = source.json(place)
    tensors = _tensors(source, files[0]).dtyped(given.dtype, given.device)
    layers, tying = whole(config, "num_layers", place), config.get("decoder_tying", "none")
    weights = _all_weights(tensors, config, layers, tying, place)
    activation, kind = _activation(tensors, config, layers, place)
    into, out, normalised = _normalise(source, folder, config, layers, given)
    sites_in, read_from = _sites(config, "input", place)
    sites_out, written_to = _sites(config, "output", place)
    return CrossLayerTranscoder(
        weights,
        activation,
        sites_in=[sites_in.replace("{}", str(layer)) for layer in range(layers)],
        sites_out=[sites_out.replace("{}", str(layer)) for layer in range(layers)],
        into=into,
        out=out,
        kind=kind,
        sources={
            "format": f"crosslayer-coding: {CONFIG}, {files[0]}",
            "kind": f"{CONFIG}: activation_fn {config['activation_fn']!r}",
            "decoders": f"{CONFIG}: decoder_tying {tying!r}",
            "normalise": normalised,
            "site_in": read_from,
            "site_out": written_to,
        },
    )


def _weights(source: Source, folder: str) -> Iterator[str]:
    """Files of weights in a folder; of a training's steps the latest."""
    if inside(folder, _LATEST) in source.names:
        yield inside(folder, _LATEST)
        return
    for name in source.names:
        place, _, last = name.rpartition("/")
        if place == folder and _FILES.fullmatch(last):
            yield name


def _tensors(source: Source, name: str) -> Tensors:
    """What a file of weights holds, without the names of the modules.

    Raises:
        CheckpointError: it holds something else.
    """
    if name.endswith(".safetensors"):
        held = source.tensors(name)
        return Tensors(held.path, {_MODULE.sub("", key): tensor for key, tensor in held.items()})
    path, content = source.pickle(name)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} holds no named tensors.")
    return Tensors(path, {_MODULE.sub("", str(key)): tensor for key, tensor in content.items()})


def _all_weights(
    tensors: Tensors, config: dict[str, Any], layers: int, tying: object, place: str
) -> CrossLayerWeights:
    """The matrices of all pairs of layers.

    Raises:
        CheckpointError: the file lacks one, or has one that nobody would read.
    """
    if f"encoders.{layers - 1}.weight" not in tensors:  # before pairs of them are listed
        raise CheckpointError(
            f"{tensors.path} lacks encoders.{layers - 1}.weight; {CONFIG} says {layers} layers."
        )
    pairs: list[Pair] = [(i, j) for i in range(layers) for j in range(i, layers)]
    if tying not in ("none", "per_source", "per_target"):
        raise unknown("decoder_tying", tying, place)
    tied = tying != "none"
    of_pair = {
        (i, j): f"{i}->{j}" if not tied else str(i if tying == "per_source" else j)
        for i, j in pairs
    }
    skip_of = {}
    if switch(config, "skip_connection", False, place):
        skip_of = {(i, j): f"skip_weights.{j if tied else f'{i}->{j}'}" for i, j in pairs}
    offset = _of_targets("offset", config, layers, tied, place)
    scale = _of_targets("scale", config, layers, tied, place)
    names = [f"encoders.{i}" for i in range(layers)]
    names += [f"decoders.{name}" for name in dict.fromkeys(of_pair.values())]
    needed = [f"{name}.{part}" for name in names for part in ("weight", "bias_param")]
    jump = ["log_threshold"] if config["activation_fn"] == "jumprelu" else []
    tensors.check([*needed, *dict.fromkeys(skip_of.values()), *offset, *scale, *jump])
    matrices = {name: tensors[f"decoders.{name}.weight"].T.contiguous()
                for name in of_pair.values()}  # fmt: skip
    biases = [
        # a set of names: decoders that a target shares among its sources add their bias once
        torch.stack([tensors[f"decoders.{name}.bias_param"] for name in names]).sum(0)
        for names in (list(dict.fromkeys(of_pair[i, j] for i in range(j + 1)))
                      for j in range(layers))
    ]  # fmt: skip
    sizes = whole(config, "d_model", place), whole(config, "num_features", place)
    if tensors["encoders.0.weight"].shape != (sizes[1], sizes[0]):
        raise CheckpointError(
            f"{tensors.path}: an encoder is {list(tensors['encoders.0.weight'].shape)}; "
            f"{CONFIG} says {sizes[1]} features and d_model {sizes[0]}."
        )
    return CrossLayerWeights(
        W_enc=[tensors[f"encoders.{i}.weight"].T for i in range(layers)],
        b_enc=[tensors[f"encoders.{i}.bias_param"] for i in range(layers)],
        W_dec={pair: matrices[name] for pair, name in of_pair.items()},
        b_dec=biases,
        W_skip={pair: tensors[name] for pair, name in skip_of.items()},
        offset=[tensors[name] for name in offset],
        scale=[tensors[name] for name in scale],
    )


def _of_targets(
    what: str, config: dict[str, Any], layers: int, tied: bool, place: str
) -> list[str]:
    """Names of the tensors by which activations change on the way; only tied decoders have them."""
    if not switch(config, f"enable_feature_{what}", False, place) or not tied:
        return []
    return [f"feature_{what}.{layer}" for layer in range(layers)]


def _activation(
    tensors: Tensors, config: dict[str, Any], layers: int, place: str
) -> tuple[Sequence[Activation] | SharedTopK, str]:
    """Which features are active.

    Raises:
        CheckpointError: nothing that is known here.
    """
    name = config["activation_fn"]
    if name == "relu":
        return [ReLU()] * layers, "ReLU"
    if name == "jumprelu":
        thresholds = tensors["log_threshold"]
        if len(thresholds) != layers or thresholds.dim() != 2:
            raise CheckpointError(
                f"{tensors.path}: log_threshold is {list(thresholds.shape)}; expected "
                f"[{layers}, latent]."
            )
        return [JumpReLU(each) for each in thresholds.exp()], "JumpReLU"
    if name not in ("topk", "batchtopk"):
        raise unknown("activation_fn", name, place)
    mode = config.get("topk_mode", "global")
    if mode not in ("global", "per_layer"):
        raise unknown("topk_mode", mode, place)
    given = config.get(f"{name}_k")
    k = checked(f"{place}: {name}_k", given, number(above=0), CheckpointError)
    batch = name == "batchtopk"
    return SharedTopK(k, batch, mode == "global"), "BatchTopK" if batch else "TopK"


def _normalise(
    source: Source, folder: str, config: dict[str, Any], layers: int, given: Given
) -> tuple[list[Affine], list[Affine], str]:
    """What is done to inputs and what outputs were trained to look like, and who says so.

    Raises:
        CheckpointError: the file with the statistics is missing or damaged.
    """
    said = config.get("normalization_method", "none")
    if config.get("sqrt_d_model_normalize"):
        said = "sqrt_d_model"
    method = _NORMALISED.get(said) if isinstance(said, str) else None
    if method is None:
        raise unknown("normalization_method", said, inside(folder, CONFIG))
    if method == "none":
        return [], [], f"{CONFIG}: normalization_method {said!r}"
    if method == "sqrt_d_model":
        shrink = 1 / math.sqrt(whole(config, "d_model", inside(folder, CONFIG)))
        zero = torch.zeros((), dtype=given.dtype, device=given.device)
        made = [Affine(zero, zero + shrink) for _ in range(layers)]
        return made, list(made), f"{CONFIG}: normalization_method {said!r}"
    parents = [folder, *(_up(folder))]
    name = next((n for p in parents if (n := inside(p, STATISTICS)) in source.names), None)
    if name is None:
        raise CheckpointError(
            f"{inside(source.where, folder)} was trained on activations normalised by mean and "
            f"deviation ({CONFIG}: normalization_method {said!r}), and these stand in "
            f"{STATISTICS} of the data set, which is not here. Put that file beside {CONFIG}."
        )
    statistics = source.json(name)
    path = inside(source.where, name)
    both = [
        [_affine(statistics, layer, kind, path, config, given) for layer in range(layers)]
        for kind in ("inputs", "targets")
    ]
    return both[0], both[1], f"{name}, of the data set"


def _affine(
    statistics: dict[str, Any],
    layer: int,
    kind: str,
    path: str,
    config: dict[str, Any],
    given: Given,
) -> Affine:
    """Mean and deviation of a layer.

    Raises:
        CheckpointError: they are missing, or not numbers for each dimension.
    """
    d_model = config["d_model"]
    try:
        held = statistics[str(layer)][kind]
        mean, std = (torch.tensor(held[name], dtype=torch.float64) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path}: no mean and std of layer {layer}, {kind}.") from error
    if list(mean.shape) != [d_model] or list(std.shape) != [d_model]:
        raise CheckpointError(
            f"{path}: mean and std of layer {layer}, {kind}, have {mean.numel()} and {std.numel()} "
            f"numbers; expected {d_model}."
        )
    to = given.device, given.dtype
    return Affine(mean.to(*to), (std + _EPSILON).to(*to))


def _up(folder: str) -> list[str]:
    """The folders above one, to the top."""
    parts = folder.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts) - 1, -1, -1)] if folder else []


def _sites(config: dict[str, Any], end: str, place: str) -> tuple[str, str]:
    """The hook point with ``{}`` for the layer, and who says so.

    ``mlp_{end}_template`` names a module and its input or output, and is what activations were
    taken from; ``tl_{end}_template`` is TransformerLens's name for it.

    Raises:
        CheckpointError: a name that is no place of this family's networks.
    """
    for key in (f"mlp_{end}_template", f"tl_{end}_template"):
        template = config.get(key)
        if template is None:
            continue
        if not isinstance(template, str) or template.count("{}") != 1:
            raise CheckpointError(f"{place}: {key} {shown(template)} is no name with one {{}}.")
        whole_path = template.replace("{}", "7")
        path, _, last = whole_path.rpartition(".")
        name: str | None = whole_path
        if not key.startswith("tl"):
            transcoder = last == "input"
            module = path if last in ("input", "output") else whole_path
            sites = of_module(module, transcoder=transcoder)
            name = None if sites is None else sites[0]
        if name is None or not name.startswith("blocks.7."):
            raise CheckpointError(
                f"{place}: {key} {template!r} is no place that GPT-NeoX networks have."
            )
        return name.replace("blocks.7.", "blocks.{}.", 1), f"{place}: {key}"
    return _USUAL[end == "output"], f"nothing in {CONFIG} says; the usual ones"


FORMAT = Format(NAME, find, read)
