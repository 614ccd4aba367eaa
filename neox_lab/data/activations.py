"""Activations of many texts at many sites, from one pass over the texts.

Texts run in batches of similar length; of each text one vector a site is kept, at the position
asked for. What does not fit into memory is kept in files that disappear afterwards.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.checks import several, shown
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows, token_ids
from neox_lab.data.positions import TextPosition, positions
from neox_lab.data.tables import check_lengths, refuse
from neox_lab.errors import HookNameError, InputError
from neox_lab.family.contract import HookedModel
from neox_lab.files import reserve
from neox_lab.hooks.cache import ActivationCache
from neox_lab.hooks.names import find_all
from neox_lab.hooks.table import axis_sizes, shape_at


def site_names(model: HookedModel, sites: str | Sequence[str]) -> list[str]:
    """Hook names of sites: ``"resid_post"`` means that site of every layer.

    Args:
        model: whose hook points they are.
        sites: such as ``"resid_post"``, hook names, or globs.

    Raises:
        HookNameError: nothing has that name.
        InputError: a tensor there has no position axis, or two.
    """
    names: list[str] = []
    wanted = [sites]
    if not isinstance(sites, str):
        wanted = several("sites", sites, "names of sites", InputError)
    for site in wanted:
        if not isinstance(site, str):
            raise InputError(
                f"sites holds {shown(site)}; expected names: 'resid_post' is that site of every "
                "layer, 'blocks.3.hook_resid_post' that of one."
            )
        everywhere = [name for name in model.hook_points if name.endswith(f".hook_{site}")]
        names += everywhere or [point.name for point in find_all(site, model.hook_points)]
    for name in names:
        if "pos" not in model.hook_points[name].axes:
            axes = " ".join(model.hook_points[name].axes)
            raise InputError(f"{name!r} [{axes}] has no axis 'pos' to take a vector from")
    if not names:
        raise HookNameError("no site was named")
    return list(dict.fromkeys(names))


def row_shapes(model: HookedModel, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The shape of what one position has at each site.

    Args:
        model: whose sites they are.
        names: see ``site_names``.
    """
    sizes = axis_sizes(model.config, batch=1, pos=1)
    return {name: shape_at(model.hook_points[name], sizes)[2:] for name in names}


def read_batch(
    model: HookedModel, ids: Sequence[Sequence[int]], names: Sequence[str]
) -> tuple[ActivationCache, Tensor]:
    """Activations of one batch, from a run that goes as far as the last site needs.

    Args:
        model: what reads it.
        ids: tokens of each text, of one rotary regime (see ``batches.by_length``).
        names: see ``site_names``.

    Returns:
        The cache, on the model's device, and a mask ``[batch, pos]`` that is 1 for text.
    """
    batch, mask = pad_rows(ids, 0)  # on the right, where causal attention never reaches
    _, cache = model.run_with_cache(batch.to(model.device), list(names), **_extent(model, names))
    return cache, mask


def _extent(model: HookedModel, names: Sequence[str]) -> dict[str, Any]:
    """How far a run must go for the last of some sites: arguments of ``forward``."""
    places = list(model.hook_points)
    last = model.hook_points[max(names, key=places.index)]
    if last.layer is not None:
        return {"stop_at_layer": last.layer + 1}
    if last.name == "hook_embed":
        return {"stop_at_layer": 0}
    of_head = last.name.endswith((".hook_in", ".hook_out"))
    return {"logits_to_keep": 1} if model.head == "causal-lm" and not of_head else {}


@contextmanager
def collected(
    model: HookedModel,
    texts: Sequence[str],
    names: Sequence[str],
    pos: TextPosition,
    *,
    batch_size: int = 32,
    memory: int = 2 * 10**9,
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each hook name the vectors ``[text, d]``, float32; several axes after pos are joined.

    Args:
        model: any of the classes, with a tokenizer.
        texts: what it reads.
        names: hook names, see ``site_names``.
        pos: which position of each text.
        batch_size: texts in one forward pass.
        memory: above so many bytes the vectors live in files, removed when the block is left.

    Yields:
        The vectors of each hook name, in the order of ``texts``.

    Raises:
        DataError: texts without a token, or longer than the model can read; by number.
        InputError: a position that a text does not have, or activations that are not finite.
        OSError: the disk has no room for the files.
    """
    ids = token_ids(model, texts)
    lengths = [len(row) for row in ids]
    empty = [(row, "has no token") for row, length in enumerate(lengths) if not length]
    refuse("There is nothing to read", empty, "Leave these texts out.")
    check_lengths(ids, model.config.max_position_embeddings, "Shorten these texts.")
    read = None if isinstance(pos, str) and pos == "mean" else positions(pos, lengths)
    sizes = {name: math.prod(shape) for name, shape in row_shapes(model, names).items()}
    with tempfile.TemporaryDirectory() as folder:
        in_files = 4 * len(texts) * sum(sizes.values()) > memory
        arrays = {
            name: _empty((len(texts), size), Path(folder) / str(at) if in_files else None)
            for at, (name, size) in enumerate(sizes.items())
        }
        for rows in by_length(model, lengths, batch_size):
            at = None if read is None else torch.tensor([read[row] for row in rows])
            for name, vectors in _vectors(model, [ids[row] for row in rows], names, at):
                arrays[name][rows] = vectors.numpy()
        for name, values in arrays.items():
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                raise InputError(
                    f"activations at {name!r} are NaN or infinite in {len(bad)} of {len(values)} "
                    f"texts, the first is text {bad[0]}; model.check() names weights that are"
                )
        yield arrays


def _vectors(
    model: HookedModel,
    ids: list[list[int]],
    names: Sequence[str],
    pos: Tensor | None,
) -> Iterator[tuple[str, Tensor]]:
    """Vectors ``[batch, d]`` of one batch, name by name: at ``pos`` ``[batch]``, or the means."""
    cache, mask = read_batch(model, ids, names)
    for name in names:
        values = cache[name].float().flatten(2).cpu()
        if pos is None:
            text = torch.where(mask[:, :, None] > 0, values, 0)  # padding may be infinite
            yield name, text.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            yield name, values[torch.arange(len(ids)), pos]


def _empty(shape: tuple[int, int], path: Path | None) -> NDArray[np.float32]:
    if path is None:
        return np.empty(shape, dtype=np.float32)
    reserve(path, 4 * shape[0] * shape[1])
    return np.memmap(path, dtype=np.float32, mode="r+", shape=shape)
