"""Which revisions a repository on the hub has, and which files each holds: from metadata alone.

One request lists the branches and tags, one more for each commit its files with their sizes and
hashes; no weights are fetched. A commit never changes, so its files are kept beside the
repository's place in the cache and asked for once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neox_lab.errors import CheckpointError
from neox_lab.files import read_json, taken_apart, write_text
from neox_lab.hub import (
    DEFAULTS,
    explained,
    hub_answered,
    hub_of,
    network_allowed,
    out_of_reach,
    repository_cache,
)
from neox_lab.hub_answers import check_commit, check_etag, check_name, is_commit

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("neox_lab")

_AT_ONCE = 16  # requests in flight
_KEPT = "neox_lab-revisions.json"


@dataclass(frozen=True)
class StoredFile:
    """A file as it is stored.

    Attributes:
        size: bytes.
        content: what it holds, as a hash: of equal files it is equal. ``sha256:`` of the bytes,
            ``git:`` for small files on the hub, which hashes these in its own way, or
            ``sha256-of-parts:`` for large files in a directory.
        tensors: the same of the tensors alone, where the file could be opened.
    """

    size: int
    content: str
    tensors: str | None = None


Files = dict[str, StoredFile]
"""The files of one revision by name."""


def revisions_on_hub(repository: str) -> dict[str, str]:
    """Branches and tags of a repository, each with its commit.

    Without a network, those that the cache remembers.

    Raises:
        CheckpointError: the hub refuses, or neither the hub nor the cache knows the repository.
    """
    if not network_allowed(DEFAULTS):
        return _remembered(repository, None)
    from huggingface_hub import HfApi

    try:
        found = HfApi().list_repo_refs(repository)
    except Exception as error:  # each version of huggingface_hub has other network errors
        if hub_answered(error):
            raise explained(error, repository, "main") from error
        return _remembered(repository, error)
    commits = {}
    for each in (*found.tags, *found.branches):  # of one name, the branch counts
        check_name(each.name, "revision")
        commits[each.name] = check_commit(each.target_commit, hub_of(repository))
    return commits


def _remembered(repository: str, error: Exception | None) -> dict[str, str]:
    """Revisions whose commit the cache of downloads knows.

    Raises:
        CheckpointError: there is none.
    """
    folder = repository_cache(repository, DEFAULTS) / "refs"
    names = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    texts = {path.relative_to(folder).as_posix(): path.read_text().strip() for path in names}
    found = {name: commit for name, commit in texts.items() if is_commit(commit)}
    if not found:
        raise out_of_reach(repository, None, error) from error
    logger.warning("Without the hub, only revisions of %s that were loaded before are known: %s.",
                   repository, ", ".join(found))  # fmt: skip
    return found


def files_on_hub(repository: str, commits: Iterable[str]) -> dict[str, Files]:
    """The files of each commit, with sizes and hashes; a commit costs one request, once.

    Args:
        repository: its id.
        commits: which.

    Returns:
        By commit. Without a network, only of commits that were asked for before.

    Raises:
        CheckpointError: the hub refuses, cannot be reached, or its answer cannot be used.
    """
    place = repository_cache(repository, DEFAULTS) / _KEPT
    kept = _read(place)
    wanted = list(dict.fromkeys(commits))
    missing = [commit for commit in wanted if commit not in kept]
    if missing and network_allowed(DEFAULTS):
        try:
            with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as pool:
                answers = pool.map(lambda commit: _files_of(repository, commit), missing)
                for commit, files in zip(missing, answers, strict=True):
                    kept[commit] = files
        finally:  # what was answered before an error need not be asked for again
            _write(place, kept)
    return {commit: kept[commit] for commit in wanted if commit in kept}


def _files_of(repository: str, commit: str) -> Files:
    """The files of a commit, from one request.

    Raises:
        CheckpointError: the hub refuses, cannot be reached, or its answer cannot be used.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    files = {}
    for last in (False, True):
        try:
            entries = list(HfApi().list_repo_tree(repository, recursive=True, revision=commit))
            break
        except Exception as error:  # each version of huggingface_hub has other network errors
            if hub_answered(error):
                raise explained(error, repository, commit) from error
            if last:
                raise out_of_reach(repository, commit, error) from error
    for entry in entries:
        if isinstance(entry, RepoFile):
            check_name(entry.path, "file")
            lfs = entry.lfs
            kind, content = ("git", entry.blob_id) if lfs is None else ("sha256", lfs.sha256)
            check_etag(content, hub_of(repository))
            files[entry.path] = StoredFile(int(entry.size), f"{kind}:{content}")
    return files


def _read(place: Path) -> dict[str, Files]:
    """What was kept; nothing where the file is missing or is no such file."""
    try:
        kept: dict[str, Any] = read_json(place)
        with taken_apart(f"the files of commits from {str(place)!r}"):
            return {
                commit: {name: _stored(*told) for name, told in files.items()}
                for commit, files in kept.items()
            }
    except CheckpointError:
        return {}


def _stored(size: object, content: object) -> StoredFile:
    if type(size) is not int or size < 0 or not isinstance(content, str):
        raise ValueError(f"{size!r:.60} bytes of {content!r:.60}")
    return StoredFile(size, content)


def _write(place: Path, kept: dict[str, Files]) -> None:
    content = {
        commit: {name: [file.size, file.content] for name, file in files.items()}
        for commit, files in kept.items()
    }
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(content))
    except OSError as error:  # it will be asked for again
        logger.info("Could not write %s: %s", place, error)
