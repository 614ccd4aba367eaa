"""This package's own files, see ``saving``: ``dictionary.safetensors`` in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from neox_lab.checks import COUNT, FINITE, SWITCH, TEXT, check, number, or_none, several
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.sae.activations import Activation
from neox_lab.sae.affine import Affine
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.cross_layer_weights import CrossLayerWeights
from neox_lab.sae.crosscoder import Crosscoder
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.formats.format import Format, Found, Given, Read, unknown
from neox_lab.sae.formats.source import Source, Tensors, inside, ways
from neox_lab.sae.normalisation import Normalise, constant_factor
from neox_lab.sae.saving import (
    ACTIVATIONS,
    CROSS_LAYER,
    CROSSCODER,
    FILE,
    FILE_FORMAT,
    LISTS,
    NORMALISE,
    SHARED,
    TRAINING,
)
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.sae.sites import of_name

NAME = "neox_lab"
_RECORD = f"{TRAINING}."


def find(source: Source) -> list[Found]:
    """The dictionaries of this format; on a hub, what a file says is not known before it is had."""
    made = []
    for folder in source.folders_with(FILE):
        if source.is_local:
            site = _site(_described(source, folder)[1])
        else:
            site = next((found for name in ways(source, folder) if (found := of_name(name))), None)
        made.append(Found(NAME, folder, site))
    return made


def _site(facts: Mapping[str, Any]) -> str | None:
    """The one hook point that is written, if there is one."""
    listed = facts.get("sites", [facts.get("site_out")])
    first = listed[0] if isinstance(listed, list) and listed else None
    return first if isinstance(first, str) and listed.count(first) == len(listed) else None


def read(source: Source, found: Found, given: Given) -> Read:
    """One of them.

    Raises:
        CheckpointError: the file is damaged, or of a later version.
    """
    tensors, facts = _described(source, found.place)
    path = source.path(inside(found.place, FILE))
    weights = {name: held for name, held in tensors.items() if not name.startswith(_RECORD)}
    held = Tensors(path, weights).dtyped(given.dtype, given.device)
    what = facts.get("what", "dictionary")
    reader = READERS.get(what) if isinstance(what, str) else None
    if reader is None:
        raise unknown("what", what, str(path))
    try:
        return reader(held, facts)
    except (TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} is no {what}: {error}") from error


def _dictionary(held: Tensors, facts: Facts) -> Dictionary:
    place = str(held.path)
    needed = [name for name in Weights._fields if name != "W_skip"]
    own = [name for name in held if name.startswith("activation.")]
    held.check(needed, ["W_skip", *own])
    return Dictionary(
        Weights(**{name: held[name] for name in needed}, W_skip=held.get("W_skip")),
        _activation(facts.get("activation"), held, "activation."),
        site_in=check("site_in", facts.get("site_in"), TEXT, CheckpointError),
        site_out=check("site_out", facts.get("site_out"), TEXT, CheckpointError),
        subtracts_b_dec=check(
            "subtracts_b_dec", facts.get("subtracts_b_dec"), SWITCH, CheckpointError
        ),
        normalise=_normalise(facts, place),
        expected_l0=_expected_l0(facts),
        **_kind_and_sources(facts),
    )


def _crosscoder(held: Tensors, facts: Facts) -> Crosscoder:
    needed = ["W_enc", "b_enc", "W_dec", "b_dec", "penalty_weights"]
    own = [name for name in held if name.startswith("activation.")]
    held.check(needed, [*own, *_STATISTICS])
    statistics = _affines(held, "normalise", 1)
    W_enc, b_enc, W_dec, b_dec, penalty = (held[name] for name in needed)  # noqa: N806
    return Crosscoder(
        W_enc,
        b_enc,
        W_dec,
        b_dec,
        _activation(facts.get("activation"), held, "activation."),
        sites=_names(facts, "sites"),
        penalty_weights=penalty,
        normalise=statistics[0] if statistics else None,
        expected_l0=_expected_l0(facts),
        **_kind_and_sources(facts),
    )


def _cross_layer(held: Tensors, facts: Facts) -> CrossLayerTranscoder:
    """A cross-layer transcoder.

    Raises:
        CheckpointError: the file lacks something, or has something that nobody would read.
    """
    sites_in, layers = _names(facts, "sites_in"), len(_names(facts, "sites_out"))
    said = facts.get("activation")
    lists = {name: [n for i in range(layers) if (n := f"{name}.{i}") in held] for name in LISTS}
    decoders, skips = _listed(facts, "decoders", 3, held), _listed(facts, "skips", 2, held)
    skip_of = {(i, j): f"W_skip.{i}.{j}" for i, j in skips}
    stored = {name for name in held if name.startswith("W_dec.")}
    if stored != {f"W_dec.{number}" for _, _, number in decoders}:
        raise CheckpointError(f"{held.path}: the header speaks of other W_dec than there are.")
    own = "W_dec.", "into.", "out.", *(f"activation.{layer}." for layer in range(layers))
    more = [name for name in held if name.startswith(own)]
    needed = [*skip_of.values(), *(name for names in lists.values() for name in names)]
    held.check(needed, more)
    if isinstance(said, list):
        activation: Any = [
            _activation(each, held, f"activation.{layer}.") for layer, each in enumerate(said)
        ]
    else:
        activation = _shared(said, str(held.path))
    return CrossLayerTranscoder(
        CrossLayerWeights(
            W_dec={(i, j): held[f"W_dec.{number}"] for i, j, number in decoders},
            W_skip={pair: held[name] for pair, name in skip_of.items()},
            **{name: [held[n] for n in names] for name, names in lists.items()},
        ),
        activation,
        sites_in=sites_in,
        sites_out=_names(facts, "sites_out"),
        into=_affines(held, "into", layers),
        out=_affines(held, "out", layers),
        **_kind_and_sources(facts),
    )


Facts = Mapping[str, Any]
READERS: dict[str, Callable[[Tensors, Facts], Read]] = {
    "dictionary": _dictionary,
    CROSSCODER: _crosscoder,
    CROSS_LAYER: _cross_layer,
}
_STATISTICS = ("normalise.0.mean", "normalise.0.scale")


def _described(source: Source, folder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return FILE_FORMAT.read(source.path(inside(folder, FILE)))


def _kind_and_sources(facts: Facts) -> dict[str, Any]:
    sources = facts.get("sources")
    return {
        "kind": check("kind", facts.get("kind"), TEXT, CheckpointError),
        "sources": {str(n): str(t) for n, t in sources.items()}
        if isinstance(sources, dict)
        else None,
    }


def _expected_l0(facts: Facts) -> float | None:
    return check("expected_l0", facts.get("expected_l0"), or_none(FINITE), CheckpointError)


def _names(facts: Facts, what: str) -> list[str]:
    """Hook points of a header.

    Raises:
        CheckpointError: there are none.
    """
    listed = several(what, facts.get(what), "hook points", CheckpointError)
    return [check(what, name, TEXT, CheckpointError) for name in listed]


def _listed(facts: Facts, name: str, length: int, held: Tensors) -> list[list[int]]:
    """Lists of whole numbers of a header.

    Raises:
        CheckpointError: there is something else.
    """
    found = several(name, facts.get(name), "lists of whole numbers", CheckpointError)
    for one in found:
        if not isinstance(one, list) or [type(n) for n in one] != [int] * length:
            raise unknown(name, one, str(held.path))
    return found


def _affines(held: Tensors, name: str, most: int) -> list[Affine]:
    """Statistics by number.

    Raises:
        CheckpointError: one is not complete, or there are more.
    """
    stored = [key for key in held if key.startswith(f"{name}.")]
    count = min(len(stored) // 2, most)
    needed = [f"{name}.{i}.{part}" for i in range(count) for part in ("mean", "scale")]
    Tensors(held.path, {key: held[key] for key in stored}).check(needed)
    return [Affine(held[f"{name}.{i}.mean"], held[f"{name}.{i}.scale"]) for i in range(count)]


def _shared(said: object, place: str) -> SharedTopK:
    settings = dict(said) if isinstance(said, dict) else {}
    if settings.pop("name", None) != SHARED:
        raise unknown("activation", said, place)
    for key in {"batch", "joint"} & set(settings):
        check(key, settings[key], SWITCH, CheckpointError)
    check("k", settings.get("k"), number(above=0), CheckpointError)
    return SharedTopK(**settings)


def _activation(one: object, tensors: Tensors, prefix: str) -> Activation:
    said = dict(one) if isinstance(one, dict) else {}
    name = said.pop("name", None)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown("activation", name, str(tensors.path))
    held = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    for setting in {"k", "negative", "signed"} & set(said):  # it refuses others itself
        check(setting, said[setting], COUNT if setting == "k" else SWITCH, CheckpointError)
    make: Callable[..., Activation] = ACTIVATIONS[name]
    return make(**said, **held)


def _normalise(facts: Mapping[str, Any], place: str) -> Normalise:
    said = facts.get("normalise")
    if isinstance(said, dict) and set(said) == {"constant_factor"}:
        return constant_factor(check("constant_factor", said["constant_factor"], FINITE,
                                     CheckpointError))  # fmt: skip
    if not isinstance(said, str) or said not in NORMALISE:
        raise unknown("normalise", said, place)
    return NORMALISE[said]


FORMAT = Format(NAME, find, read)
