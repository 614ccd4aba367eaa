"""How files are written safely and JSON is read, and sizes of memory as people write them.

A file that is written in place is half a file whenever the disk is full or the program is stopped.
So everything is written beside its place first, and takes its name when it is on disk: whoever
opens the file finds the old content or the new one, never a part::

    with staged_file("result.json") as temporary:
        temporary.write_text(text)

Files that belong together (the shards of a checkpoint and their index) are staged together and
take their names only after all of them have been written::

    with staged_files() as stage:
        for name, shard in shards.items():
            write(stage(folder / name), shard)
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neox_lab.errors import CheckpointError, NeoxLabError

StrPath = str | os.PathLike[str]
"""Where a file or directory is."""

_UNITS = {"": 1}
_UNITS |= {letter: 1000**power for power, letter in enumerate("KMGTP", start=1)}
_UNITS |= {f"{letter}I": 1024**power for power, letter in enumerate("KMGTP", start=1)}


@contextmanager
def staged_files() -> Iterator[Callable[[StrPath], Path]]:
    """Write several files beside their places; at the end of the block all take their names.

    If the block raises (an interrupt counts), no file takes its name and what was written is
    removed. Each file takes its name in one step; there is no such step for all of them together.

    Yields:
        A function from the path of a file to the path under which to write it. That one is in the
        same directory and does not exist yet, so whoever creates it gives it the permissions that
        the process's umask says; a file that is replaced keeps its own. Where the path is a
        symbolic link, the file it points to is replaced and the link stays.

    Raises:
        OSError: a file cannot be brought to disk or cannot take its name, or something else than
            a file stands there.
    """
    places: dict[Path, str] = {}

    def stage(path: StrPath) -> Path:
        target = os.path.realpath(path)
        folder, name = os.path.split(target)
        # Cut, because a name that just fits the file system has no room for more.
        temporary = Path(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
        if os.path.exists(target) and not os.path.isfile(target):
            kind = errno.EISDIR if os.path.isdir(target) else errno.EINVAL
            raise OSError(kind, "not a regular file", target)
        places[temporary] = target
        return temporary

    try:
        yield stage
        for temporary in places:
            _to_disk(temporary)
        for temporary, target in places.items():
            if os.path.exists(target):  # what was private stays private
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))
            os.replace(temporary, target)
    finally:
        for temporary in places:
            temporary.unlink(missing_ok=True)


@contextmanager
def staged_file(path: StrPath) -> Iterator[Path]:
    """Write one file beside its place; at the end of the block it takes its name.

    Yields:
        The path under which to write it, see ``staged_files``.

    Raises:
        OSError: the file cannot be brought to disk or cannot take its name.
    """
    with staged_files() as stage:
        yield stage(path)


def write_bytes(path: StrPath, content: bytes) -> None:
    """Write a whole file, or leave the one that was there.

    Raises:
        OSError: it cannot be written.
    """
    with staged_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: StrPath, text: str) -> None:
    """Write a whole file of UTF-8 text, or leave the one that was there.

    Raises:
        OSError: it cannot be written.
    """
    with staged_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: StrPath) -> dict[str, Any]:
    """The JSON object that a file holds; what is in it, the caller has to check.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    place = repr(os.fspath(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{place} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _to_disk(path: Path) -> None:
    """Wait until the content is on disk: after a power cut, a name must not lead to nothing."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def parse_size(size: int | str, name: str, error: type[NeoxLabError]) -> int:
    """Bytes from a number, ``"5GB"``, ``"1.5 kb"`` (powers of 1000) or ``"2MiB"`` (of 1024).

    Args:
        size: what the user gave.
        name: which argument it was given for.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP]?I?)B?", str(size).strip().upper())
    if not found or found[2] not in _UNITS:
        raise error(f"{name}={size!r} is not a size such as 10**9, '2 GB' or '2MiB'.")
    number, unit = found[1], _UNITS[found[2]]
    return int(float(number) * unit) if "." in number else int(number) * unit


def size_in_words(size: float) -> str:
    """A number of bytes as a person writes it, to three digits: ``"1.23 GB"``."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5:  # from here on, three digits are 1000
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
