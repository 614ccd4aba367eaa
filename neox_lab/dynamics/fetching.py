"""Fetching one revision ahead, and letting go of what was downloaded for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from neox_lab.checkpoint.files import find_weights
from neox_lab.dynamics.sources import Hub, Revision, Source, digest
from neox_lab.files import read_json, taken_apart, write_text
from neox_lab.hub import HubOptions, find_file, repository_cache
from neox_lab.hub_answers import is_commit

_NOTE = ".downloaded-{}.json"


class Fetcher:
    """Gets revisions near: from the hub into the cache, from the disk into memory.

    Its calls come from one thread, one after another.

    Args:
        source: where revisions are.
        keep: False to delete again what was downloaded for a revision.
        notes: a folder for notes of what is to be deleted, should this process be killed.
    """

    def __init__(self, source: Source, keep: bool, notes: Path | None = None) -> None:
        self.source, self.keep, self.notes = source, keep, notes
        self._before: dict[str, set[Path]] = {}  # by commit, what there was of it
        self._own: set[Path] = set()  # what lies in the cache because of this run
        self._blobs: set[Path] | None = None
        if isinstance(source, Hub):
            self._cache = repository_cache(source.name, HubOptions())

    def clean(self) -> None:
        """Delete what a run that was killed had downloaded and would have deleted.

        Raises:
            CheckpointError: a note of what that is was damaged.
            OSError: it cannot be deleted.
        """
        if self.keep or self.notes is None:
            return
        for note in self.notes.glob(_NOTE.format("*")):
            found = read_json(note)
            with taken_apart(f"what is to be deleted from {str(note)!r}"):
                # What is no commit could lead to a folder anywhere, whose files would be deleted.
                commit = found["commit"]
                if not is_commit(commit):
                    raise ValueError(f"{commit!r:.60} is no commit")
                self._before[commit] = {Path(path) for path in found["files"]}
                self._blobs = {Path(path) for path in found["blobs"]}
            self._release(commit)
        self._blobs = None

    def fetch(self, revision: Revision) -> str | None:
        """Get the files of a revision.

        Returns:
            What its weights are, in 12 digits, if that is known.

        Raises:
            CheckpointError: they cannot be had.
        """
        if not isinstance(self.source, Hub):
            for path in find_weights(revision.place, HubOptions()).paths:
                _read_ahead(path)
            return digest(self.source.contents([revision])[revision.name])
        self._note(revision)
        options = HubOptions(revision=revision.place, pinned=True)
        find_file(self.source.name, "config.json", options)
        for path in find_weights(self.source.name, options).paths:
            _read_ahead(path)
        return digest(self.source.contents([revision]).get(revision.name, {}))

    def release(self, revision: Revision) -> None:
        """Delete what was downloaded for a revision, unless it is to be kept or was there before.

        Raises:
            OSError: it cannot be deleted.
        """
        if not self.keep and revision.place in self._before:
            self._release(revision.place)

    def _release(self, commit: str) -> None:
        kept = self._before.pop(commit)
        links = [path for path in self._snapshot(commit) if path not in kept]
        targets = {path.resolve() for path in links}
        self._own |= {path for path in targets if path not in (self._blobs or ())}
        for path in links:
            path.unlink(missing_ok=True)
        used = {path.resolve() for path in (self._cache / "snapshots").rglob("*")}
        for path in (targets & self._own) - used:
            path.unlink(missing_ok=True)
            self._own.discard(path)
        if self.notes is not None:
            (self.notes / _NOTE.format(commit)).unlink(missing_ok=True)

    def _note(self, revision: Revision) -> None:
        """Remember what was there before."""
        if self.keep:
            return
        if self._blobs is None:
            self._blobs = {path.resolve() for path in (self._cache / "blobs").glob("*")}
        before = self._before.setdefault(revision.place, set(self._snapshot(revision.place)))
        if self.notes is not None:
            content = {"commit": revision.place, "files": before, "blobs": self._blobs}
            text = json.dumps(content, default=lambda paths: sorted(map(str, paths)))
            write_text(self.notes / _NOTE.format(revision.place), text)

    def _snapshot(self, commit: str) -> Iterator[Path]:
        folder = self._cache / "snapshots" / commit
        return (path for path in folder.rglob("*") if path.is_file())


def _read_ahead(path: Path) -> None:
    """Ask the system to read a file into memory, where it takes such advice."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
