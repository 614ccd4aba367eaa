"""What a folder of activations says about itself: one JSON file beside the shards."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from neox_lab.errors import CheckpointError
from neox_lab.files import read_json, write_text
from neox_lab.model.identity import Identity

MANIFEST = "activations.json"
FORMAT = "neox_lab activations 1"
COLUMNS = {"document": torch.int64, "read": torch.int64, "pos": torch.int32, "token": torch.int32}
"""What is stored of a row beside its activations: numbers of document and token, the position in
the document, and a checksum of all that the model had read."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shard:
    """One file of rows.

    Attributes:
        file: its name.
        rows: how many there are.
        size: bytes of the file.
        tokens: checksum of the texts it was made from.
        sha256: of the file.
    """

    file: str
    rows: int
    size: int
    tokens: str
    sha256: str

    @property
    def is_right(self) -> bool:
        """Whether every entry is of its kind, and the name that of a file in the same folder."""
        counts, texts = (self.rows, self.size), (self.file, self.tokens, self.sha256)
        return (
            all(type(count) is int and count >= 0 for count in counts)
            and all(type(text) is str for text in texts)
            and Path(self.file).name == self.file
        )


@dataclass
class Manifest:
    """Everything about a collection but its rows.

    Attributes:
        format: of the folder.
        library: version of this package that began it.
        model: name or folder of the model.
        revision: the commit it was loaded from; None unless it came from the hub.
        identity: checksums of structure, weights and tokenizer, see ``model.identity``.
        sites: the shape of one row at every site.
        dtype: of the activations.
        pos: which positions are kept, ``all`` or ``last``.
        skip_first: how many positions at the start of every chunk are not.
        context: the longest chunk; the model reads each from its position 0 on.
        max_tokens: where the texts were cut off, or None.
        shard_tokens: tokens read for one shard.
        hooks: hook points at which something was in place that may have changed what passes.
        complete: all texts have been read.
        documents: how many have been read; those without rows count.
        tokens: how many have been read.
        shards: the files so far.
    """

    format: str
    library: str
    model: str
    revision: str | None
    identity: Identity
    sites: dict[str, list[int]]
    dtype: str
    pos: str
    skip_first: int
    context: int
    max_tokens: int | None
    shard_tokens: int
    hooks: list[str] = field(default_factory=list)
    complete: bool = False
    documents: int = 0
    tokens: int = 0
    shards: list[Shard] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many there are so far."""
        return sum(shard.rows for shard in self.shards)

    def tensors(self, rows: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of everything in a shard."""
        dtype = DTYPES[self.dtype]
        sites = {name: ((rows, *shape), dtype) for name, shape in self.sites.items()}
        return {**sites, **{name: ((rows,), kind) for name, kind in COLUMNS.items()}}

    def write(self, folder: Path) -> None:
        """Put it into the folder, or leave the one that was there.

        Raises:
            OSError: it cannot be written.
        """
        write_text(
            folder / MANIFEST,
            json.dumps({**asdict(self), "identity": self.identity._asdict()}, indent=1),
        )


def read(folder: Path) -> Manifest:
    """What a folder says.

    Raises:
        CheckpointError: it holds no activations, those of another version, or a damaged manifest.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds no collected activations: there is no {MANIFEST} in it. "
            "nl.activations.collect makes such a folder."
        )
    found = read_json(folder / MANIFEST)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(folder / MANIFEST)!r} is of the format {found.get('format')!r}; this version "
            f"reads {FORMAT!r}. Collect into another folder."
        )
    try:
        shards = [Shard(**shard) for shard in found.pop("shards")]
        found["identity"] = Identity(**found["identity"])
        manifest = Manifest(**found, shards=shards)
        right = _is_right(manifest)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise _damaged(folder, str(error)) from error
    if not right:
        raise _damaged(folder, "an entry is of the wrong kind")
    return manifest


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{str(folder / MANIFEST)!r} is damaged: {what}. Bring the file back from a copy, or "
        "collect into another folder."
    )


def _is_right(manifest: Manifest) -> bool:
    """Whether every entry is what it is to be: the file may have been edited."""
    counts = [manifest.skip_first, manifest.context, manifest.shard_tokens]
    counts += [manifest.documents, manifest.tokens]
    counts += [] if manifest.max_tokens is None else [manifest.max_tokens]
    names = [shard.file for shard in manifest.shards]
    shapes = [size for shape in manifest.sites.values() for size in shape]
    return (
        all(type(count) is int and count >= 0 for count in [*counts, *shapes])
        and all(shard.is_right for shard in manifest.shards)
        and len(set(names)) == len(names)
        and manifest.dtype in DTYPES
        and manifest.pos in ("all", "last")
        and type(manifest.complete) is bool
        and not set(manifest.sites) & set(COLUMNS)
    )
