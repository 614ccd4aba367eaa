"""Marks's and Karvonen's dictionary_learning: ``<folders>/{ae.pt, config.json}``; SAEBench's suite.

Steps of a training lie in ``<folders>/checkpoints/ae_{step}.pt``.

What a file is, its tensors say:

    encoder.*, decoder.weight, bias             ReLU; x - bias is read       (AutoEncoder)
    encoder.*, decoder.weight, decoder.bias     ReLU; x is read              (AutoEncoderNew)
    encoder.weight, decoder.weight, decoder_bias, gate_bias, mag_bias, r_mag              Gated
    encoder.*, decoder.weight, b_dec, k, threshold      TopK or BatchTopK: config.json says which;
                                                        early ones lack the last two
    W_enc, b_enc, W_dec, b_dec, k, threshold, group_sizes                   Matryoshka BatchTopK
    W_enc, b_enc, W_dec, b_dec, threshold               JumpReLU; x is read
    encoder.weight of three axes                        a crosscoder, see ``crosscoders``

A BatchTopK's ``threshold`` is used afterwards as that of a JumpReLU; while it is -1 it was not
estimated yet, and the k largest count. Source: dictionary_learning/dictionary.py and trainers/ of
version 0.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check
from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation, Gated, JumpReLU, ReLU, TopK
from neox_lab.sae.crosscoder import Crosscoder
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.formats.crosscoders import is_crosscoder, of_tensors
from neox_lab.sae.formats.format import Format, Found, Given, Parts, scalar, site_needed
from neox_lab.sae.formats.source import Source, Tensors, inside, ways
from neox_lab.sae.sites import of_learned

NAME = "dictionary_learning"
CONFIG, WEIGHTS = "config.json", "ae.pt"
_STEP = re.compile(r"(?:(.*)/)?checkpoints/ae_\d+\.pt|ae_\d+\.pt")
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_GATED = ("encoder.weight", "decoder.weight", "decoder_bias", "gate_bias", "mag_bias", "r_mag")
_BATCH = ("BatchTopK", "Matryoshka")


def find(source: Source) -> list[Found]:
    """The dictionaries of this format."""
    folders = list(source.folders_with(WEIGHTS))
    made = [Found(NAME, folder, _site(source, folder)) for folder in folders]
    for name in source.names:  # of a finished training nobody means an earlier step
        step = _STEP.fullmatch(name)
        if step and (step[1] or "") not in folders:
            made.append(Found(NAME, name, _site(source, step[1] or "")))
    return made


def read(source: Source, found: Found, given: Given) -> Dictionary | Crosscoder:
    """One of them.

    Raises:
        CheckpointError: its files are damaged, unfinished, or do not say enough.
    """
    step = _STEP.fullmatch(found.place)
    folder, file = (step[1] or "", found.place) if step else (found.place, "")
    config = source.json(inside(folder, CONFIG))
    trainer = config.get("trainer", {})
    trainer = trainer if isinstance(trainer, dict) else {}
    site, said = found.site, f"folder {folder!r}"
    if site is None and (site := _of_trainer(trainer)):
        said = "config.json: submodule_name"
    if site is None:
        site, said = site_needed(found, given), "the argument"
    tensors = _tensors(*source.pickle(file or inside(folder, WEIGHTS)))
    tensors = tensors.dtyped(given.dtype, given.device)
    if is_crosscoder(tensors):
        settings = trainer.get("dict_class_kwargs")
        settings = settings if isinstance(settings, dict) else {}
        return of_tensors(
            tensors, {**config, **trainer, **settings}, site, said, "crosscoder: ae.pt"
        )
    return _parts(tensors, trainer, given).at(site, format="dictionary_learning: ae.pt", site=said)


def _parts(tensors: Tensors, trainer: Mapping[str, Any], given: Given) -> Parts:
    """What a file is, by the names of its tensors."""
    if "gate_bias" in tensors:
        return _gated(tensors)
    if "W_enc" in tensors:
        return _of_plain_names(tensors, trainer)
    if "b_dec" in tensors:
        tensors.check([*_LINEAR, "b_dec"], ["k", "threshold"])
        kind = _kind(trainer, given, tensors)
        k = _k(tensors, trainer, given)
        return _chosen(tensors, Weights(*_of_linear(tensors), tensors["b_dec"]), kind, k)
    if "bias" in tensors:
        tensors.check([*_LINEAR, "bias"])
        return _relu(Weights(*_of_linear(tensors), tensors["bias"]), trainer)
    tensors.check([*_LINEAR, "decoder.bias"])
    facts = {
        "kind": "tensors of an AutoEncoderNew",
        "subtracts_b_dec": "AutoEncoderNew reads x itself",
        "decoder": "as stored; the library multiplies activations by the norms of the decoder in "
        "forward(output_features=True), and does not in encode",
    }
    weights = Weights(*_of_linear(tensors), tensors["decoder.bias"])
    return Parts(weights, ReLU(), "ReLU", False, facts)


def _relu(weights: Weights, trainer: Mapping[str, Any]) -> Parts:
    """An AutoEncoder, its decoder scaled to norm 1 as the library's ``from_pretrained`` does."""
    norms = weights.W_dec.norm(dim=1)
    norms = norms.where(norms > 0, 1)
    name = str(trainer.get("trainer_class") or "")
    facts = {
        "kind": "tensors of an AutoEncoder" + (f"; config.json: {name}" if name else ""),
        "subtracts_b_dec": "AutoEncoder reads x - bias",
        "decoder": "rows scaled to norm 1 and the encoder by the inverse, as from_pretrained does; "
        f"stored norms were {float(norms.min()):.3g} to {float(norms.max()):.3g}",
    }
    scaled = weights._replace(
        W_enc=weights.W_enc * norms,
        b_enc=weights.b_enc * norms,
        W_dec=weights.W_dec / norms[:, None],
    )
    return Parts(scaled, ReLU(), "P-annealed ReLU" if "PAnneal" in name else "ReLU", True, facts)


def _gated(tensors: Tensors) -> Parts:
    tensors.check(_GATED)
    gate, magnitude, scale = (tensors[name] for name in ("gate_bias", "mag_bias", "r_mag"))
    weights = Weights(
        tensors["encoder.weight"].T,
        torch.zeros_like(gate),
        tensors["decoder.weight"].T,
        tensors["decoder_bias"],
    )
    facts = {
        "kind": "tensors of a GatedAutoEncoder",
        "subtracts_b_dec": "GatedAutoEncoder reads x - decoder_bias",
    }
    return Parts(weights, Gated(gate, magnitude, scale), "Gated", True, facts)


def _of_plain_names(tensors: Tensors, trainer: Mapping[str, Any]) -> Parts:
    """Matryoshka and JumpReLU, whose matrices are not transposed."""
    matryoshka = "k" in tensors
    tensors.check([*_PLAIN, "k"] if matryoshka else _PLAIN)
    weights = Weights(*(tensors[name] for name in _PLAIN[:4]))
    if matryoshka:
        k = int(scalar(tensors["k"], "k", str(tensors.path)))
        return _chosen(tensors, weights, "Matryoshka BatchTopK", k)
    facts = {
        "kind": "tensors of a JumpReluAutoEncoder",
        "subtracts_b_dec": "JumpReluAutoEncoder reads x itself",
    }
    target = trainer.get("target_l0")
    expected = float(target) if isinstance(target, int | float) else None
    return Parts(weights, JumpReLU(tensors["threshold"]), "JumpReLU", False, facts, expected)


def _k(tensors: Tensors, trainer: Mapping[str, Any], given: Given) -> int:
    """How many features are active; earlier versions have that in the configuration alone."""
    if "k" in tensors:
        return int(scalar(tensors["k"], "k", str(tensors.path)))
    k = trainer.get("k", given.k)
    if k is None:
        raise CheckpointError(f"{tensors.path}: nothing says how many features are active; give k=")
    return check(f"{tensors.path}: k", k, COUNT, CheckpointError)


def _chosen(tensors: Tensors, weights: Weights, kind: str, k: int) -> Parts:
    """TopK, or a BatchTopK after training."""
    threshold = -1.0
    if "threshold" in tensors:
        threshold = scalar(tensors["threshold"], "threshold", str(tensors.path))
    facts = {
        "kind": "config.json" if "encoder.weight" in tensors else "tensors of a Matryoshka",
        "subtracts_b_dec": "x - b_dec is read",
    }
    activation: Activation = TopK(k)
    if kind == "TopK":
        facts["threshold"] = f"{threshold:.4g}, not used: the library's default is the k largest"
    elif threshold < 0:
        facts["threshold"] = f"{threshold:g}: not estimated yet, so each token has its {k} largest"
    else:
        facts["threshold"] = f"{threshold:.4g}, estimated where {k} were active on average"
        activation = JumpReLU(tensors["threshold"].flatten()[0])
    return Parts(weights, activation, kind, True, facts, k)


def _kind(trainer: Mapping[str, Any], given: Given, tensors: Tensors) -> str:
    """TopK or BatchTopK, which have the same tensors.

    Raises:
        CheckpointError: neither the configuration nor the user says.
    """
    name = trainer.get("dict_class") or trainer.get("trainer_class") or given.kind
    if not isinstance(name, str):
        raise CheckpointError(
            f"{tensors.path}: TopK and BatchTopK have the same tensors, and no config.json says "
            "which this is; give kind='TopK' or kind='BatchTopK'."
        )
    if any(word in name for word in _BATCH):
        return "BatchTopK"
    if "TopK" in name:
        return "TopK"
    raise CheckpointError(f"{tensors.path} holds a TopK or BatchTopK; it is said to be {name!r}.")


def _of_linear(tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    return tensors["encoder.weight"].T, tensors["encoder.bias"], tensors["decoder.weight"].T


def _tensors(path: Path, content: object) -> Tensors:
    """The state dict in a file.

    Raises:
        CheckpointError: it holds something else.
    """
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected named tensors.")
    if {"ae", "step"} <= set(content):
        raise CheckpointError(
            f"{path} was left by a training that was stopped (it holds {', '.join(content)}): its "
            "biases are not scaled back, so it would encode something else. Finish the training, "
            "or take a file of the checkpoints folder."
        )
    content = {name: value for name, value in content.items() if name != "group_sizes"}
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path}: {others[0]!r} is no tensor.")
    return Tensors(path, content)


def _site(source: Source, folder: str) -> str | None:
    return next((site for name in ways(source, folder) if (site := of_learned(name))), None)


def _of_trainer(trainer: Mapping[str, Any]) -> str | None:
    name = trainer.get("submodule_name")
    return of_learned(name) if isinstance(name, str) else None


FORMAT = Format(NAME, find, read)
