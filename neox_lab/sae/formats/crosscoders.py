"""Crosscoders of science-of-finetuning's fork of dictionary_learning.

    encoder.weight [n, d, latent], encoder.bias [latent]
    decoder.weight [n, latent, d], decoder.bias [n, d]      or decoder.layers.{i}.weight [latent, d]
    code_normalization_id                                   what an activation counts
    k, threshold                                            of a BatchTopK
    activation_mean, activation_std [n, d], target_rms, activation_global_scale

They lie in ``ae.pt`` beside a training's ``config.json``, or as ``model.safetensors`` beside a
``config.json`` of arguments. ``encoder_layers`` there says which of the n the encoder reads. Inputs
are scaled by one number, ``target_rms / sqrt(sum of std²)``, not each dimension by its own. Source:
dictionary_learning/dictionary.py of the fork, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neox_lab.checks import FINITE, check, shown
from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation, JumpReLU, ReLU, TopK
from neox_lab.sae.affine import Affine
from neox_lab.sae.crosscoder import Crosscoder
from neox_lab.sae.formats.format import Format, Found, Given, scalar, site_needed, unknown
from neox_lab.sae.formats.source import Source, Tensors, inside, ways
from neox_lab.sae.sites import of_name

NAME = "crosscoder"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_ENTRIES = {"activation_dim", "dict_size"}
_PLAIN = ("encoder.weight", "encoder.bias", "decoder.bias")
_MORE = (
    "code_normalization_id", "k", "threshold", "activation_mean", "activation_std", "target_rms",
    "activation_global_scale", "decoder.weight",
)  # fmt: skip
_PENALTIES = ("CROSSCODER", "SAE", "MIXED", "NONE", "DECOUPLED")


def find(source: Source) -> list[Found]:
    """Those that lie as ``model.safetensors``."""
    return [
        Found(NAME, folder, next((s for n in ways(source, folder) if (s := of_name(n))), None))
        for folder in source.folders_with(WEIGHTS, CONFIG)
        if _ENTRIES <= set(config := source.json(inside(folder, CONFIG)))
        and {"num_layers", "num_encoder_layers"} & set(config)
    ]


def read(source: Source, found: Found, given: Given) -> Crosscoder:
    """One of them.

    Raises:
        CheckpointError: its files are damaged, or do not say enough.
    """
    config = source.json(inside(found.place, CONFIG))
    site, said = site_needed(found, given), "the argument" if found.site is None else "folder"
    tensors = source.tensors(inside(found.place, WEIGHTS)).dtyped(given.dtype, given.device)
    return of_tensors(tensors, config, site, said, "crosscoder: model.safetensors")


def is_crosscoder(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of one."""
    encoder = tensors.get("encoder.weight")
    return encoder is not None and encoder.dim() == 3


def of_tensors(
    tensors: Tensors, config: Mapping[str, Any], site: str, said: str, layout: str
) -> Crosscoder:
    """The crosscoder of a state dict.

    Args:
        tensors: the state dict.
        config: arguments of the library's class.
        site: hook point of all n.
        said: who says that.
        layout: whose files.

    Raises:
        CheckpointError: the tensors are others, or the configuration is not known.
    """
    layers = sorted(name for name in tensors if name.startswith("decoder.layers."))
    tensors.check(_PLAIN, [*_MORE, *layers])
    W_enc, W_dec = tensors["encoder.weight"], _decoder(tensors, len(layers))  # noqa: N806
    b_enc, b_dec = tensors["encoder.bias"], tensors["decoder.bias"]
    if W_dec.dim() != 3 or W_enc.dim() != 3:
        raise CheckpointError(f"{tensors.path}: encoder and decoder must be [n, d, latent] stacks.")
    if not W_enc.is_floating_point() or not W_dec.is_floating_point():
        raise CheckpointError(f"{tensors.path}: {W_dec.dtype} weights; expected floating-point.")
    W_enc = _spread(tensors, W_enc, len(W_dec), config.get("encoder_layers"))  # noqa: N806
    penalty, name = _penalty(tensors, W_dec, config)
    activation, kind, expected, facts = _activation(tensors, penalty)
    normalise = _normalise(tensors)
    return Crosscoder(
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        activation,
        sites=[site] * len(W_dec),
        penalty_weights=penalty,
        normalise=normalise,
        kind=kind,
        sources={
            "format": layout,
            "site": f"{said}; the same for all {len(W_dec)}",
            "penalty_weights": name,
            "normalise": "the file has no statistics" if normalise is None
            else "activation_mean and one scale for all dimensions, of the file",
            **facts,
        },
        expected_l0=expected,
    )  # fmt: skip


def _decoder(tensors: Tensors, layers: int) -> Tensor:
    """``[n, latent, d]``.

    Raises:
        CheckpointError: there is none, or it is not complete.
    """
    if not layers:
        tensors.check([*_PLAIN, "decoder.weight"], _MORE)
        return tensors["decoder.weight"]
    names = [f"decoder.layers.{i}.weight" for i in range(layers)]
    tensors.check([*_PLAIN, *names], _MORE)
    if len({tensors[name].shape for name in names}) > 1:
        raise CheckpointError(f"{tensors.path}: decoders of several widths are not read here.")
    return torch.stack([tensors[name] for name in names])


def _spread(tensors: Tensors, W_enc: Tensor, n: int, read: object) -> Tensor:  # noqa: N803
    """The encoder with zeros for those of the n that it does not read.

    Raises:
        CheckpointError: nothing says which these are.
    """
    if len(W_enc) == n and read is None:
        return W_enc
    good = isinstance(read, list) and all(type(i) is int and 0 <= i < n for i in read)
    if not isinstance(read, list) or not good or len(set(read)) != len(W_enc) or len(W_enc) > n:
        raise CheckpointError(
            f"{tensors.path}: the encoder reads {len(W_enc)} and the decoder writes {n}, and "
            f"encoder_layers is {shown(read)}; which of the {n} it reads is not known."
        )
    full = W_enc.new_zeros(n, *W_enc.shape[1:])
    full[read] = W_enc
    return full


def _penalty(tensors: Tensors, W_dec: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, str]:  # noqa: N803
    """What an activation counts, ``[latent]``, and who says so.

    Raises:
        CheckpointError: not known here.
    """
    name, said = config.get("code_normalization"), "config.json: code_normalization"
    if "code_normalization_id" in tensors:
        number = int(scalar(tensors["code_normalization_id"], "id", str(tensors.path)))
        name, said = dict(enumerate(_PENALTIES, 1)).get(number, number), "code_normalization_id"
    elif name is None:
        name, said = "CROSSCODER", "nothing says; the library's default"
    alone = W_dec.norm(dim=-1).sum(dim=0)
    together = W_dec.permute(1, 0, 2).flatten(1).norm(dim=1)
    if name == "DECOUPLED":
        raise CheckpointError(
            f"{tensors.path}: a DECOUPLED crosscoder has other active features for each of the n, "
            "which is not read here."
        )
    made = {"CROSSCODER": alone, "SAE": together, "NONE": torch.ones_like(alone)}
    if name == "MIXED":
        sae, cross = (
            check(f"{tensors.path}: {key}", config.get(key, usual), FINITE, CheckpointError)
            for key, usual in (
                ("code_normalization_alpha_sae", 1.0),
                ("code_normalization_alpha_cc", 0.1),
            )
        )
        made["MIXED"] = together * sae + alone * cross
    if not isinstance(name, str) or name not in made:
        raise unknown("code_normalization", name, str(tensors.path))
    return made[name], f"{said}: {name}"


def _activation(
    tensors: Tensors, penalty: Tensor
) -> tuple[Activation, str, float | None, dict[str, str]]:
    """Which features are active: ReLU, or a BatchTopK after training."""
    if "k" not in tensors:
        return ReLU(), "ReLU", None, {"kind": "the file has no number k"}
    place = str(tensors.path)
    k = int(scalar(tensors["k"], "k", place))
    threshold = scalar(tensors["threshold"], "threshold", place) if "threshold" in tensors else -1.0
    facts = {"kind": "the file has a number k"}
    if threshold < 0:
        facts["threshold"] = f"{threshold:g}: not estimated yet, so each token has its {k} largest"
        return TopK(k, scale=penalty), "BatchTopK", k, facts
    facts["threshold"] = f"{threshold:.4g}, of activations times penalty_weights"
    limit = (threshold / penalty).where(penalty > 0, torch.inf)
    return JumpReLU(limit), "BatchTopK", k, facts


def _normalise(tensors: Tensors) -> Affine | None:
    """Mean and scale of the inputs, or None.

    Raises:
        CheckpointError: there is only one of them.
    """
    names = [name for name in ("activation_mean", "activation_std") if name in tensors]
    if len(names) == 1:
        raise CheckpointError(f"{tensors.path} has {names[0]} without the other of mean and std.")
    if not names or any(tensors[name].isnan().any() for name in names):  # NaN: none was given
        return None
    mean, std = (tensors[name] for name in names)
    if "activation_global_scale" in tensors:
        scale = scalar(tensors["activation_global_scale"], "activation_global_scale",
                       str(tensors.path))  # fmt: skip
    else:
        rms = (
            scalar(tensors["target_rms"], "rms", str(tensors.path))
            if "target_rms" in tensors
            else 1
        )
        scale = rms / float(std.double().square().sum() + 1e-8) ** 0.5
    if not scale > 0:
        raise CheckpointError(f"{tensors.path}: activations are scaled by {scale:g}.")
    return Affine(mean, torch.full_like(mean, 1 / scale))


FORMAT = Format(NAME, find, read)
