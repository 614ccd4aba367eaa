"""Writing activations of many texts to a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neox_lab.activations.stored import MANIFEST, Stored, digest
from neox_lab.checks import check, whole
from neox_lab.data.activations import site_names
from neox_lab.data.encoding import pad_rows, token_ids
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import CheckpointError, InputError
from neox_lab.family.contract import HookedModel
from neox_lab.files import StrPath, alone, staged_file, write_text
from neox_lab.model.identity import identity, refuse_another
from neox_lab.safetensors_files import write


def collect(
    model: HookedModel,
    texts: Iterable[str],
    sites: str | Sequence[str],
    to: StrPath,
    *,
    batch_size: int = 32,
) -> Stored:
    """Write the activations of texts at some sites to a folder, in one pass over the texts.

    A call that was interrupted goes on where it stopped when it is made again with the same texts.

    Args:
        model: with a tokenizer.
        texts: read lazily; one longer than the model reads is cut there.
        sites: as in ``data.activations.site_names``.
        to: the folder; made if need be.
        batch_size: texts in one forward pass and in one shard.

    Raises:
        CheckpointError: the folder belongs to another model, other sites or other texts.
        InputError: a text without a token, activations that are not finite, or dropout is on.
        HookNameError: no site has that name.
        BlockingIOError: another collection writes into the folder.
        OSError: the disk has no room.
    """
    refuse_dropout(model)
    texts = [texts] if isinstance(texts, str) else texts
    names = site_names(model, sites)
    batch_size = check("batch_size", batch_size, whole(above=0), InputError)
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / "lock"):
        shards = _go_on(model, folder, names, batch_size)
        for number, batch in enumerate(_batches(texts, batch_size)):
            ids = [row[: model.config.max_position_embeddings] for row in token_ids(model, batch)]
            told = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
            if number < len(shards["shards"]):
                if shards["shards"][number]["tokens"] != told:
                    raise CheckpointError(f"{folder} holds activations of other texts.")
                continue
            path = folder / f"{number:06d}.safetensors"
            tensors = _rows(model, ids, names, number * batch_size)
            with staged_file(path) as temporary:
                write(temporary, tensors, {})
            rows = len(tensors["pos"])
            shard = {"file": path.name, "rows": rows, "tokens": told, "sha256": digest(path)}
            shards["shards"].append(shard)
            write_text(folder / MANIFEST, json.dumps(shards, indent=1))
    return Stored(folder)


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    left = iter(texts)
    while batch := list(islice(left, size)):
        yield batch


def _go_on(model: HookedModel, folder: Path, names: list[str], size: int) -> dict[str, Any]:
    """The manifest so far, of the same collection."""
    now = identity(model)
    if not (folder / MANIFEST).exists():
        return {"model": list(now), "sites": names, "batch_size": size, "shards": []}
    stored = Stored(folder).manifest
    refuse_another(stored["model"], now, str(folder))
    if stored["sites"] != names or stored["batch_size"] != size:
        raise CheckpointError(f"{folder} holds other sites or batches; collect into another one.")
    return stored


@torch.inference_mode()
def _rows(
    model: HookedModel, ids: list[list[int]], names: list[str], first: int
) -> dict[str, Tensor]:
    if not all(ids):
        raise InputError("A text has no token; leave it out.")
    batch, mask = pad_rows(ids, 0)  # on the right, where causal attention never reaches
    _, cache = model.run_with_cache(batch.to(model.device), names)
    row, pos = mask.nonzero(as_tuple=True)
    tensors = {"document": row + first, "pos": pos}
    for name in names:
        tensors[name] = cache[name].flatten(2).cpu()[row, pos]
        if not tensors[name].isfinite().all():
            raise InputError(f"Activations at {name!r} are NaN or infinite; see model.check().")
    return tensors
