"""What a hub answers is checked before it becomes a path, and what it sends before it is used.

huggingface_hub makes paths of its cache from what a server says: of the commit, of the ETag, of
names. A server that is not the hub, or a proxy between, must not write elsewhere with them.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from neox_lab.errors import CheckpointError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+=-]{0,199}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def is_commit(revision: str) -> bool:
    """Whether a revision is the full hash of a commit."""
    return _COMMIT.fullmatch(revision) is not None


def stays_inside(name: str) -> bool:
    """Whether a name such as ``"sub/config.json"``, read as any system's, leads out of nowhere."""
    parts = name.split("/")
    plain = "\\" not in name and "\0" not in name and not PureWindowsPath(name).drive
    return plain and not PurePosixPath(name).is_absolute() and not {"", ".", ".."} & set(parts)


def check_name(name: str, what: str) -> None:
    """Check a name that becomes part of a path.

    Args:
        name: of a file, a branch or a tag.
        what: which of these, for the message.

    Raises:
        CheckpointError: it could lead elsewhere.
    """
    if not stays_inside(name):
        raise CheckpointError(
            f"{name!r} is no name of a {what}: expected names joined by '/', without '..', "
            "backslashes or drives."
        )


def check_commit(commit: object, source: str) -> str:
    """The hash of a commit, which becomes the name of a folder.

    Args:
        commit: what was answered.
        source: who, for the message.

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(commit, str) or not is_commit(commit):
        raise CheckpointError(
            f"{source} names the commit {commit!r:.100}; expected 40 hexadecimal digits. It does "
            "not answer as a hub: check HF_ENDPOINT and any proxy."
        )
    return commit


def check_etag(etag: object, source: str) -> str:
    """The ETag of a file, under which its bytes are kept.

    Args:
        etag: what was answered.
        source: who, for the message.

    Raises:
        CheckpointError: it is missing, or could lead elsewhere as the name of a file.
    """
    if not isinstance(etag, str) or not _ETAG.fullmatch(etag):
        raise CheckpointError(
            f"{source} gives a file the ETag {etag!r:.100}; expected letters and digits. It does "
            "not answer as a hub: check HF_ENDPOINT and any proxy."
        )
    return etag


def check_bytes(path: Path, etag: str) -> None:
    """Check a file that has just been fetched, where its ETag says what it holds.

    Large files have their SHA-256 as ETag. One with other bytes is removed, so that the next try
    fetches it again; so is one whose check was interrupted, for nobody would check it later.

    Args:
        path: where it lies in the cache, perhaps as a link.
        etag: see ``check_etag``.

    Raises:
        CheckpointError: its bytes are others.
    """
    if not _SHA256.fullmatch(etag):
        return
    found = None
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    finally:
        if found != etag.lower():
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    if found != etag.lower():
        raise CheckpointError(
            f"{path.name!r} came with other bytes than the hub says (SHA-256 {found[:12]}..., "
            f"expected {etag[:12].lower()}...). It was removed; fetch it again."
        )
