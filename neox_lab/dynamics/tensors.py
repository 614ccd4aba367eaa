"""Measures that need a few tensors and no model: read from their place in the file.

A safetensors file begins with a table of where each tensor lies. In a directory the tensor is
mapped from there; from the hub its bytes alone are fetched, with two requests for the table and one
for each tensor. Of files of another format the whole is fetched.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from neox_lab.checkpoint.files import INDEX_SUFFIX, WHOLE_FILES, find_weights, read_index
from neox_lab.checkpoint.reading import open_weights
from neox_lab.checks import shown
from neox_lab.dynamics.sources import Hub, Revision, Source
from neox_lab.errors import CheckpointError, InputError, nearest
from neox_lab.hub import HubOptions, explained, find_file, network_allowed
from neox_lab.safetensors_files import DTYPES

_LARGEST_TABLE = 100_000_000  # bytes, as the format says


@dataclasses.dataclass(frozen=True)
class TensorMeasure:
    """A measure of tensors of a checkpoint; see ``tensor_measure``.

    Attributes:
        names: of the tensors, as in the file.
        function: what is asked of them.
    """

    names: tuple[str, ...]
    function: Callable[..., object]

    @property
    def __name__(self) -> str:
        """The function's."""
        return str(getattr(self.function, "__name__", "measure"))

    def __call__(self, model: nn.Module) -> object:
        """The measure of a model that is loaded.

        Args:
            model: any of this package.

        Raises:
            InputError: it has no such tensor.
        """
        state = model.state_dict()
        _require(self.names, state)
        return self.function(*(state[name] for name in self.names))

    def read(self, source: Source, revision: Revision) -> object:
        """The measure of a revision, of which nothing else is read.

        Args:
            source: where revisions are.
            revision: which.

        Raises:
            InputError: it has no such tensor.
            CheckpointError: it cannot be read.
        """
        return self.function(*_read(source, revision, self.names))


def tensor_measure(*names: str, function: Callable[..., object]) -> TensorMeasure:
    """A measure for ``run`` that needs a few tensors and reads nothing else.

        norm = nl.dynamics.tensor_measure("gpt_neox.embed_in.weight", function=lambda w: w.norm())
        nl.dynamics.run(norm, "EleutherAI/pythia-70m", steps="all")

    Args:
        names: of the tensors, as in the file of weights.
        function: of the tensors, in this order, as they are stored; it returns what a measure does.

    Raises:
        InputError: no names, or no function.
    """
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"names={shown(names)}; expected names of tensors.")
    if not callable(function):
        raise InputError(
            f"function={shown(function)}; expected a function of {len(names)} tensors."
        )
    return TensorMeasure(names, function)


def _require(names: tuple[str, ...], known: Collection[str]) -> None:
    """See that all names are known.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if name not in known:
            raise InputError(f"There is no tensor {name!r}.{nearest(name, known)}")


def _read(source: Source, revision: Revision, names: tuple[str, ...]) -> list[Tensor]:
    """Tensors of a revision.

    Raises:
        InputError: it has no such tensor.
        CheckpointError: it cannot be read.
    """
    if not isinstance(source, Hub):
        return _of_files(revision.place, HubOptions(), names)
    options = HubOptions(revision=revision.place, pinned=True)
    whole = WHOLE_FILES["safetensors"]
    files = source.contents([revision]).get(revision.name, {})
    if not network_allowed(options) or not {whole, whole + INDEX_SUFFIX} & set(files):
        return _of_files(source.name, options, names)
    if whole in files:
        places = dict.fromkeys(names, whole)
    else:
        path = find_file(source.name, whole + INDEX_SUFFIX, options)
        places = read_index(path) if path is not None else {}
        _require(names, places)
    tables: dict[str, tuple[int, dict[str, Any]]] = {}
    found = []
    for name in names:
        file = places[name]
        if file not in tables:
            tables[file] = _table(source.name, file, revision.place)
        start, table = tables[file]
        _require((name,), table)
        found.append(_fetched(source.name, file, revision.place, start, table[name]))
    return found


def _of_files(place: str, options: HubOptions, names: tuple[str, ...]) -> list[Tensor]:
    weights = open_weights(find_weights(place, options))
    _require(names, weights.tensors)
    found = [weights.read(name).clone() for name in names]
    weights.release()
    return found


def _table(repository: str, file: str, commit: str) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a file begin, and where each lies.

    Raises:
        CheckpointError: the hub does not answer with such a table.
    """
    length = int.from_bytes(_bytes(repository, file, commit, 0, 8), "little")
    if length > _LARGEST_TABLE:
        raise CheckpointError(f"{file!r} of {repository!r} is no safetensors file.")
    try:
        table = json.loads(_bytes(repository, file, commit, 8, length))
    except ValueError as error:
        raise CheckpointError(
            f"{file!r} of {repository!r} has no table of tensors: {error}"
        ) from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{file!r} of {repository!r} has no table of tensors.")
    return 8 + length, {name: entry for name, entry in table.items() if name != "__metadata__"}


def _fetched(repository: str, file: str, commit: str, start: int, entry: Any) -> Tensor:
    """One tensor by its entry in the table.

    Raises:
        CheckpointError: the entry makes no sense.
    """
    try:
        first, last = entry["data_offsets"]
        dtype, shape = DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= first or last - first != size:
            raise ValueError(f"{last - first} bytes for the shape {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file!r} of {repository!r} is damaged: {error}") from error
    if not size:
        return torch.zeros(shape, dtype=dtype)
    data = bytearray(_bytes(repository, file, commit, start + first, size))
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _bytes(repository: str, file: str, commit: str, start: int, size: int) -> bytes:
    """A part of a file on the hub.

    Raises:
        CheckpointError: the hub refuses, cannot be reached, or sends something else.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    headers = build_hf_headers() | {"Range": f"bytes={start}-{start + size - 1}"}
    try:
        url = hf_hub_url(repository, file, revision=commit)
        answer = get_session().get(url, headers=headers, timeout=60)
        while answer.is_redirect:
            url = str(answer.headers["location"])
            answer = get_session().get(url, headers={"Range": headers["Range"]}, timeout=60)
        hf_raise_for_status(answer)
    except Exception as error:  # each version of huggingface_hub has other network errors
        raise explained(error, repository, commit) from error
    if len(answer.content) != size:
        raise CheckpointError(
            f"The hub sent {len(answer.content)} bytes of {file!r} where {size} were asked for."
        )
    return bytes(answer.content)
