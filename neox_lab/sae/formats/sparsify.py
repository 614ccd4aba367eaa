"""EleutherAI's sparsify: ``<module>/{cfg.json, sae.safetensors}``, perhaps below ``seed{n}``.

    x' = x - b_dec                      autoencoders; transcoders only before February 2025
    pre = relu(x' @ encoder.weight.T + encoder.bias)
    top k of pre, or the largest of each of k groups
    y = acts @ W_dec + b_dec (+ x @ W_skip.T)

An autoencoder reads the output of the module that the folder is called after, a transcoder its
input. SAEs of June to August 2024 with ``"signed": true`` take the k largest of |pre|, without
ReLU. Source: sparsify/sparse_coder.py of version 1.3.3 and its history.
"""

from __future__ import annotations

from typing import Any

from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation, GroupMax, TopK
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
from neox_lab.sae.formats.source import Source, inside, ways
from neox_lab.sae.sites import input_of, of_module

NAME = "sparsify"
CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def find(source: Source) -> list[Found]:
    """The dictionaries of this format."""
    made = []
    for folder in source.folders_with(WEIGHTS, CONFIG):
        module = _module(source, folder)
        sites = of_module(module) if module else None
        made.append(Found(NAME, folder, sites[1] if sites else None))
    return made


def read(source: Source, found: Found, given: Given) -> Dictionary:
    """One of them.

    Raises:
        CheckpointError: its files are damaged or contradict each other.
    """
    place = inside(found.place, CONFIG)
    config = source.json(place)
    if config.get("cross_layer"):
        raise CheckpointError(f"{place}: a cross-layer transcoder, which is not read here.")
    transcoder = switch(config, "transcode", False, place)
    tensors = source.tensors(inside(found.place, WEIGHTS))
    tensors.check(_TENSORS, ["W_skip"])
    tensors = tensors.dtyped(given.dtype, given.device)
    latents, stated = tensors["encoder.bias"].numel(), config.get("num_latents") or 0
    if stated and stated != latents:
        raise CheckpointError(f"{place}: num_latents is {stated}; the weights have {latents}.")
    activation, kind = _activation(config, place)
    weights = Weights(
        tensors["encoder.weight"].T,
        tensors["encoder.bias"],
        tensors["W_dec"],
        tensors["b_dec"],
        tensors.get("W_skip"),
    )
    facts = {
        "kind": f"{place}: activation {config.get('activation', 'topk')!r}",
        "subtracts_b_dec": _why(transcoder, given),
    }
    subtracts = not transcoder if given.subtracts_b_dec is None else given.subtracts_b_dec
    parts = Parts(weights, activation, kind, subtracts, facts, _k(config, place))
    site_in, site_out = _sites(source, found, given, transcoder)
    which = "input and output" if transcoder else "output"
    return parts.at(
        site_in,
        site_out,
        format="sparsify: cfg.json and sae.safetensors",
        site="the argument" if found.site is None else f"folder {found.place!r}: {which} of it",
    )


def _k(config: dict[str, Any], place: str) -> int:
    return whole({"k": 32} | config, "k", place)


def _activation(config: dict[str, Any], place: str) -> tuple[Activation, str]:
    k = _k(config, place)
    name = config.get("activation", "topk")
    if name == "groupmax":
        return GroupMax(k), "GroupMax"
    if name != "topk":
        raise unknown("activation", name, place)
    signed = switch(config, "signed", False, place)
    return TopK(k, signed=signed), "signed TopK" if signed else "TopK"


def _module(source: Source, folder: str) -> str | None:
    """The name of the module that the folders say, the innermost first."""
    return next((name for name in ways(source, folder) if of_module(name)), None)


def _sites(source: Source, found: Found, given: Given, transcoder: bool) -> tuple[str, str]:
    """What it reads and what it writes.

    Raises:
        CheckpointError: nothing says, or the module is given nothing.
    """
    site = site_needed(found, given)
    if not transcoder:
        return site, site
    module = _module(source, found.place)
    sites = of_module(module, transcoder=True) if module else (input_of(site), site)
    if sites is None or sites[0] is None:
        raise CheckpointError(
            f"{found.place!r} is a transcoder that writes {site!r}; what it reads is not known."
        )
    return sites[0], sites[1]


def _why(transcoder: bool, given: Given) -> str:
    if given.subtracts_b_dec is not None:
        return "the argument"
    if not transcoder:
        return "autoencoders of sparsify subtract it"
    return (
        "transcoders of sparsify since 12 February 2025 do not; earlier ones did, and their files "
        "look the same (subtracts_b_dec=True reads those)"
    )


FORMAT = Format(NAME, find, read)
