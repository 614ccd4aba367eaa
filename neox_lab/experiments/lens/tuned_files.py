"""Files of tuned lenses: the published layout, and ours.

Published lenses are a folder with ``config.json`` and ``params.pt``, a table of tensors
``{layer}.weight`` ``[d_model, d_model]`` and ``{layer}.bias`` ``[d_model]`` written by
``torch.save``, often in float16. Ours is one file, ``tuned_lens.safetensors``, with the same
tensors in float32, and in its header what is known of the model (``neox_lab.model.identity``).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neox_lab.checkpoint.reading import TorchFile
from neox_lab.checkpoint.saving import write_with_torch
from neox_lab.checks import shown
from neox_lab.errors import CheckpointError
from neox_lab.files import StrPath, path_of, read_json, staged_files
from neox_lab.hub import HubOptions, PathOrId, find_file, pin
from neox_lab.model.identity import Identity
from neox_lab.safetensors_files import FileFormat

OURS, CONFIG, PARAMS = "tuned_lens.safetensors", "config.json", "params.pt"
FORMAT = FileFormat("tuned lens", "neox_lab tuned lens 1")
KIND = "linear_tuned_lens"
TOLD = ("base_model_name_or_path", "base_model_revision", "unembed_hash")


@dataclass(frozen=True)
class Stored:
    """What a file of a lens holds.

    Attributes:
        weight: ``[layer, d_model, d_model]``, float32.
        bias: ``[layer, d_model]``, float32.
        told: what ``config.json`` says of the model, by the names there.
        identity: of the model, in our files.
    """

    weight: Tensor
    bias: Tensor
    told: dict[str, str | None] = field(default_factory=dict)
    identity: Identity | None = None


def read(source: PathOrId, options: HubOptions) -> Stored:
    """The lens in a folder or on the hub, in either layout.

    Args:
        source: a directory or a hub id.
        options: where and how to look.

    Raises:
        CheckpointError: there is none, it is damaged, or it would run code.
    """
    options = pin(source, options)
    ours = find_file(source, OURS, options, required=False)
    if ours is not None:
        return _read_ours(ours)
    config_path = find_file(source, CONFIG, options)
    assert config_path is not None
    config = _checked(read_json(config_path), str(config_path))
    path = find_file(source, PARAMS, options)
    assert path is not None
    file = TorchFile(path)
    tensors = {name: file.read(name) for name in list(file.tensors)}
    weight, bias = _stacked(tensors, config, str(path))
    return Stored(weight, bias, {name: config.get(name) for name in TOLD})


def _read_ours(path: Path) -> Stored:
    tensors, config = FORMAT.read(path)
    stored = config.get("identity")
    told = isinstance(stored, list) and len(stored) == len(Identity._fields)
    weight, bias = _stacked(tensors, _checked(config, str(path)), str(path))
    identity = Identity(*stored) if told else None  # type: ignore[misc]
    return Stored(weight, bias, {name: _text(config.get(name)) for name in TOLD}, identity)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _checked(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What a lens says of itself, with numbers that are numbers.

    Raises:
        CheckpointError: it is no lens of a kind that is read.
    """
    kind = config.get("lens_type", KIND)
    if kind != KIND:
        raise CheckpointError(f"{place}: lens_type is {shown(kind)}; expected {KIND!r}.")
    for name in ("d_model", "num_hidden_layers"):
        value = config.get(name)
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"{place} is no configuration of a tuned lens: {name} is {shown(value)}; expected "
                "a whole number above 0."
            )
    return {**config, **{name: _text(config.get(name)) for name in TOLD}}


def _stacked(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], place: str
) -> tuple[Tensor, Tensor]:
    """Weights and biases of all layers, float32.

    Raises:
        CheckpointError: tensors are missing, too many, of another shape, or not finite.
    """
    width, layers = config["d_model"], config["num_hidden_layers"]
    if layers > len(tensors):  # of 2**63 layers, even the names would fill the memory
        raise CheckpointError(
            f"{place}: the configuration says {layers} layers; there are {len(tensors)} tensors."
        )
    shapes = {f"{layer}.weight": [width, width] for layer in range(layers)}
    if config.get("bias", True):
        shapes |= {f"{layer}.bias": [width] for layer in range(layers)}
    odd = sorted(set(shapes) ^ set(tensors))
    if odd:
        raise CheckpointError(
            f"{place}: the configuration says {layers} layers, and the tensors differ from that: "
            f"{', '.join(odd[:6])} are missing or too many."
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if list(tensor.shape) != shape or not tensor.is_floating_point():
            raise CheckpointError(
                f"{place}: {name} is {tensor.dtype} {list(tensor.shape)}; expected numbers {shape}."
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{place}: {name} holds NaN or infinite numbers.")
    weight = torch.stack([tensors[f"{layer}.weight"].float() for layer in range(layers)])
    zero = torch.zeros(width, dtype=torch.float32)
    bias = torch.stack([tensors.get(f"{n}.bias", zero).float() for n in range(layers)])
    return weight, bias


def write(folder: StrPath, stored: Stored, published: bool) -> None:
    """Write a lens; what was there stays until the new one is whole.

    Args:
        folder: where; it is made if need be.
        stored: what to write.
        published: in the published layout instead of ours.

    Raises:
        CheckpointError: it cannot be written, or the folder holds something else of these names.
    """
    place = path_of("directory", folder).expanduser()
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for layer, (weight, bias) in enumerate(zip(stored.weight, stored.bias, strict=True)):
        tensors[f"{layer}.weight"] = weight.detach().cpu().float().clone()
        tensors[f"{layer}.bias"] = bias.detach().cpu().float().clone()
    told = stored.told
    config = {
        "base_model_name_or_path": told.get("base_model_name_or_path") or "",
        "d_model": stored.weight.shape[-1],
        "num_hidden_layers": len(stored.weight),
        "bias": True,
        "base_model_revision": told.get("base_model_revision"),
        "unembed_hash": told.get("unembed_hash"),
        "lens_type": KIND,
    }
    _refuse_other_files(place, published)
    if not published:
        FORMAT.write(place / OURS, tensors, {**config, "identity": stored.identity})
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        with staged_files() as stage:
            write_with_torch(stage(place / PARAMS), tensors)
            stage(place / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"Cannot write the lens to {str(place)!r}: {error}") from error


def _refuse_other_files(place: Path, published: bool) -> None:
    """Refuse to write beside a lens of the other layout, or over a model's configuration.

    Raises:
        CheckpointError: one of these is there.
    """
    other = place / (OURS if published else PARAMS)
    if other.exists():
        raise CheckpointError(
            f"{str(place)!r} holds a lens in another layout ({other.name}); give another folder."
        )
    config = place / CONFIG
    if published and config.exists() and "lens_type" not in read_json(config):
        raise CheckpointError(
            f"{str(config)!r} belongs to something else than a lens; give another folder."
        )


def unembed_hash(weight: Tensor) -> str:
    """What published lenses note of the unembedding ``[vocab, d_model]``.

    It is a checksum of how NumPy prints the matrix, which is the corners only, to one digit. So it
    can say that a model is another one, and never that it is the same.

    Args:
        weight: the unembedding.
    """
    printed = np.array_str(weight.detach().cpu().float().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()
