"""Fetching one revision ahead, and letting go of what was downloaded for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from neox_lab.checkpoint.files import find_weights
from neox_lab.dynamics.sources import Hub, Revision, Source, digest
from neox_lab.hub import HubOptions, find_file, repository_cache

_BLOCK = 1 << 23


class Fetcher:
    """Gets revisions near: from the hub into the cache, from the disk into memory.

    Its calls come from one thread, one after another.

    Args:
        source: where revisions are.
        keep: False to delete again what was downloaded for a revision.
    """

    def __init__(self, source: Source, keep: bool) -> None:
        self.source, self.keep = source, keep
        self._before: dict[str, set[Path]] = {}
        self._own: set[Path] = set()  # what lies in the cache because of this run

    def fetch(self, revision: Revision) -> str | None:
        """Get the files of a revision.

        Returns:
            What its weights are, in 12 digits, if that is known.

        Raises:
            CheckpointError: they cannot be had.
        """
        if not isinstance(self.source, Hub):  # hashing reads them
            return digest(self.source.contents([revision])[revision.name])
        self._note(revision)
        options = HubOptions(revision=revision.place, pinned=True)
        find_file(self.source.name, "config.json", options)
        for path in find_weights(self.source.name, options).paths:
            with path.open("rb", buffering=0) as file:
                while file.read(_BLOCK):
                    pass
        return digest(self.source.contents([revision]).get(revision.name, {}))

    def release(self, revision: Revision) -> None:
        """Delete what was downloaded for a revision, unless it is to be kept or was there before.

        Raises:
            OSError: it cannot be deleted.
        """
        if self.keep or revision.name not in self._before:
            return
        assert isinstance(self.source, Hub)
        kept = self._before.pop(revision.name)
        links = [path for path in self._snapshot(revision) if path not in kept]
        targets = {path.resolve() for path in links}
        self._own |= {path for path in targets if path not in self._blobs}
        for path in links:
            path.unlink(missing_ok=True)
        used = {path.resolve() for path in (self._cache / "snapshots").rglob("*")}
        for path in (targets & self._own) - used:
            path.unlink(missing_ok=True)
            self._own.discard(path)

    def _note(self, revision: Revision) -> None:
        """Remember what was there before."""
        if self.keep or not isinstance(self.source, Hub):
            return
        if not self._before and not self._own:
            self._cache = repository_cache(self.source.name, HubOptions())
            self._blobs = {path.resolve() for path in (self._cache / "blobs").glob("*")}
        self._before.setdefault(revision.name, set(self._snapshot(revision)))

    def _snapshot(self, revision: Revision) -> Iterator[Path]:
        folder = self._cache / "snapshots" / revision.place
        return (path for path in folder.rglob("*") if path.is_file())
