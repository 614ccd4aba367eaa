"""Reading collected activations from the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from neox_lab.activations import manifest as manifests
from neox_lab.activations.manifest import DTYPES, Manifest
from neox_lab.activations.shards import check_shard, mapped, verify_shard
from neox_lab.activations.shuffling import Order
from neox_lab.checks import COUNT, SEED, SWITCH, check, number, or_none, plain, shown
from neox_lab.errors import InputError, nearest
from neox_lab.family.contract import HookedModel
from neox_lab.files import StrPath, path_of
from neox_lab.model.identity import identity, refuse_another
from neox_lab.selections import Selection, entries
from neox_lab.sizes import size_in_words

Site = str | tuple[str, int]
"""A hook name, or the last part of one with a layer: ``("resid_post", 2)``."""


class Shards:
    """The rows of a folder, through memory; a file is opened when a row of it is first read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        counts = [0, *(shard.rows for shard in manifest.shards)]
        self._bounds = torch.tensor(counts).cumsum(0)
        self._open: dict[int, Mapping[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the rows, which whoever gets this opens for himself."""
        return {**self.__dict__, "_open": {}}

    def shard(self, number: int) -> Mapping[str, Tensor]:
        """The tensors of one file."""
        if number not in self._open:
            self._open[number] = mapped(self.folder / self.manifest.shards[number].file)
        return self._open[number]

    def rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows ``[row, ...]`` of one tensor, copied, in any order."""
        shape, dtype = self.manifest.tensors(len(rows))[name]
        found = torch.empty(shape, dtype=dtype)
        order = rows.argsort()  # file by file, and forward in each
        numbers = torch.searchsorted(self._bounds, rows[order], right=True) - 1
        kinds, counts = torch.unique_consecutive(numbers, return_counts=True)
        for shard, at in zip(kinds.tolist(), torch.split(order, counts.tolist()), strict=True):
            found[at] = self.shard(shard)[name][rows[at] - self._bounds[shard]]
        return found


class StoredSite:
    """All rows of one site, on the disk; ``site[rows]`` reads some.

    Attributes:
        name: hook name.
        shape: ``(row, ...)``.
        dtype: as stored.
    """

    def __init__(self, stored: Stored, name: str) -> None:
        """Rows of ``stored`` at the site; see ``Stored``."""
        self._stored = stored
        self.name = name
        self.shape = (len(stored), *stored.manifest.sites[name])
        self.dtype = DTYPES[stored.manifest.dtype]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Selection) -> Tensor:
        """Rows ``[row, ...]``, read now; one row ``[...]`` for one number.

        Args:
            rows: a number, a slice, a list or tensor of numbers, or a mask of all rows.

        Raises:
            InputError: there is no such row.
        """
        return self._stored._take(self.name, rows)

    def __repr__(self) -> str:
        return f"StoredSite({self.name!r}, shape={self.shape}, dtype={self.dtype})"


class Stored:
    """Collected activations, all or those of some documents.

    ``stored["resid_post", 2]`` is a site, ``stored["resid_post", 2][rows]`` reads rows of it. Rows
    of one document follow each other in order; documents follow each other too.

    Attributes:
        folder: where they lie.
        manifest: what was collected, of which model.
    """

    def __init__(self, folder: Path, manifest: Manifest, documents: Tensor | None = None) -> None:
        """The rows of a folder; see ``open``.

        Args:
            folder: where they lie.
            manifest: what was collected.
            documents: numbers of the documents whose rows these are ``[document]``, sorted; None
                for all.
        """
        self.folder, self.manifest = folder, manifest
        self._shards = Shards(folder, manifest)
        self._chosen = documents

    @property
    def sites(self) -> list[str]:
        """Hook names of what was collected."""
        return list(self.manifest.sites)

    def __len__(self) -> int:
        """How many rows there are."""
        return self.manifest.rows if self._chosen is None else int(self._stretches[2].sum())

    @property
    def documents(self) -> Tensor:
        """Numbers of the documents that have rows ``[document]``, in order."""
        return torch.unique_consecutive(self._stretches[0])

    @property
    def document(self) -> Tensor:
        """Document of every row ``[row]``: where its text stood among the texts, from 0."""
        numbers, _, counts = self._stretches
        return numbers.repeat_interleave(counts)

    @property
    def pos(self) -> Tensor:
        """Position in its document of every row ``[row]``."""
        return self._take("pos", slice(None)).long()

    @property
    def token(self) -> Tensor:
        """Token of every row ``[row]``."""
        return self._take("token", slice(None)).long()

    @property
    def read(self) -> Tensor:
        """Checksum of what the model had read at every row ``[row]``: equal where it was equal."""
        return self._take("read", slice(None))

    @cached_property
    def _stretches(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of one document in one file: document, first row and how many, ``[stretch]``."""
        found, first = [], 0
        for place, shard in enumerate(self.manifest.shards):
            column = self._shards.shard(place)["document"]
            numbers, counts = torch.unique_consecutive(column, return_counts=True)
            starts = first + counts.cumsum(0) - counts
            found.append(torch.stack((numbers, starts, counts)))
            first += shard.rows
        stretches = torch.cat(found, dim=1) if found else torch.empty(3, 0, dtype=torch.long)
        if self._chosen is not None:
            stretches = stretches[:, torch.isin(stretches[0], self._chosen)]
        return stretches[0], stretches[1], stretches[2]

    @cached_property
    def _ends(self) -> Tensor:
        """How many rows there are up to the end of each stretch."""
        return self._stretches[2].cumsum(0)

    def _in_folder(self, rows: Tensor) -> Tensor:
        """From numbers of own rows to those of the folder."""
        if self._chosen is None:
            return rows
        at = torch.searchsorted(self._ends, rows, right=True)
        _, starts, counts = self._stretches
        return starts[at] + rows - (self._ends[at] - counts[at])

    def _take(self, name: str, rows: Selection) -> Tensor:
        size = len(self)
        if isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.shape == (size,):
            rows = rows.nonzero()[:, 0]
        if isinstance(rows, Tensor) and rows.dtype == torch.long and rows.dim() == 1:
            if len(rows) and not -size <= int(rows.min()) <= int(rows.max()) < size:
                raise InputError(f"rows {int(rows.min())} to {int(rows.max())}; there are {size}.")
            return self._shards.rows(name, self._in_folder(rows.cpu() % max(1, size)))
        chosen = entries("rows", slice(None) if rows is None else rows, size, InputError)
        if isinstance(chosen, int):
            return self._shards.rows(name, self._in_folder(torch.tensor([chosen])))[0]
        if isinstance(chosen, slice):
            at = torch.arange(*chosen.indices(size))
        else:
            at = torch.tensor(chosen, dtype=torch.long)
        return self._shards.rows(name, self._in_folder(at))

    def site_name(self, site: object) -> str:
        """The hook name of a site that was collected.

        Args:
            site: see ``Site``.

        Raises:
            InputError: it was not.
        """
        found = [name for name in self.sites if _is_called(name, site)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"{site!r} is at {len(found)} sites: {', '.join(found)}; name one.")
        raise InputError(
            f"{shown(site)} was not collected; there are {', '.join(self.sites)}."
            f"{nearest(site, self.sites)}"
        )

    def __getitem__(self, site: Site) -> StoredSite:
        """One site.

        Args:
            site: a hook name, or the last part of one, with a layer where it takes one:
                ``("resid_post", 2)``.

        Raises:
            InputError: it was not collected, or that is the name of several.
        """
        return StoredSite(self, self.site_name(site))

    def rows_of(self, document: int) -> range:
        """Numbers of the rows of one document.

        Raises:
            InputError: it has none here.
        """
        number = check("document", document, SEED, InputError)
        numbers, _, counts = self._stretches
        low, high = (int(torch.searchsorted(numbers, number, right=side)) for side in (False, True))
        if low == high:
            raise InputError(f"document {number} has no rows here; see .documents")
        end = int(self._ends[high - 1])
        return range(end - int(counts[low:high].sum()), end)

    @overload
    def batches(
        self, sites: Site, batch_size: int, *, seed: int | None = 0, drop_last: bool = False
    ) -> Iterator[Tensor]: ...

    @overload
    def batches(
        self, sites: list[Site], batch_size: int, *, seed: int | None = 0, drop_last: bool = False
    ) -> Iterator[dict[str, Tensor]]: ...

    def batches(
        self,
        sites: Site | list[Site],
        batch_size: int,
        *,
        seed: int | None = 0,
        drop_last: bool = False,
    ) -> Iterator[Tensor] | Iterator[dict[str, Tensor]]:
        """Every row once, in a shuffled order.

        The order is computed place by place, so shuffling takes no memory however many rows there
        are; it reads rows from all over the files.

        Args:
            sites: one site, whose rows are yielded as a tensor ``[batch, ...]``; or a list of
                sites and of ``"document"``, ``"pos"``, ``"token"`` and ``"read"``, whose rows
                are yielded in a dictionary.
            batch_size: rows in one batch; the last may have fewer.
            seed: of the order; give another for every epoch. None keeps the order of the files.
            drop_last: leave out a last batch that has fewer rows.

        Raises:
            InputError: a site that was not collected, or another argument is not what it can be.
        """
        batch_size = check("batch_size", batch_size, COUNT, InputError)
        seed = check("seed", seed, or_none(SEED), InputError)
        drop_last = check("drop_last", drop_last, SWITCH, InputError)
        if isinstance(sites, list):
            names = [self._column_name(site) for site in sites]
            return self._batches(names, batch_size, seed, drop_last)
        name = self._column_name(sites)
        return (batch[name] for batch in self._batches([name], batch_size, seed, drop_last))

    def _column_name(self, site: Site) -> str:
        if isinstance(site, str) and site in manifests.COLUMNS:
            return site
        return self.site_name(site)

    def _batches(
        self, names: Sequence[str], batch_size: int, seed: int | None, drop_last: bool
    ) -> Iterator[dict[str, Tensor]]:
        size = len(self)
        order = None if seed is None else Order(size, seed)
        for start in range(0, size, batch_size):
            end = min(start + batch_size, size)
            if drop_last and end - start < batch_size:
                return
            rows = torch.arange(start, end) if order is None else order[start:end]
            at = self._in_folder(rows)
            yield {name: self._shards.rows(name, at) for name in names}

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Stored, Stored]:
        """Two parts without a document in common: to train on, and to test on.

        Args:
            held_out: share of the documents in the second.
            seed: which documents.

        Raises:
            InputError: a share that leaves no document on one side.
        """
        share = check("held_out", held_out, number(above=0, below=1), InputError)
        seed = check("seed", seed, SEED, InputError)
        numbers = self.documents
        generator = torch.Generator().manual_seed(seed)
        order = numbers[torch.randperm(len(numbers), generator=generator)]
        count = round(share * len(numbers))
        if not 0 < count < len(numbers):
            raise InputError(
                f"held_out={share} of {len(numbers)} documents leaves none on one side; expected "
                "at least one on each."
            )
        tested, trained = order[:count].sort().values, order[count:].sort().values
        return (
            Stored(self.folder, self.manifest, trained),
            Stored(self.folder, self.manifest, tested),
        )

    def refuse_another(self, model: HookedModel) -> None:
        """Raise unless these are activations of a model, as it is now.

        Args:
            model: what they are to be used with.

        Raises:
            CheckpointError: they are of another; the message says in what it differs.
        """
        refuse_another(self.manifest.identity, identity(model), repr(str(self.folder)))

    def verify(self) -> None:
        """Read all files whole and compare their checksums.

        Raises:
            CheckpointError: one is missing or was changed.
        """
        for shard in self.manifest.shards:
            check_shard(self.folder / shard.file, self.manifest, shard)
            verify_shard(self.folder / shard.file, shard)

    def __repr__(self) -> str:
        size = sum(shard.size for shard in self.manifest.shards)
        part = "" if self._chosen is None else f" of {len(self._chosen):,} documents"
        state = "" if self.manifest.complete else ", not complete"
        return (
            f"Stored({str(self.folder)!r}: {len(self):,} rows{part} at {len(self.sites)} sites "
            f"in {self.manifest.dtype}, {size_in_words(size)} in the folder{state})"
        )


def _is_called(name: str, site: object) -> bool:
    """Whether a site's name, or the last part of it with a layer, is ``site``."""
    if isinstance(site, str):
        return site == name or name.endswith(f".hook_{site}")
    if not isinstance(site, tuple) or len(site) != 2 or not isinstance(site[0], str):
        return False
    layer = plain(site[1])
    return name.startswith(f"blocks.{layer}.") and name.endswith(f".hook_{site[0]}")


def open(folder: StrPath, *, verify: bool = False) -> Stored:
    """Open collected activations; no row is read.

    Args:
        folder: what ``collect`` wrote; it may still be writing, or have been interrupted: then
            these are the rows there are so far.
        verify: read all files whole and compare their checksums, which takes its time.

    Raises:
        CheckpointError: the folder holds no activations, or a file is missing or changed: its size
            or its tensors are others, with ``verify`` also its content.
        InputError: an argument is not what it can be.
    """
    place = path_of("folder", folder).expanduser()
    verify = check("verify", verify, SWITCH, InputError)
    manifest = manifests.read(place)
    for shard in manifest.shards:
        check_shard(place / shard.file, manifest, shard)
    stored = Stored(place, manifest)
    if verify:
        stored.verify()
    return stored
