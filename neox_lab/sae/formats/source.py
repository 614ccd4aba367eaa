"""The files of a directory or of a repository on the hub, fetched one by one as they are read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from neox_lab.checkpoint.reading import SafetensorsFile, unpickled
from neox_lab.errors import CheckpointError
from neox_lab.files import read_json
from neox_lab.hub import (
    HubOptions,
    PathOrId,
    find_file,
    local_directory,
    pin,
    repository_cache,
    written,
)
from neox_lab.hub_answers import stays_inside
from neox_lab.hub_revisions import files_on_hub

_MOST = 100_000  # files that are looked at in a directory


@dataclasses.dataclass(frozen=True)
class Source:
    """A place with files.

    Attributes:
        where: the directory or the id.
        names: of all files, with their folders, in order.
        options: how to fetch them.
    """

    where: str
    names: tuple[str, ...]
    options: HubOptions

    @property
    def is_local(self) -> bool:
        """Whether files can be looked into before one is chosen."""
        return local_directory(self.where) is not None

    def below(self, folder: str) -> Source:
        """The same with only the files of a folder; of a file, with those beside it."""
        folder = folder.strip("/")
        folder = folder.rpartition("/")[0] if folder in self.names else folder
        kept = [name for name in self.names if name.startswith(f"{folder}/" if folder else "")]
        return dataclasses.replace(self, names=tuple(kept))

    def apart(self) -> Iterator[tuple[str, Source]]:
        """Each folder that holds files, and the same with these files alone."""
        folders: dict[str, list[str]] = {}
        for name in self.names:
            folders.setdefault(name.rpartition("/")[0], []).append(name)
        for folder, names in folders.items():
            yield folder, dataclasses.replace(self, names=tuple(names))

    def path(self, name: str) -> Path:
        """Where a file is on the disk, fetched if need be.

        Raises:
            CheckpointError: it cannot be had.
        """
        found = find_file(self.where, name, self.options)
        assert found is not None
        return found

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in a file; an empty one where there is no such file.

        Raises:
            CheckpointError: it holds something else.
        """
        return read_json(self.path(name)) if name in self.names else {}

    def tensors(self, name: str) -> Tensors:
        """What a safetensors file holds.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.path(name)
        file = SafetensorsFile(path)
        return Tensors(path, {key: file.read(key) for key in file.tensors})

    def pickle(self, name: str) -> tuple[Path, object]:
        """What a file of ``torch.save`` holds, read without running code.

        Raises:
            CheckpointError: it is damaged, or holds code.
        """
        path = self.path(name)
        return path, unpickled(path)

    def folders_with(self, *names: str) -> Iterator[str]:
        """Folders that hold files of all these names; "" is the top."""
        for each in self.names:
            folder, _, last = each.rpartition("/")
            if last == names[0] and all(inside(folder, name) in self.names for name in names):
                yield folder


class Tensors(Mapping[str, Tensor]):
    """The tensors of one file.

    Args:
        path: of the file, for messages.
        tensors: by name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self._tensors = path, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def check(self, needed: Collection[str], optional: Collection[str] = ()) -> None:
        """Refuse a file that lacks a tensor, or has one that nobody would read.

        Raises:
            CheckpointError: names it.
        """
        missing = [name for name in needed if name not in self]
        unknown = [name for name in self if name not in needed and name not in optional]
        if missing or unknown:
            said = f"lacks {', '.join(missing)}" if missing else ""
            more = f"holds {', '.join(unknown)}, which no such dictionary has" if unknown else ""
            raise CheckpointError(f"{self.path} {' and '.join(filter(None, (said, more)))}.")

    def dtyped(self, dtype: torch.dtype, device: torch.device | str) -> Tensors:
        """The same with numbers in one precision, in memory; whole numbers stay what they are."""
        return Tensors(
            self.path,
            {
                name: tensor.to(device, dtype if tensor.is_floating_point() else None, copy=True)
                for name, tensor in self.items()
            },
        )


def source_of(where: PathOrId, revision: str | None = None) -> Source:
    """The files of a directory or a repository.

    Args:
        where: a directory, or an id on the hub.
        revision: branch, tag or commit.

    Raises:
        CheckpointError: there is no such place, or the hub cannot be reached.
    """
    directory = local_directory(where)
    options = pin(where, HubOptions(revision=revision))
    if directory is not None:
        return Source(str(directory), tuple(_below(directory)), options)
    name, commit = written(where), options.revision or ""
    known = files_on_hub(name, [commit]).get(commit)
    if known is None:  # without a network; the cache has what was fetched before
        names = tuple(_below(repository_cache(name, options) / "snapshots" / commit))
    else:
        names = tuple(sorted(known))
    return Source(name, names, options)


def inside(folder: str, name: str) -> str:
    """The name of a file in a folder; "" is the top."""
    return f"{folder}/{name}" if folder else name


def ways(source: Source, folder: str) -> list[str]:
    """The names of the folders on the way to one, the innermost first, with the source's own."""
    return [*PurePosixPath(folder).parts[::-1], *PurePosixPath(source.where).parts[:0:-1]]


def _below(directory: Path) -> list[str]:
    """Names of all files below a directory, without hidden ones and folders behind links.

    Raises:
        CheckpointError: there are too many for a place of dictionaries.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(directory).as_posix()
        below = "" if below == "." else below
        for name in sorted(files):
            if not name.startswith(".") and stays_inside(inside(below, name)):
                found.append(inside(below, name))
        if len(found) > _MOST:
            raise CheckpointError(
                f"{str(directory)!r} holds more than {_MOST:,} files; name a folder that holds "
                "dictionaries."
            )
    return found
