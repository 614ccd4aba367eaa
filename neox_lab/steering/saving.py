"""Writing directions: our files, repeng's control vectors, and vectors for steering-vectors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from neox_lab.checkpoint.saving import write_with_torch
from neox_lab.checks import check, one_of
from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import StrPath, path_of, staged_file
from neox_lab.safetensors_files import FileFormat
from neox_lab.steering import gguf

if TYPE_CHECKING:
    from neox_lab.steering.directions import Direction

FORMAT = FileFormat("direction", "neox_lab direction 1")
LAYOUTS = ("repeng", "steering-vectors")
NUMBERS = ("site_norm", "origin", "separation", "null")
"""What is known of a direction at a site, besides its vectors."""
KINDS = {"decoder_block": "hook_resid_post", "self_attn": "hook_attn_out", "mlp": "hook_mlp_out"}
"""From what steering-vectors calls a part of a block to its hook point."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(hook_\w+)")


def save(direction: Direction, path: StrPath) -> Path:
    """See ``Direction.save``."""
    place = path_of("path", path)
    tensors, described = {}, []
    for number, (name, at) in enumerate(direction.sites.items()):
        tensors[f"vector.{number}"] = at.vector
        if len(at.shuffled):
            tensors[f"shuffled.{number}"] = at.shuffled
        known = {key: _or_none(getattr(at, key)) for key in NUMBERS}
        described.append({"site": name, **known})
    said = {
        "method": direction.method,
        "positions": direction.positions,
        "model": direction.model_name,
        "identity": direction.identity,
        "sites": described,
    }
    FORMAT.write(place, tensors, said)
    return place


def export(direction: Direction, path: StrPath, layout: str) -> Path:
    """See ``Direction.export``."""
    check("layout", layout, one_of(*LAYOUTS), InputError)
    place = path_of("path", path)
    kinds, vectors = set(), {}
    for name, vector in direction.vectors.items():
        match = _BLOCK.fullmatch(name)
        if not match or match[2] not in KINDS.values():
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
    kind = next(kind for kind, hook in KINDS.items() if hook in kinds)
    content = {"layer_activations": vectors, "layer_type": kind}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(place) as temporary:
            write_with_torch(temporary, content)
    except OSError as error:
        raise CheckpointError(f"Cannot write {str(place)!r}: {error}") from error
    return place


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
