"""Reading collected activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import StrPath, read_json

MANIFEST = "activations.json"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stored:
    """Activations in a folder; a site is read whole into memory when it is asked for.

    Attributes:
        folder: where they lie.
        manifest: model, sites, dtype and shards.
        sites: hook names.
    """

    def __init__(self, folder: StrPath) -> None:
        """Check that every shard is what the manifest says; see ``open``."""
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        self.sites: list[str] = self.manifest["sites"]
        for shard in self.manifest["shards"]:
            path = self.folder / shard["file"]
            if not path.is_file() or digest(path) != shard["sha256"]:
                raise CheckpointError(
                    f"{path} is missing, cut short or changed since it was collected. Collect "
                    "into another folder, or bring the file back."
                )

    def __len__(self) -> int:
        """How many rows there are."""
        return sum(shard["rows"] for shard in self.manifest["shards"])

    def _column(self, name: str) -> Tensor:
        parts = []
        for shard in self.manifest["shards"]:
            with safe_open(self.folder / shard["file"], "pt") as file:
                parts.append(file.get_tensor(name))
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    @property
    def document(self) -> Tensor:
        """Document of every row ``[row]``, counted from 0."""
        return self._column("document")

    @property
    def pos(self) -> Tensor:
        """Position in its document of every row ``[row]``."""
        return self._column("pos")

    def site(self, name: str) -> Tensor:
        """All rows ``[row, d]`` of one site.

        Raises:
            InputError: it was not collected.
        """
        if name not in self.sites:
            raise InputError(f"{name!r} was not collected; there are {', '.join(self.sites)}.")
        return self._column(name)

    def batches(self, name: str, batch_size: int, seed: int = 0) -> Iterator[Tensor]:
        """Rows ``[batch, d]`` in a shuffled order, every one once.

        Raises:
            InputError: the site was not collected.
        """
        rows = self.site(name)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        for at in order.split(batch_size):
            yield rows[at]


def open(folder: StrPath) -> Stored:
    """Open collected activations; every shard's checksum is compared.

    Args:
        folder: what ``collect`` wrote.

    Raises:
        CheckpointError: a shard is missing or changed.
        OSError: there is no such folder.
    """
    return Stored(folder)
