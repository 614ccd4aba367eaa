"""How files are written safely, and JSON is read.

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
        stage(folder / "index.json").write_text(index)

The one that is staged last is the one without which the others are not read. It is taken away
before the others change and comes back last, so a program that is killed in between leaves nothing
that could be read as a mixture of old and new. What was there before then lies beside, see
``set_aside``. If a file cannot take its name, all that was there before is put back.

This is the only module that writes files, or is told where to (``torch.save``); a test sees to it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from neox_lab import interrupts
from neox_lab.checks import shown
from neox_lab.errors import CheckpointError, InputError, NeoxLabError

StrPath = str | os.PathLike[str]
"""Where a file or directory is."""

_TEMPORARY, _OLD = ".tmp", ".old"
_LEFT_OVER = 3600.0  # seconds; what nobody has touched for so long, nobody is writing any more


def path_of(name: str, value: object) -> Path:
    """The path that a user gave.

    Args:
        name: what the user calls it.
        value: what the user gave.

    Raises:
        InputError: it is no path.
    """
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and text and _can_be_a_name(text):
            return Path(text)
    raise InputError(f"{name}={shown(value)}; expected the path of a file or folder.")


def _can_be_a_name(path: str) -> bool:
    """Whether the system takes it for one, be something there or not."""
    try:
        os.lstat(path)
    except ValueError:  # a null, half a character
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


class Stage:
    """The files of one save: where they are written, and which go when they are in place."""

    def __init__(self) -> None:
        """Nothing is staged yet."""
        self._places: dict[Path, Path] = {}
        self._staged: list[Path] = []  # all targets, also those that were renamed later
        self._unwanted: list[Path] = []

    def __call__(self, path: StrPath) -> Path:
        """The path under which to write what shall stand at ``path``.

        It is in the same directory and does not exist yet, so whoever creates it gives it the
        permissions that the process's umask says; a file that is replaced keeps its own. Where
        ``path`` is a symbolic link, the file it points to is replaced and the link stays, except
        for links into the hub's cache: what lies there belongs to other programs too.

        Raises:
            OSError: there is no such directory, or something else than a file stands there.
        """
        target = _target(path)
        if not target.parent.is_dir():
            folder = os.fspath(Path(path).parent)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
        _refuse_no_file(target, path)
        temporary = _beside(target, _TEMPORARY)
        self._places[temporary] = target
        self._staged.append(target)
        return temporary

    def rename(self, temporary: Path, path: StrPath) -> None:
        """Let a file that was staged, and perhaps written, take another name at the end.

        Args:
            temporary: what staging it gave.
            path: in the same directory.
        """
        self._places[temporary] = _target(path)

    def remove(self, path: StrPath) -> None:
        """Let a file go when the others take their names.

        Raises:
            OSError: something else than a file stands there.
        """
        _refuse_no_file(path, path)
        self._unwanted.append(Path(path))

    def _to_disk(self) -> None:
        """Wait until the content is on disk: after a power cut, a name must not lead to nothing."""
        for temporary, target in self._places.items():
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if os.path.exists(target):  # what was private stays private
                os.chmod(temporary, stat.S_IMODE(os.stat(target).st_mode))

    def _switch(self) -> None:
        """Give all files their names and let others go, or change nothing."""
        if len(self._places) == 1 and not self._unwanted:  # one step, which the system guards
            os.replace(*next(iter(self._places.items())))
        elif self._places:
            self._switch_several()
        for target in (*self._staged, *self._unwanted):
            _remove_left_over(target)

    def _switch_several(self) -> None:
        before: dict[Path, Path | None] = {}  # what stood where, under another name now

        def move_away(place: Path) -> None:
            if os.path.lexists(place):
                old = _beside(place, _OLD)
                os.replace(place, old)
                before[place] = old

        try:
            for place in (list(self._places.values())[-1], *self._unwanted):
                move_away(place)
            for temporary, place in self._places.items():
                move_away(place)
                os.replace(temporary, place)
                before.setdefault(place, None)
        except OSError:
            for place, old in reversed(before.items()):
                os.unlink(place) if old is None else os.replace(old, place)
            raise
        for old in before.values():
            if old is not None:
                with suppress(OSError):  # a name too many does no harm
                    old.unlink()

    def _remove_temporary(self) -> None:
        for temporary in self._places:
            temporary.unlink(missing_ok=True)


@contextmanager
def staged_files() -> Iterator[Stage]:
    """Write several files beside their places; at the end of the block all take their names.

    If the block raises (an interrupt counts) or a file cannot take its name, all is as it was
    before. An interrupt that comes while files take their names waits until they all have. Stage
    that file last without which the others are not read.

    Yields:
        What to call with the path of a file to get the path under which to write it.

    Raises:
        OSError: a file cannot be brought to disk or cannot take its name, or something else than
            a file stands there.
    """
    stage = Stage()
    try:
        yield stage
        stage._to_disk()
        with interrupts.held():
            stage._switch()
    except BaseException as error:
        with interrupts.held():
            stage._remove_temporary()
        if isinstance(error, OSError) and error.filename is not None:
            place = stage._places.get(Path(os.fsdecode(error.filename)))
            if place is not None:  # the name people know
                raise OSError(error.errno, error.strerror, str(place)) from error
        raise


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
        content = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{place} holds a {type(content).__name__}; expected a JSON object.")
    return content


@contextmanager
def taken_apart(what: str) -> Iterator[None]:
    """A block that takes apart what a file says; whatever it trips over makes the file damaged.

    What a stranger wrote fails in more ways than anybody lists: numbers of 400 digits, lists for
    texts, entries that are missing. Memory and interrupts are not among them.

    Args:
        what: is read from which file, in words that go on ``Cannot read``.

    Raises:
        CheckpointError: the content is not what it should be.
    """
    try:
        yield
    except NeoxLabError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(f"Cannot read {what}: {type(e).__name__}: {e!s:.300}") from e


def reserve(path: StrPath, size: int) -> None:
    """Make a file as long as ``size`` bytes, all of which have their place on the disk.

    Where a file is only said to be long, the system kills the process that writes to it through
    memory when the disk is full.

    Raises:
        OSError: there is no room.
    """
    with open(path, "ab") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
        zeros = bytes(1 << 20)
        for start in range(file.tell(), size, len(zeros)):
            file.write(zeros[: size - start])


def free_space(path: StrPath) -> int:
    """Bytes that are free on the disk where something lies, or will lie.

    Args:
        path: it or its folders need not be there yet.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def alone(path: StrPath) -> Iterator[None]:
    """Keep a file locked for the time of a block; the system unlocks it when the process ends.

    Args:
        path: a file that nothing else is kept in; it is made if need be and stays.

    Raises:
        BlockingIOError: another process, or another block of this one, has locked it.
        OSError: it cannot be made.
    """
    with open(path, "ab") as file:
        _lock(file.fileno())
        yield


def _lock(descriptor: int) -> None:
    """Lock an open file, where its file system can, or say that somebody else has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(errno.EAGAIN, "locked by another process") from error


def set_aside(folder: StrPath, *names: str) -> Path | None:
    """What a killed process left of earlier files, if it was killed while files took their names.

    Args:
        folder: where to look.
        names: of the files.
    """
    for path in sorted(Path(folder).glob(f".*{_OLD}")):
        if any(_is_beside(path.name, name) for name in names):
            return path
    return None


def _target(path: StrPath) -> Path:
    """Which file to replace for ``path``: where links lead, but nothing in the hub's cache."""
    target = Path(os.path.realpath(path))
    # In models--owner--name/, the links in snapshots/ lead to blobs/, named by their content.
    in_cache = target.parent.name == "blobs" and (target.parent.parent / "snapshots").is_dir()
    if in_cache and os.path.islink(path):
        return Path(os.path.realpath(Path(path).parent), Path(path).name)
    return target


def _refuse_no_file(place: StrPath, path: StrPath) -> None:
    """Raise OSError, naming ``path``, if something stands at ``place`` that is no file."""
    if os.path.exists(place) and not os.path.isfile(place):
        kind = errno.EISDIR if os.path.isdir(place) else errno.EINVAL
        raise OSError(kind, "not a regular file", os.fspath(path))


def _beside(target: Path, ending: str) -> Path:
    # Cut, because a name that just fits the file system has no room for more.
    return target.parent / f".{target.name[:40]}.{secrets.token_hex(8)}{ending}"


def _is_beside(found: str, name: str) -> bool:
    """Whether ``_beside`` may have made the name ``found`` for a file called ``name``."""
    ending = f"({re.escape(_TEMPORARY)}|{re.escape(_OLD)})"
    return re.fullmatch(rf"\.{re.escape(name[:40])}\.[0-9a-f]{{16}}{ending}", found) is not None


def _remove_left_over(target: Path) -> None:
    """Remove what processes that were killed left beside a file."""
    with suppress(OSError):
        for entry in os.scandir(target.parent):
            if _is_beside(entry.name, target.name):
                if time.time() - entry.stat(follow_symlinks=False).st_ctime > _LEFT_OVER:
                    os.unlink(entry.path)


def remove_unfinished(folder: StrPath) -> None:
    """Remove what killed processes left of files that they were writing, however young.

    Args:
        folder: where nobody else writes now, see ``alone``.

    Raises:
        OSError: something of it cannot be removed.
    """
    ending = f"({re.escape(_TEMPORARY)}|{re.escape(_OLD)})"
    for path in Path(folder).iterdir():
        if re.fullmatch(rf"\..+\.[0-9a-f]{{16}}{ending}", path.name):
            path.unlink()


def parse_json(text: str | bytes) -> Any:
    """What a text in JSON says; what is in it, the caller has to check.

    Raises:
        ValueError: it is no JSON, or too deep to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
