"""This package's own files, see ``saving``: ``dictionary.safetensors`` in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from neox_lab.checks import COUNT, FINITE, SWITCH, TEXT, check, or_none
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.sae.activations import Activation
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.formats.format import Format, Found, Given, unknown
from neox_lab.sae.formats.source import Source, Tensors, inside, ways
from neox_lab.sae.normalisation import Normalise, constant_factor
from neox_lab.sae.saving import ACTIVATIONS, FILE, FILE_FORMAT, NORMALISE
from neox_lab.sae.sites import of_name

NAME = "neox_lab"


def find(source: Source) -> list[Found]:
    """The dictionaries of this format; on a hub, what a file says is not known before it is had."""
    made = []
    for folder in source.folders_with(FILE):
        if source.is_local:
            site = _described(source, folder)[1].get("site_out")
        else:
            site = next((found for name in ways(source, folder) if (found := of_name(name))), None)
        made.append(Found(NAME, folder, site if isinstance(site, str) else None))
    return made


def read(source: Source, found: Found, given: Given) -> Dictionary:
    """One of them.

    Raises:
        CheckpointError: the file is damaged, or of a later version.
    """
    tensors, facts = _described(source, found.place)
    path = source.path(inside(found.place, FILE))
    held = Tensors(path, tensors).dtyped(given.dtype, given.device)
    needed = [name for name in Weights._fields if name != "W_skip"]
    own = [name for name in held if name.startswith("activation.")]
    held.check(needed, ["W_skip", *own])
    sources = facts.get("sources")
    try:
        return Dictionary(
            Weights(**{name: held[name] for name in needed}, W_skip=held.get("W_skip")),
            _activation(facts, held, str(path)),
            site_in=check("site_in", facts.get("site_in"), TEXT, CheckpointError),
            site_out=check("site_out", facts.get("site_out"), TEXT, CheckpointError),
            subtracts_b_dec=check(
                "subtracts_b_dec", facts.get("subtracts_b_dec"), SWITCH, CheckpointError
            ),
            normalise=_normalise(facts, str(path)),
            kind=check("kind", facts.get("kind"), TEXT, CheckpointError),
            sources={str(n): str(t) for n, t in sources.items()}
            if isinstance(sources, dict)
            else None,
            expected_l0=check(
                "expected_l0", facts.get("expected_l0"), or_none(FINITE), CheckpointError
            ),
        )
    except (TypeError, KeyError, ConfigError) as error:
        raise CheckpointError(f"{path} is no dictionary: {error}") from error


def _described(source: Source, folder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return FILE_FORMAT.read(source.path(inside(folder, FILE)))


def _activation(facts: Mapping[str, Any], tensors: Tensors, place: str) -> Activation:
    said = facts.get("activation")
    said = dict(said) if isinstance(said, dict) else {}
    name = said.pop("name", None)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise unknown("activation", name, place)
    held = {
        key.removeprefix("activation."): tensor
        for key, tensor in tensors.items()
        if key.startswith("activation.")
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
