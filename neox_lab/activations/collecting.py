"""Writing activations of many texts to a folder, in one pass that can be interrupted."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from itertools import accumulate, chain
from pathlib import Path

import torch
from torch import Tensor

from neox_lab.activations import manifest as manifests
from neox_lab.activations.documents import (
    Chunk,
    Documents,
    chunks,
    digest,
    documents,
    kept,
    prefix_checksums,
    windows,
)
from neox_lab.activations.manifest import MANIFEST, Manifest, Shard
from neox_lab.activations.planning import Choices, choices, refuse_no_room
from neox_lab.activations.shards import checksum, room
from neox_lab.activations.stored import Stored, open
from neox_lab.checks import COUNT, SWITCH, check, name_not_finite, some_of
from neox_lab.data.activations import read_batch
from neox_lab.data.batches import by_length
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.family.contract import HookedModel
from neox_lab.files import StrPath, alone, path_of, remove_unfinished, staged_file
from neox_lab.model.identity import identity, refuse_another
from neox_lab.progress import Progress

SHARD_BYTES = 2**28
"""How large a file should be."""
FEWEST, MOST = 2**12, 2**18
"""Tokens that are read for one file: enough for batches of texts of similar length, and few enough
to be held in memory and to be read again after an interruption."""


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
        progress: show how far it is.

    Returns:
        What ``open`` returns.

    Raises:
        CheckpointError: the folder belongs to another model or to other texts or choices, holds
            other things, another process writes into it, or the disk has no room: what was written
            then can be read, and the same call goes on when there is room.
        InputError: there is no token, an argument is not what it can be, or dropout is on.
        HookNameError: no site has that name.
    """
    refuse_dropout(model)
    wanted = choices(model, sites, dtype, pos, skip_first, context, max_tokens)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    progress = check("progress", progress, SWITCH, InputError)
    folder = path_of("to", to).expanduser()
    stream, ahead = _begun(documents(model, texts))
    there = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    most = refuse_no_room(model, texts, wanted, folder, there)
    with (
        _own(folder, _manifest(model, wanted)) as manifest,
        Progress(most, "token", silent=not progress) as bar,
    ):
        read = chunks(chain(ahead, stream), wanted.context, wanted.max_tokens)
        _read(model, read, folder, manifest, batch_size, bar)
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
    folder.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and MANIFEST not in others:
        raise CheckpointError(
            f"{str(folder)!r} holds other things ({', '.join(sorted(others)[:3])}); give a new or "
            "empty folder, or that of an earlier collection."
        )
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(folder / ".lock"))
        except BlockingIOError as error:
            raise CheckpointError(
                f"Another collection writes into {str(folder)!r}; wait for it, or give another "
                "folder."
            ) from error
        remove_unfinished(folder)
        if MANIFEST in others:
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


def _read(
    model: HookedModel,
    stream: Iterator[Chunk],
    folder: Path,
    manifest: Manifest,
    batch_size: int,
    bar: Progress,
) -> None:
    """Write what the folder does not hold yet.

    Raises:
        CheckpointError: it holds activations of other texts, or the disk has no room.
    """
    done, number, empty = len(manifest.shards), 0, []
    for window in windows(stream, manifest.shard_tokens):
        told = digest(window)
        empty += [str(chunk.document) for chunk in window if not chunk.ids]
        if number < done or manifest.complete:
            if number >= done or manifest.shards[number].tokens != told:
                raise _other_texts(folder)
        else:
            with _room_explained(folder, manifest):
                manifest.shards.append(_shard(model, window, folder, manifest, batch_size, bar))
                manifest.documents = window[-1].document + 1
                manifest.tokens += sum(len(chunk.ids) for chunk in window)
                manifest.write(folder)
        number += 1
        bar.update(sum(len(chunk.ids) for chunk in window) if number <= done else 0)
    if number < done:
        raise _other_texts(folder)
    manifest.complete = True
    manifest.write(folder)
    if empty:
        warnings.warn(
            f"Documents without a token have no rows: {some_of(empty)}.",
            NeoxLabWarning,
            stacklevel=3,
        )


def _other_texts(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{str(folder)!r} holds activations of other texts. To go on there, give the texts that it "
        "was begun with, in the same order; for others give another folder."
    )


@contextmanager
def _room_explained(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Say what to do where the disk is full.

    Raises:
        CheckpointError: it is.
    """
    done, rows = len(manifest.shards), manifest.rows
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            f"The disk of {str(folder)!r} is full. {rows:,} rows in {done} files are there and "
            "can be read with nl.activations.open; the same call goes on from there once there "
            "is room."
        ) from error


def _shard(
    model: HookedModel,
    window: list[Chunk],
    folder: Path,
    manifest: Manifest,
    batch_size: int,
    bar: Progress,
) -> Shard:
    """Write one file, its rows in the order of the chunks.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / f"{len(manifest.shards):06d}.safetensors"
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
            bar.update(sum(len(window[at].ids) for at in batch))
        _name_not_finite(tensors, manifest)
        size, told = temporary.stat().st_size, checksum(temporary)
    return Shard(path.name, ends[-1], size, digest(window), told)


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


def _name_not_finite(tensors: dict[str, Tensor], manifest: Manifest) -> None:
    for name in manifest.sites:
        values = tensors[name].flatten(1)
        if bool(values.sum(dtype=torch.float32).isfinite()):  # one quick look at all of them
            continue
        bad = (~values.isfinite().all(dim=1)).nonzero()[:, 0]
        where = zip(tensors["document"][bad].tolist(), tensors["pos"][bad].tolist(), strict=True)
        places = (f"document {document} position {pos}" for document, pos in where)
        name_not_finite(f"What was collected at {name!r} in {manifest.dtype}", places)
