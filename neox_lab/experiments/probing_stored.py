"""Probes on activations that were collected before: one vector for each document, from the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.activations.documents import mixed
from neox_lab.activations.stored import Stored
from neox_lab.data.positions import TextPosition
from neox_lab.errors import DataError, InputError
from neox_lab.family.contract import HookedModel
from neox_lab.selections import one_each

_TOGETHER = 2**14  # rows that are averaged at a time


class Vectors(Mapping[str, NDArray[np.float32]]):
    """For each hook name the vectors ``[document, d]``, float32, read when they are asked for.

    Args:
        stored: the activations.
        pos: which row of each document: its position, -1 for the last, or ``"mean"``.

    Raises:
        InputError: a document has no row there, or nobody knows where its end is.
    """

    def __init__(self, stored: Stored, pos: TextPosition) -> None:
        self.stored = stored
        self._counts = torch.unique_consecutive(stored.document, return_counts=True)[1]
        self._number = torch.arange(len(self._counts)).repeat_interleave(self._counts)
        self._rows = None if isinstance(pos, str) else _rows(stored, self._counts, pos)
        if isinstance(pos, str) and (pos != "mean" or stored.manifest.pos != "all"):
            raise InputError(
                f"pos={pos!r} of activations at {stored.manifest.pos} positions; expected a "
                "position, or 'mean' where all were collected."
            )

    def as_read(self) -> NDArray[np.intp]:
        """The same number for documents of which the model had read the same ``[document]``."""
        read = self.stored.read
        if self._rows is None:
            total = torch.zeros(len(self._counts), dtype=torch.long)
            read = total.index_add(0, self._number, mixed(read))
        else:
            read = read[self._rows]
        _, first, number = np.unique(read.numpy(), return_index=True, return_inverse=True)
        return first.argsort().argsort()[number]  # in the order in which they come

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        site = self.stored[name]
        if self._rows is not None:
            return site[self._rows].flatten(1).float().numpy()
        total = torch.zeros(len(self._counts), *site.shape[1:], dtype=torch.float32)
        for start in range(0, len(site), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            total.index_add_(0, self._number[part], site[part].float())
        return (total.flatten(1) / self._counts[:, None]).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored.sites)

    def __len__(self) -> int:
        return len(self.stored.sites)


def _rows(stored: Stored, counts: Tensor, pos: object) -> Tensor:
    """Which row is meant of each document ``[document]``."""
    wanted = torch.tensor(one_each("pos", pos, len(counts), InputError))
    kept = stored.manifest
    if (wanted < 0).any() and kept.pos == "all" and kept.skip_first:
        raise InputError(
            f"pos={pos!r} counts from the end, which may be among the positions that "
            f"skip_first={kept.skip_first} left out; collect with pos='last', or without skip_first"
        )
    positions = stored.pos
    last = positions[counts.cumsum(0) - 1]
    wanted = torch.where(wanted < 0, last + 1 + wanted, wanted)
    number = torch.arange(len(counts)).repeat_interleave(counts)
    rows = (positions == wanted[number]).nonzero()[:, 0]
    missing = torch.ones(len(counts), dtype=torch.bool)
    missing[number[rows]] = False
    if missing.any():
        first = stored.documents[missing][0].item()
        raise InputError(f"document {first} has no row at the position asked for, pos={pos!r}")
    return rows


def vectors_of(
    model: HookedModel, stored: Stored, names: Sequence[str], pos: TextPosition
) -> Vectors:
    """What probes read of collected activations.

    Args:
        model: which they must be of.
        stored: the activations.
        names: hook names that will be asked for.
        pos: which row of each document.

    Raises:
        CheckpointError: they are of another model.
        InputError: a site was not collected, or a document has no row there.
    """
    stored.refuse_another(model)
    for name in names:
        stored.site_name(name)
    return Vectors(stored, pos)


def of_documents(name: str, values: list[Any], stored: Stored) -> list[Any]:
    """One value for each document that has rows.

    Args:
        name: what the user calls them.
        values: as many as these documents, or as all texts that were read.
        stored: the activations.

    Raises:
        DataError: there are as many as neither.
    """
    documents = stored.documents.tolist()
    if len(values) == stored.manifest.documents:
        return [values[document] for document in documents]
    if len(values) != len(documents):
        raise DataError(
            f"{len(values)} {name} for {len(documents)} documents with rows, of "
            f"{stored.manifest.documents} that were read; expected one for each of these or those"
        )
    return values
