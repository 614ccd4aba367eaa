"""Where revisions are: a repository on the hub, a directory of checkpoints, or the package.

A ``Source`` lists its revisions, says what files each holds, and loads one. It is small and can be
sent to another process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from neox_lab import built_in
from neox_lab.errors import CheckpointError
from neox_lab.files import read_json
from neox_lab.hub import PathOrId, local_directory, written
from neox_lab.hub_revisions import Files, StoredFile, files_on_hub, revisions_on_hub
from neox_lab.steps import step_of

PYTHIA_TOKENS = 2_097_152
"""Tokens of one step of Pythia: 1024 sequences of 2048."""

PYTHIA_STEPS = (0, *(2**power for power in range(10)), *range(1000, 143_001, 1000))
"""The steps at which each Pythia was saved."""

_PYTHIA = re.compile(r"EleutherAI/pythia-\d+(\.\d+)?[mb](-[a-z0-9]+)*", re.IGNORECASE)
_OTHER_BATCH = re.compile(r"tok|batch", re.IGNORECASE)
_WEIGHTS = re.compile(
    r"(?P<stem>model|pytorch_model)(\.[\w-]+?)?"
    r"(-(?P<part>\d+)-of-(?P<parts>\d+))?\.(?P<format>safetensors|bin)"
)
_THREADS = 4
_BLOCK, _BLOCKS = 1 << 16, 128  # bytes of a part, and parts of a large file
_PARTS = "sha256-of-parts:"


@dataclass(frozen=True)
class Revision:
    """One revision.

    Attributes:
        name: branch, tag or folder.
        step: of training; None where the name says none.
        tokens: seen up to then; None where nothing says so.
        place: the commit on the hub, or the directory.
        version: changes when the revision does: the commit, or sizes and times of files.
    """

    name: str
    step: int | None
    tokens: int | None
    place: str
    version: str


@dataclass(frozen=True)
class Source(ABC):
    """Revisions of one model.

    Attributes:
        name: the id on the hub or the directory; None for the built-in model.
    """

    name: str | None

    @property
    def shown(self) -> str:
        """Its name for people."""
        return self.name or "the built-in model"

    @property
    def expected_steps(self) -> tuple[int, ...]:
        """Steps that there should be, where that is known."""
        return ()

    @abstractmethod
    def revisions(self) -> list[Revision]:
        """All revisions by step; those without a step come last.

        Raises:
            CheckpointError: the place does not exist or cannot be read.
        """

    @abstractmethod
    def contents(self, revisions: Iterable[Revision]) -> dict[str, Files]:
        """The files of revisions, by the names of these; those that cannot be known are missing.

        Raises:
            CheckpointError: they cannot be read.
        """


@dataclass(frozen=True)
class Hub(Source):
    """A repository on the hub."""

    name: str

    @property
    def is_pythia(self) -> bool:
        """Whether it is one of those trained with Pythia's batches."""
        return bool(_PYTHIA.fullmatch(self.name)) and not _OTHER_BATCH.search(self.name)

    @property
    def expected_steps(self) -> tuple[int, ...]:  # noqa: D102
        return PYTHIA_STEPS if self.is_pythia else ()

    def revisions(self) -> list[Revision]:  # noqa: D102
        found = []
        for name, commit in revisions_on_hub(self.name).items():
            step = step_of(name)
            tokens = step * PYTHIA_TOKENS if self.is_pythia and step is not None else None
            found.append(Revision(name, step, tokens, commit, commit))
        return _in_order(found)

    def contents(self, revisions: Iterable[Revision]) -> dict[str, Files]:  # noqa: D102
        revisions = list(revisions)
        files = files_on_hub(self.name, [each.place for each in revisions])
        return {each.name: files[each.place] for each in revisions if each.place in files}


@dataclass(frozen=True)
class Directory(Source):
    """A directory whose folders are checkpoints, such as a run of transformers' Trainer."""

    name: str

    def revisions(self) -> list[Revision]:  # noqa: D102
        found = []
        for folder in sorted(Path(self.name).iterdir()):
            if folder.is_dir() and any(_WEIGHTS.fullmatch(path.name) for path in folder.iterdir()):
                step = step_of(folder.name)
                found.append(_local(folder.name, step, _tokens(folder, step), folder))
        if not any(each.step is not None for each in found):
            raise CheckpointError(
                f"The directory {self.name!r} has no folders of checkpoints with steps in their "
                "names: expected folders such as 'step1000' or 'checkpoint-500' with weights in "
                "them."
            )
        return _in_order(found)

    def contents(self, revisions: Iterable[Revision]) -> dict[str, Files]:  # noqa: D102
        return _hashed(revisions)


@dataclass(frozen=True)
class BuiltIn(Source):
    """The built-in model, whose revisions come with the package."""

    def revisions(self) -> list[Revision]:  # noqa: D102
        phases = read_json(built_in.weights_directory() / "training.json")["recipe"]["phases"]
        found = []
        for name in (*built_in.revisions(), "main"):
            step, tokens = step_of(name), None
            if step is not None:
                left, tokens = step, 0
                for phase in phases:
                    steps = min(left, phase["steps"])
                    tokens += steps * phase["batch"] * phase["context"]
                    left -= steps
            found.append(_local(name, step, tokens, built_in.weights_directory(name)))
        return _in_order(found)

    def contents(self, revisions: Iterable[Revision]) -> dict[str, Files]:  # noqa: D102
        return _hashed(revisions)


def source_of(name: PathOrId | None) -> Source:
    """The source that a name means.

    Args:
        name: an id on the hub, a directory of checkpoints, or None for the built-in model.

    Raises:
        CheckpointError: there is no such directory, or it is no name at all.
    """
    if name is None:
        return BuiltIn(None)
    directory = local_directory(name)
    return Hub(written(name)) if directory is None else Directory(str(directory.resolve()))


def weight_files(files: Files) -> dict[str, dict[str, StoredFile]]:
    """Those of the files that hold weights, by format; what is loaded comes first.

    Args:
        files: all files of a revision.
    """
    found: dict[str, dict[str, StoredFile]] = {}
    for form in ("safetensors", "bin"):
        names = [n for n in files if (m := _WEIGHTS.fullmatch(n)) and m["format"] == form]
        if names:
            found[form] = {name: files[name] for name in sorted(names)}
    return found


def missing_shards(names: Iterable[str]) -> int:
    """How many shards are missing, by what the names of the others say.

    Args:
        names: of the weight files of one format.
    """
    parts = [m for name in names if (m := _WEIGHTS.fullmatch(name)) and m["parts"]]
    return max((int(m["parts"]) for m in parts), default=0) - len(parts)


def digest(files: Files) -> str | None:
    """What the weights that are loaded are, as 12 digits; None where there are none."""
    for stored in weight_files(files).values():
        contents = [file.content for file in stored.values()]
        if len(contents) > 1:
            joined = "\n".join(sorted(contents))
            return hashlib.sha256(joined.encode()).hexdigest()[:12]
        return contents[0].partition(":")[2][:12]
    return None


def _in_order(revisions: list[Revision]) -> list[Revision]:
    return sorted(revisions, key=lambda each: (each.step is None, each.step or 0, each.name))


def _local(name: str, step: int | None, tokens: int | None, folder: Path) -> Revision:
    entries = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    stamp = json.dumps([(file, found.st_size, found.st_mtime_ns) for file, found in entries])
    version = hashlib.sha256(stamp.encode()).hexdigest()
    return Revision(name, step, tokens, str(folder), version)


def _tokens(folder: Path, step: int | None) -> int | None:
    """What a checkpoint says about the tokens seen: the Trainer's state, or its configuration."""
    for file, key in (("trainer_state.json", "num_input_tokens_seen"),
                      ("config.json", "tokens_per_step")):  # fmt: skip
        try:
            number = read_json(folder / file).get(key)
        except CheckpointError:
            continue
        if isinstance(number, int) and number > 0 and step is not None:
            return number * step if key == "tokens_per_step" else number
    return None


def _hashed(revisions: Iterable[Revision]) -> dict[str, Files]:
    """The files of directories with hashes of what they hold.

    Of a large file only parts are hashed; where those of two files agree, all of both is compared.

    Raises:
        CheckpointError: a file cannot be read.
    """
    revisions = list(revisions)
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            made = dict(zip((r.name for r in revisions), pool.map(_files, revisions), strict=True))
        return _told_apart(revisions, made)
    except OSError as error:
        raise CheckpointError(f"Cannot read {error.filename!r}: {error}") from error


def _told_apart(revisions: Sequence[Revision], made: dict[str, Files]) -> dict[str, Files]:
    """The same files, with other hashes where the parts agree and the whole does not."""
    alike: dict[str, set[Path]] = {}
    for each in revisions:
        for name, file in made[each.name].items():
            if file.content.startswith(_PARTS):
                path = Path(each.place, name).resolve()
                alike.setdefault(file.tensors or file.content, set()).add(path)
    for content, paths in alike.items():
        if len(paths) > 1 and len({_stored(path, whole=True) for path in paths}) > 1:
            for each in revisions:
                for name, file in made[each.name].items():
                    if content in (file.tensors, file.content):
                        made[each.name][name] = _stored(Path(each.place, name), whole=True)
    return made


def _files(revision: Revision) -> Files:
    return {
        path.name: _stored(path)
        for path in sorted(Path(revision.place).iterdir())
        if path.is_file() and not path.name.startswith(".")
    }


def _stored(path: Path, whole: bool = False) -> StoredFile:
    found = os.stat(path)
    whole = whole or found.st_size <= _BLOCK * _BLOCKS
    hashes = _hashes(path.resolve(), found.st_size, found.st_mtime_ns, found.st_ino, whole)
    return StoredFile(found.st_size, *hashes)


@cache
def _hashes(path: Path, size: int, time: int, inode: int, whole: bool) -> tuple[str, str | None]:
    """Hashes of a file and of its tensors; it is unchanged as long as size, time and inode are."""
    with path.open("rb") as file:
        described, start = _described(file, size) if path.suffix == ".safetensors" else (b"", 0)
        content, tensors = hashlib.sha256(), hashlib.sha256(described)
        file.seek(0)
        if whole:
            head = file.read(start)
            content.update(head)
            while block := file.read(1 << 20):
                content.update(block)
                tensors.update(block)
        else:
            content.update(str(size).encode())
            tensors.update(str(size - start).encode())
            for number in range(_BLOCKS):  # the first and the last bytes among them
                for found, first in ((content, 0), (tensors, start)):
                    file.seek(first + (size - first - _BLOCK) * number // (_BLOCKS - 1))
                    found.update(file.read(_BLOCK))
    kind = "sha256:" if whole else _PARTS
    return kind + content.hexdigest(), f"tensors-{kind}{tensors.hexdigest()}" if start else None


def _described(file: BinaryIO, size: int) -> tuple[bytes, int]:
    """Names, shapes and places of tensors, and where their bytes begin; 0 if nothing says so.

    A file begins with the length of its JSON in 8 bytes, the lowest first.
    """
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(length)) if length <= size - 8 else None
    except ValueError:  # of what is no safetensors file, all bytes count
        header = None
    if not isinstance(header, dict):
        return b"", 0
    header.pop("__metadata__", None)
    return json.dumps(header, sort_keys=True).encode(), 8 + length
