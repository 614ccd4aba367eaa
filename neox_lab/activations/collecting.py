"""Writing activations of many texts to a folder, in one pass that can be interrupted."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from neox_lab.activations import manifest as manifests
from neox_lab.activations.documents import Chunk, Documents, chunks, digest, documents, windows
from neox_lab.activations.manifest import MANIFEST, Manifest, Shard
from neox_lab.activations.planning import Choices, choices, refuse_no_room
from neox_lab.activations.stored import Stored, open
from neox_lab.activations.writing import (
    NotFinite,
    ShardWriter,
    Window,
    forget,
    name_wrong,
    noted,
    without_files,
    write_shard,
)
from neox_lab.checks import COUNT, SWITCH, check, some_of
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.executors import EXECUTOR, AnyExecutor, run_pieces
from neox_lab.family.contract import HookedModel
from neox_lab.family.origins import origin_of
from neox_lab.files import StrPath, path_of, remove_unfinished
from neox_lab.model.identity import identity, refuse_another
from neox_lab.progress import Progress
from neox_lab.work_folders import work_folder

SHARD_BYTES = 2**28
"""How large a file should be."""
FEWEST, MOST = 2**12, 2**18
"""Tokens that are read for one file: enough for batches of texts of similar length, and few enough
to be held in memory and to be read again after an interruption."""
GROWTH = 100
"""A manifest of so many files is written again when there is one more, with workers."""


def collect(
    model: HookedModel,
    texts: Documents,
    sites: str | Sequence[str],
    to: StrPath,
    *,
    dtype: str = "float32",
    pos: str = "all",
    skip_first: int = 0,
    context: int | None = None,
    max_tokens: int | None = None,
    batch_size: int = 32,
    executor: AnyExecutor | None = None,
    progress: bool = True,
) -> Stored:
    """Write the activations of texts at some sites to a folder, in one pass over the texts.

    A call that was interrupted, even killed, goes on where it stopped when it is made again with
    the same texts: what was read is compared and not computed again. The files are then those of
    a call that was not interrupted. Hooks and spliced functions that are in place act; the same
    must be in place when it goes on.

    Args:
        model: any of the classes, with a tokenizer if there are texts.
        texts: strings, or token ids, or rows of a data set that hold one of them as ``text`` or
            ``input_ids`` (where ``attention_mask`` is 0 they are padding); in a list or whatever
            can be iterated, read a few at a time. A tensor ``[batch, pos]`` has a document in each
            row, without padding.
        sites: such as ``"resid_post"`` (of every layer), a hook name, a glob, or several.
        to: the folder; made if need be.
        dtype: of what is stored: ``float32``, ``float16`` or ``bfloat16``.
        pos: ``all`` positions, or the ``last`` of each document; one that ``max_tokens`` cuts off
            has none.
        skip_first: so many positions at the start of every chunk are left out; activations at
            position 0 are unlike all others.
        context: a document of more tokens is cut into chunks of so many, which the model reads each
            from position 0 on; None for as many as the model can read. A document is never read
            together with another one.
        max_tokens: stop after so many tokens, within a document if need be.
        batch_size: chunks in one forward pass.
        executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers write a
            file each at a time, on this machine or on others (``docs/many-machines.md``). They load
            the model for themselves, from where it was loaded here, and write into the same folder.
            The files are the same, byte for byte, where processors and threads are. None writes
            here, one after another.
        progress: show how far it is.

    Returns:
        What ``open`` returns.

    Raises:
        CheckpointError: the folder belongs to another model or to other texts or choices, holds
            other things, another process writes into it, or the disk has no room: what was written
            then can be read, and the same call goes on when there is room.
        InputError: there is no token, an argument is not what it can be, dropout is on, or workers
            could not load the model.
        HookNameError: no site has that name.
        LostWorkerError: the worker of a file was lost again and again; the same call goes on.
    """
    refuse_dropout(model)
    wanted = choices(model, sites, dtype, pos, skip_first, context, max_tokens)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    progress = check("progress", progress, SWITCH, InputError)
    check("executor", executor, EXECUTOR, InputError)
    origin = None if executor is None else origin_of(model)
    folder = path_of("to", to).expanduser()
    stream, ahead = _begun(documents(model, texts))
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    most = refuse_no_room(model, texts, wanted, folder, there)
    with (
        _own(folder, _manifest(model, wanted)) as manifest,
        Progress(most, "token", silent=not progress) as bar,
    ):
        read = chunks(chain(ahead, stream), wanted.context, wanted.max_tokens)
        left = _Left(read, folder, manifest, bar)
        if executor is None or origin is None:
            made = _here(model, left, folder, manifest, batch_size, bar)
        else:
            write = ShardWriter(origin, folder.absolute(), without_files(manifest), batch_size)
            made = _elsewhere(executor, write, left, manifest, bar)
        _keep(made, left, folder, manifest, each=executor is None)
    return open(folder)


def _begun(stream: Iterator[list[int]]) -> tuple[Iterator[list[int]], list[list[int]]]:
    """The documents, and those read ahead: up to the first that has a token.

    Raises:
        InputError: none has.
    """
    ahead: list[list[int]] = []
    for ids in stream:
        ahead.append(ids)
        if ids:
            return stream, ahead
    raise InputError("there is no token in the texts, so there is nothing to collect")


def _manifest(model: HookedModel, wanted: Choices) -> Manifest:
    """The manifest of a new collection."""
    tokens = SHARD_BYTES // wanted.bytes_per_row
    return Manifest(
        format=manifests.FORMAT,
        library=version("neox_lab"),
        model=model.config.name_or_path,
        revision=model.revision,
        identity=identity(model),
        sites={name: list(shape) for name, shape in wanted.sites.items()},
        dtype=wanted.dtype,
        pos=wanted.pos,
        skip_first=wanted.skip_first,
        context=wanted.context,
        max_tokens=wanted.max_tokens,
        shard_tokens=min(max(tokens, FEWEST), MOST),
        hooks=model.hook_stack.changing,
    )


@contextmanager
def _own(folder: Path, new: Manifest) -> Iterator[Manifest]:
    """The folder, locked, and its manifest: a new one, or that of the same collection.

    Raises:
        CheckpointError: it holds something else, or another process writes into it.
    """
    with work_folder(folder, MANIFEST, "collection"):
        remove_unfinished(folder)
        if (folder / MANIFEST).exists():
            yield _same(folder, new)
        else:
            new.write(folder)
            yield new


def _same(folder: Path, new: Manifest) -> Manifest:
    """The manifest in the folder, if it is of the same model and choices, its files intact.

    Raises:
        CheckpointError: it is not.
    """
    old = open(folder).manifest
    refuse_another(old.identity, new.identity, f"What is in {str(folder)!r}")
    names = ("sites", "dtype", "pos", "skip_first", "context", "max_tokens", "hooks")
    differ = [
        f"{name}={getattr(old, name)!r}, now {getattr(new, name)!r}"
        if name != "sites"
        else f"sites {', '.join(old.sites)}, now {', '.join(new.sites)}"
        for name in names
        if getattr(old, name) != getattr(new, name)
    ]
    if differ:
        raise CheckpointError(
            f"{str(folder)!r} was collected with {'; '.join(differ)}. Give another folder, or ask "
            "for the same."
        )
    return old


def _keep(
    made: Generator[tuple[Shard, NotFinite], None, None],
    left: _Left,
    folder: Path,
    manifest: Manifest,
    each: bool,
) -> None:
    """Take files into the manifest as they are made, until all texts are there.

    Args:
        made: the files.
        left: what they are made of.
        folder: where the manifest is.
        manifest: is written with every file; or, as workers leave notes of theirs, whenever it has
            grown by a part in ``GROWTH``, since hundreds of thousands of files make it long.
        each: with every file.

    Raises:
        CheckpointError: the folder holds activations of other texts, or the disk has no room.
        LostWorkerError: the worker of a file was lost again and again.
    """
    written = len(manifest.shards)
    with _room_explained(folder), closing(made):
        for shard, wrong in made:
            manifest.shards.append(shard)
            manifest.documents, tokens = left.read.pop(len(manifest.shards) - 1)
            manifest.tokens += tokens
            name_wrong(wrong, manifest)
            if each or len(manifest.shards) - written > written // GROWTH:
                manifest.write(folder)
                forget(folder, range(written, len(manifest.shards)))
                written = len(manifest.shards)
    if left.number < len(manifest.shards):
        raise _other_texts(folder)
    manifest.complete = True
    manifest.write(folder)
    forget(folder, range(written, len(manifest.shards)))
    if left.empty:
        warnings.warn(
            f"Documents without a token have no rows: {some_of(left.empty)}.",
            NeoxLabWarning,
            stacklevel=3,
        )


class _Left:
    """The windows that a folder does not hold yet, and what is known of those that were read.

    Attributes:
        number: how many windows were read.
        empty: documents without a token.
        read: of every window that is to be written, the documents up to its end, and its tokens.
    """

    def __init__(
        self, stream: Iterator[Chunk], folder: Path, manifest: Manifest, bar: Progress
    ) -> None:
        self.number = 0
        self.empty: list[str] = []
        self.read: dict[int, tuple[int, int]] = {}
        self._stream, self._folder, self._manifest, self._bar = stream, folder, manifest, bar
        self._done = list(manifest.shards)

    def __iter__(self) -> Iterator[tuple[int, list[Chunk]]]:
        """Numbers and windows.

        Raises:
            CheckpointError: the folder holds activations of other texts.
        """
        for window in windows(self._stream, self._manifest.shard_tokens):
            self.empty += [str(chunk.document) for chunk in window if not chunk.ids]
            number, tokens = self.number, sum(len(chunk.ids) for chunk in window)
            if number < len(self._done) or self._manifest.complete:
                same = number < len(self._done) and self._done[number].tokens == digest(window)
                if not same:
                    raise _other_texts(self._folder)
                self._bar.update(tokens)
                self.number += 1
                continue
            self.number += 1
            self.read[number] = (window[-1].document + 1, tokens)
            yield number, window


def _here(
    model: HookedModel,
    left: _Left,
    folder: Path,
    manifest: Manifest,
    batch_size: int,
    bar: Progress,
) -> Generator[tuple[Shard, NotFinite], None, None]:
    """The files that are missing, written one after another."""
    for number, window in left:
        found = noted(folder, number, digest(window))
        if found is None:
            yield write_shard(model, window, folder, manifest, number, batch_size, bar)
        else:
            bar.update(left.read[number][1])
            yield found, []


def _elsewhere(
    executor: AnyExecutor, write: ShardWriter, left: _Left, manifest: Manifest, bar: Progress
) -> Generator[tuple[Shard, NotFinite], None, None]:
    """The files that are missing, written by workers; in their order, whoever is first."""
    first = len(manifest.shards)
    ready: dict[int, tuple[Shard, NotFinite]] = {}
    pieces = (Window.of(number, window) for number, window in left)
    sent = run_pieces(executor, write, pieces, called=lambda window: f"file {window.number}")
    with closing(sent):
        for at, answer in sent:
            ready[first + at] = answer
            bar.update(left.read[first + at][1])
            while len(manifest.shards) in ready:
                yield ready.pop(len(manifest.shards))
    remove_unfinished(write.folder)  # of workers that were lost


def _other_texts(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(folder)!r} holds activations of other texts. To go on there, give the texts that it "
        "was begun with, in the same order; for others give another folder."
    )


@contextmanager
def _room_explained(folder: Path) -> Iterator[None]:
    """Say what to do where the disk is full.

    Raises:
        CheckpointError: it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        there = manifests.read(folder)  # this one may say more than could be written
        raise CheckpointError(
            f"The disk of {str(folder)!r} is full. {there.rows:,} rows in {len(there.shards)} "
            "files are there and can be read with nl.activations.open; the same call goes on from "
            "there once there is room."
        ) from error
