"""Directions in files: ours, repeng's control vectors, and vectors of steering-vectors.

    ours               safetensors: vectors, controls, and everything that is known of them
    repeng, llama.cpp  GGUF: ``direction.<layer>``, added to the output of that block
    steering-vectors   ``torch.save`` of its vectors by layer, or of its object

The last is a pickle. It is read with ``weights_only=True``, which builds tensors, dictionaries and
the one class of that library, and runs nothing.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import check, one_of, shown
from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import StrPath, path_of, staged_file
from neox_lab.model.identity import Identity
from neox_lab.safetensors_files import FileFormat
from neox_lab.steering import gguf
from neox_lab.steering.directions import AtSite, Direction

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_FORMAT = FileFormat("direction", "neox_lab direction 1")
LAYOUTS = ("repeng", "steering-vectors")
_NUMBERS = ("site_norm", "origin", "separation", "null")
_BLOCK = re.compile(r"blocks\.(\d+)\.(hook_\w+)")
_KINDS = {"decoder_block": "hook_resid_post", "self_attn": "hook_attn_out", "mlp": "hook_mlp_out"}


class _SteeringVector:
    """What stands for the class of steering-vectors when its objects are read."""

    layer_activations: dict[int, Tensor]
    layer_type: str


def save(direction: Direction, path: StrPath) -> Path:
    """See ``Direction.save``."""
    place = path_of("path", path)
    tensors, described = {}, []
    for number, (name, at) in enumerate(direction.sites.items()):
        tensors[f"vector.{number}"] = at.vector
        if len(at.shuffled):
            tensors[f"shuffled.{number}"] = at.shuffled
        known = {key: _or_none(getattr(at, key)) for key in _NUMBERS}
        described.append({"site": name, **known})
    said = {
        "method": direction.method,
        "positions": direction.positions,
        "model": direction.model_name,
        "identity": direction.identity,
        "sites": described,
    }
    _FORMAT.write(place, tensors, said)
    return place


def export(direction: Direction, path: StrPath, layout: str) -> Path:
    """See ``Direction.export``."""
    check("layout", layout, one_of(*LAYOUTS), InputError)
    place = path_of("path", path)
    kinds, vectors = set(), {}
    for name, vector in direction.vectors.items():
        match = _BLOCK.fullmatch(name)
        if not match or match[2] not in _KINDS.values():
            raise InputError(
                f"{name!r} cannot be said in the layout of {layout}: it knows outputs of blocks "
                "(resid_post)" + (", attention and MLPs" if layout != "repeng" else "")
            )
        kinds.add(match[2])
        vectors[int(match[1])] = vector
    if len(kinds) > 1 or (layout == "repeng" and kinds != {"hook_resid_post"}):
        raise InputError(f"{layout} keeps one kind of site in a file; this has {sorted(kinds)}")
    if layout == "repeng":
        keys: dict[str, int | str] = {"general.architecture": "controlvector"}
        keys |= {"controlvector.model_hint": "gpt_neox", "controlvector.layer_count": len(vectors)}
        gguf.write(place, keys, {f"direction.{n}": vector for n, vector in vectors.items()})
        return place
    kind = next(kind for kind, hook in _KINDS.items() if hook in kinds)
    content = {"layer_activations": vectors, "layer_type": kind}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(place) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"Cannot write {str(place)!r}: {error}") from error
    return place


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
    elif zipfile.is_zipfile(place) or start[:1] == b"\x80":
        found = _of_pickle(place)
    else:
        found = _of_ours(place)
    for name, at in found.sites.items():
        good = at.vector.dim() == 1 and bool(at.vector.isfinite().all()) and at.norm > 0
        if not good:
            raise CheckpointError(f"The vector of {name!r} in {str(place)!r} is zero or no vector.")
    return found if model is None else found.on(model)


def _of_ours(place: Path) -> Direction:
    tensors, said = _FORMAT.read(place)
    try:
        sites = {}
        described = said["sites"]
        assert isinstance(described, list)
        for number, entry in enumerate(described):
            vector = tensors[f"vector.{number}"].float().clone()
            numbers = {key: _number(entry[key]) for key in _NUMBERS}
            none = torch.empty(0, len(vector))
            drawn = tensors.get(f"shuffled.{number}", none).float().clone()
            sites[str(entry["site"])] = AtSite(vector, shuffled=drawn, **numbers)
        known = said["identity"]
        identity = Identity(*known) if isinstance(known, list) and len(known) == 3 else None
        method, positions, model = (str(said[key]) for key in ("method", "positions", "model"))
        assert sites
        return Direction(sites, method, positions, model, identity)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"Cannot read a direction from {str(place)!r}: {error!r}") from error


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
    try:
        with torch.serialization.safe_globals([known]):
            content: object = torch.load(place, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"Cannot read {str(place)!r} as tensors alone (weights_only): {error!s:.300}"
        ) from error
    if isinstance(content, _SteeringVector):
        content = vars(content)
    kind: object = "decoder_block"
    if isinstance(content, Mapping) and "layer_activations" in content:
        kind, content = content.get("layer_type", kind), content["layer_activations"]
    if not isinstance(content, Mapping) or kind not in _KINDS:
        raise CheckpointError(
            f"{str(place)!r} holds {type(content).__name__} of {shown(kind)}; expected vectors by "
            f"layer, of {', '.join(_KINDS)}."
        )
    layers = {}
    for layer, tensor in content.items():
        if not isinstance(layer, int) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{str(place)!r} holds {shown(layer, 60)}; expected layers.")
        layers[layer] = tensor.detach().float().flatten()
    return _of_layers(place, layers, _KINDS[str(kind)], "steering-vectors")


def _of_layers(place: Path, layers: Mapping[int, Tensor], hook: str, source: str) -> Direction:
    """A direction from vectors by the number of their block."""
    if not layers or min(layers) < 0:
        raise CheckpointError(f"{str(place)!r} holds no directions by layer.")
    sites = {f"blocks.{n}.{hook}": AtSite(layers[n].clone()) for n in sorted(layers)}
    return Direction(sites, source, "unknown")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _number(value: object) -> float:
    if value is not None and not isinstance(value, int | float):
        raise ValueError(f"{shown(value, 60)} is no number")
    return math.nan if value is None else float(value)
