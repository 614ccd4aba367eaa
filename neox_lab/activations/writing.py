"""One file of a collection from its texts, by whoever has the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.activations.documents import Chunk, digest, kept, prefix_checksums
from neox_lab.activations.manifest import Manifest, Shard
from neox_lab.activations.shards import checksum, room
from neox_lab.checks import name_not_finite
from neox_lab.data.activations import read_batch
from neox_lab.data.batches import by_length
from neox_lab.errors import CheckpointError
from neox_lab.family.contract import HookedModel
from neox_lab.family.origins import Origin
from neox_lab.files import read_json, staged_file, write_text

if TYPE_CHECKING:
    from neox_lab.progress import Progress

NotFinite = list[tuple[str, list[str]]]
"""Sites, and the places at which what was collected is not finite."""


class Window(NamedTuple):
    """The texts of one file, in a few arrays: small on the way to another machine.

    Attributes:
        number: of the file.
        documents: of every chunk.
        starts: of every chunk.
        ends: of every chunk.
        lengths: of every chunk.
        tokens: of all chunks.
    """

    number: int
    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    tokens: NDArray[np.int32]

    @classmethod
    def of(cls, number: int, window: Sequence[Chunk]) -> Window:
        """The window of some chunks."""
        return cls(
            number,
            np.array([chunk.document for chunk in window], dtype=np.int64),
            np.array([chunk.start for chunk in window], dtype=np.int64),
            np.array([chunk.ends for chunk in window], dtype=np.bool_),
            np.array([len(chunk.ids) for chunk in window], dtype=np.int64),
            np.array([token for chunk in window for token in chunk.ids], dtype=np.int32),
        )

    def chunks(self) -> list[Chunk]:
        """The chunks it was made of."""
        parts = np.split(self.tokens, self.lengths.cumsum()[:-1])
        each = (self.documents.tolist(), self.starts.tolist(), parts, self.ends.tolist())
        return [
            Chunk(document, start, ids.tolist(), ends)
            for document, start, ids, ends in zip(*each, strict=True)
        ]


@dataclass(frozen=True)
class ShardWriter:
    """What a worker does with each window; small, and can be pickled.

    A worker leaves a note beside a file that is complete, so that it is not made again where the
    manifest does not name it yet: other files may come before it.

    Attributes:
        origin: of the model.
        folder: where all workers write.
        manifest: of the collection, without its files.
        batch_size: chunks in one forward pass.
    """

    origin: Origin
    folder: Path
    manifest: Manifest
    batch_size: int

    def __call__(self, window: Window) -> tuple[Shard, NotFinite]:
        """Write a file, unless it is there.

        Raises:
            OSError: it cannot be written.
        """
        chunks = window.chunks()
        if found := noted(self.folder, window.number, digest(chunks)):
            return found, []
        model = self.origin.model()
        made = write_shard(
            model, chunks, self.folder, self.manifest, window.number, self.batch_size
        )
        write_text(_note(self.folder, window.number), json.dumps(asdict(made[0])))
        return made


def without_files(manifest: Manifest) -> Manifest:
    """The same manifest with no file in it."""
    return replace(manifest, shards=[])


def noted(folder: Path, number: int, tokens: str) -> Shard | None:
    """A file that a worker has written and that the manifest does not name yet.

    Args:
        folder: of the collection.
        number: of the file.
        tokens: the checksum of the texts it must be of.
    """
    place = _note(folder, number)
    with suppress(CheckpointError, OSError, TypeError, ValueError):
        shard = Shard(**read_json(place)) if place.is_file() else None
        if shard and shard.is_right and shard.tokens == tokens:
            return shard if (folder / shard.file).stat().st_size == shard.size else None
    return None


def forget(folder: Path, numbers: Iterable[int]) -> None:
    """Remove the notes of files that have one; the manifest names these files now.

    Raises:
        OSError: it cannot be removed.
    """
    for number in numbers:
        _note(folder, number).unlink(missing_ok=True)


def _note(folder: Path, number: int) -> Path:
    return folder / f".{number:06d}.written.json"


def write_shard(
    model: HookedModel,
    window: list[Chunk],
    folder: Path,
    manifest: Manifest,
    number: int,
    batch_size: int,
    bar: Progress | None = None,
) -> tuple[Shard, NotFinite]:
    """Write one file, its rows in the order of the chunks.

    Args:
        model: what reads the texts.
        window: the texts.
        folder: of the collection.
        manifest: says what is kept of them.
        number: of the file.
        batch_size: chunks in one forward pass.
        bar: told of every batch.

    Returns:
        What the manifest says of the file, and what in it is not finite.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"{number:06d}.safetensors"
    spans = [kept(chunk, manifest.pos, manifest.skip_first) for chunk in window]
    ends = list(accumulate(len(span) for span in spans))
    asked = [at for at, span in enumerate(spans) if len(span)]
    with staged_file(path) as temporary:
        tensors = room(temporary, manifest, ends[-1])
        _fill_columns(tensors, window, spans)
        for chosen in by_length(model, [len(window[at].ids) for at in asked], batch_size):
            batch = [asked[each] for each in chosen]
            _fill(
                model,
                tensors,
                [window[at].ids for at in batch],
                list(manifest.sites),
                [(spans[at], ends[at]) for at in batch],
            )
            if bar is not None:
                bar.update(sum(len(window[at].ids) for at in batch))
        wrong = _not_finite(tensors, manifest)
        size, told = temporary.stat().st_size, checksum(temporary)
    return Shard(path.name, ends[-1], size, digest(window), told), wrong


def _fill(
    model: HookedModel,
    tensors: dict[str, Tensor],
    ids: list[list[int]],
    names: list[str],
    places: list[tuple[range, int]],
) -> None:
    """Put the activations of one batch in their places: which positions, and where they end."""
    cache, _ = read_batch(model, ids, names)
    for name in names:
        target = tensors[name]
        values = cache[name].to(target.dtype).cpu()
        for row, (span, end) in enumerate(places):
            target[end - len(span) : end] = values[row, span.start : span.stop]


def _fill_columns(tensors: dict[str, Tensor], window: list[Chunk], spans: list[range]) -> None:
    """Put the columns of a window in their places."""
    lengths = torch.tensor([len(chunk.ids) for chunk in window])
    tokens = torch.tensor([token for chunk in window for token in chunk.ids], dtype=torch.long)
    number = torch.arange(len(window)).repeat_interleave(lengths)
    at = torch.arange(len(tokens)) - (lengths.cumsum(0) - lengths)[number]
    low = torch.tensor([span.start for span in spans])[number]
    high = torch.tensor([span.stop for span in spans])[number]
    own = (at >= low) & (at < high)
    documents = torch.tensor([chunk.document for chunk in window])
    starts = torch.tensor([chunk.start for chunk in window])
    tensors["document"].copy_(documents[number][own])
    tensors["pos"].copy_((starts[number] + at)[own])
    tensors["token"].copy_(tokens[own])
    tensors["read"].copy_(prefix_checksums(tokens, at)[own])


def _not_finite(tensors: dict[str, Tensor], manifest: Manifest) -> NotFinite:
    found = []
    for name in manifest.sites:
        values = tensors[name].flatten(1)
        if bool(values.sum(dtype=torch.float32).isfinite()):  # one quick look at all of them
            continue
        bad = (~values.isfinite().all(dim=1)).nonzero()[:, 0]
        where = zip(tensors["document"][bad].tolist(), tensors["pos"][bad].tolist(), strict=True)
        places = [f"document {document} position {pos}" for document, pos in where]
        found.append((name, places))
    return found


def name_wrong(wrong: NotFinite, manifest: Manifest) -> None:
    """Warn of what was collected and is not finite."""
    for name, places in wrong:
        name_not_finite(f"What was collected at {name!r} in {manifest.dtype}", places)
