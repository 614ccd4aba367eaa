"""Directions in files: ours, repeng's control vectors, and vectors of steering-vectors.

    ours               safetensors: vectors, controls, and everything that is known of them
    repeng, llama.cpp  GGUF: ``direction.<layer>``, added to the output of that block
    steering-vectors   ``torch.save`` of its vectors by layer, or of its object

The last is a pickle. It is read with ``weights_only=True``, which builds tensors, dictionaries and
the one class of that library, and runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checkpoint.reading import unpickled
from neox_lab.checks import shown
from neox_lab.errors import CheckpointError
from neox_lab.files import StrPath, path_of, taken_apart
from neox_lab.model.identity import Identity
from neox_lab.steering import gguf
from neox_lab.steering.directions import AtSite, Direction
from neox_lab.steering.saving import FORMAT, KINDS, NUMBERS

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


_ZIP = b"PK\x03\x04"


class _SteeringVector:
    """What stands for the class of steering-vectors when its objects are read."""

    layer_activations: dict[int, Tensor]
    layer_type: str


def load(path: StrPath, model: HookedModel | None = None) -> Direction:
    """Read a direction, whichever of the three kinds of file it is.

    Args:
        path: what ``Direction.save`` or ``Direction.export`` wrote, a GGUF control vector, or what
            ``torch.save`` made of a ``SteeringVector``, its ``layer_activations``, or its
            ``__dict__``.
        model: the model it belongs to; may be given later with ``Direction.on``. A file of ours
            knows its model; of the others only the width is checked.

    Raises:
        CheckpointError: there is no such file, it is damaged or something else, or it belongs to
            another model.
        InputError: the model's sites have another width.
        HookNameError: the model lacks a site.
    """
    place = path_of("path", path)
    try:
        with open(place, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"Cannot read a direction from {str(place)!r}: {error}") from error
    if start == gguf.MAGIC:
        found = _of_gguf(place)
    elif start == _ZIP or start[:1] == b"\x80":
        found = _of_pickle(place)
    else:
        found = _of_ours(place)
    for name, at in found.sites.items():
        good = at.vector.dim() == 1 and bool(at.vector.isfinite().all()) and at.norm > 0
        if not good:
            raise CheckpointError(f"The vector of {name!r} in {str(place)!r} is zero or no vector.")
    return found if model is None else found.on(model)


def _of_ours(place: Path) -> Direction:
    tensors, said = FORMAT.read(place)
    with taken_apart(f"a direction from {str(place)!r}"):
        sites = {}
        described = said["sites"]
        if not isinstance(described, list) or not described:
            raise ValueError("it names no sites")
        for number, entry in enumerate(described):
            vector = tensors[f"vector.{number}"].float().clone()
            numbers = {key: _number(entry[key]) for key in NUMBERS}
            none = torch.empty(0, len(vector), dtype=torch.float32)
            drawn = tensors.get(f"shuffled.{number}", none).float().clone()
            sites[str(entry["site"])] = AtSite(vector, shuffled=drawn, **numbers)
        known = said["identity"]
        identity = Identity(*known) if isinstance(known, list) and len(known) == 3 else None
        method, positions, model = (str(said[key]) for key in ("method", "positions", "model"))
        return Direction(sites, method, positions, model, identity)


def _of_gguf(place: Path) -> Direction:
    keys, tensors = gguf.read(place)
    kind = keys.get("general.architecture")
    if kind != "controlvector":
        raise CheckpointError(f"{str(place)!r} is a GGUF file of {shown(kind)}, no control vector.")
    layers: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        number = name.removeprefix("direction.")
        if name.startswith("direction.") and number.isdecimal():
            layers[int(number)] = tensor.flatten()
    return _of_layers(place, layers, "hook_resid_post", "a GGUF control vector")


def _of_pickle(place: Path) -> Direction:
    known = (_SteeringVector, "steering_vectors.steering_vector.SteeringVector")
    with torch.serialization.safe_globals([known]):
        content = unpickled(place)
    if isinstance(content, _SteeringVector):
        content = vars(content)
    kind: object = "decoder_block"
    if isinstance(content, Mapping) and "layer_activations" in content:
        kind, content = content.get("layer_type", kind), content["layer_activations"]
    if not isinstance(content, Mapping) or kind not in KINDS:
        raise CheckpointError(
            f"{str(place)!r} holds {type(content).__name__} of {shown(kind)}; expected vectors by "
            f"layer, of {', '.join(KINDS)}."
        )
    layers = {}
    for layer, tensor in content.items():
        if not isinstance(layer, int) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{str(place)!r} holds {shown(layer, 60)}; expected layers.")
        layers[layer] = tensor.detach().float().flatten()
    return _of_layers(place, layers, KINDS[str(kind)], "steering-vectors")


def _of_layers(place: Path, layers: Mapping[int, Tensor], hook: str, source: str) -> Direction:
    """A direction from vectors by the number of their block."""
    if not layers or min(layers) < 0:
        raise CheckpointError(f"{str(place)!r} holds no directions by layer.")
    sites = {f"blocks.{n}.{hook}": AtSite(layers[n].clone()) for n in sorted(layers)}
    return Direction(sites, source, "unknown")


def _number(value: object) -> float:
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{shown(value, 60)} is no number")
    return math.nan if value is None else float(value)
