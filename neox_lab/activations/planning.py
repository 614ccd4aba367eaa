"""How large a collection will be, before it begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from neox_lab.activations.documents import Documents, chunks, countable, documents, kept
from neox_lab.activations.manifest import COLUMNS, DTYPES
from neox_lab.checks import COUNT, check, one_of, or_none, require_model, whole
from neox_lab.data.activations import row_shapes, site_names
from neox_lab.errors import CheckpointError, InputError
from neox_lab.family.contract import HookedModel
from neox_lab.files import StrPath, free_space, path_of
from neox_lab.sizes import size_in_words


@dataclass(frozen=True)
class Choices:
    """What is kept of the texts, checked.

    Attributes:
        sites: the shape of one row at every site.
        dtype: of the activations.
        pos: ``all`` or ``last``.
        skip_first: positions at the start of every chunk that are left out.
        context: the longest chunk.
        max_tokens: where the texts are cut off, or None.
    """

    sites: dict[str, tuple[int, ...]]
    dtype: str
    pos: str
    skip_first: int
    context: int
    max_tokens: int | None

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row takes."""
        numbers = sum(math.prod(shape) for shape in self.sites.values())
        columns = sum(dtype.itemsize for dtype in COLUMNS.values())
        return numbers * DTYPES[self.dtype].itemsize + columns


def choices(
    model: HookedModel,
    sites: str | Sequence[str],
    dtype: str,
    pos: str,
    skip_first: int,
    context: int | None,
    max_tokens: int | None,
) -> Choices:
    """The arguments of ``collect`` that say what is kept, checked.

    Raises:
        InputError: this is no model, or one of them is not what it can be.
        HookNameError: no site has that name.
    """
    require_model(model)
    longest = model.config.max_position_embeddings
    context = check("context", context, or_none(whole(least=1, most=longest)), InputError)
    return Choices(
        sites=row_shapes(model, site_names(model, sites)),
        dtype=check("dtype", _dtype_name(dtype), one_of(*DTYPES), InputError),
        pos=check("pos", pos, one_of("all", "last"), InputError),
        skip_first=check("skip_first", skip_first, whole(least=0), InputError),
        context=longest if context is None else context,
        max_tokens=check("max_tokens", max_tokens, or_none(COUNT), InputError),
    )


def _dtype_name(dtype: object) -> object:
    return next((name for name, each in DTYPES.items() if each is dtype), dtype)


@dataclass(frozen=True)
class Plan:
    """How large a collection will be.

    Attributes:
        documents: how many texts there are; None if they can be read only once.
        tokens: how many tokens they have; the most there can be, if ``exact`` is False.
        rows: how many rows will be stored; likewise. None if nothing bounds them.
        bytes_per_row: bytes that a row takes.
        free: bytes that are free on the disk.
        exact: the texts were counted.
    """

    documents: int | None
    tokens: int | None
    rows: int | None
    bytes_per_row: int
    free: int
    exact: bool

    @property
    def size(self) -> int | None:
        """Bytes of all rows; None if nothing bounds them."""
        return None if self.rows is None else self.rows * self.bytes_per_row

    @property
    def fits(self) -> bool:
        """Whether the disk has room; True if nobody knows."""
        return self.size is None or self.size <= self.free

    def __str__(self) -> str:
        each = f"{size_in_words(self.bytes_per_row)} a row"
        free = f"{size_in_words(self.free)} are free"
        if self.size is None:
            return f"a number of rows that nobody knows; {each}, {free}. max_tokens= bounds them."
        most = "" if self.exact else "at most "
        of = "" if self.documents is None else f" of {self.documents:,} documents"
        return f"{most}{self.rows:,} rows{of}, {size_in_words(self.size)} ({each}); {free}"

    def __repr__(self) -> str:
        return f"Plan: {self}"


def plan(
    model: HookedModel,
    texts: Documents,
    sites: str | Sequence[str],
    to: StrPath = ".",
    *,
    dtype: str = "float32",
    pos: str = "all",
    skip_first: int = 0,
    context: int | None = None,
    max_tokens: int | None = None,
) -> Plan:
    """How large a collection will be; the arguments are those of ``collect``.

    Texts in a list, or in a data set with a length, are counted by the tokenizer. An iterator is
    left untouched: for it
    ``max_tokens`` gives the most there can be.

    Args:
        model: whose tokenizer and width count.
        texts: see ``collect``.
        sites: see ``collect``.
        to: on which disk.
        dtype: see ``collect``.
        pos: see ``collect``.
        skip_first: see ``collect``.
        context: see ``collect``.
        max_tokens: see ``collect``.

    Raises:
        InputError: an argument is not what it can be, or there is no text.
        HookNameError: no site has that name.
    """
    wanted = choices(model, sites, dtype, pos, skip_first, context, max_tokens)
    return _planned(model, texts, wanted, path_of("to", to).expanduser())


def _planned(model: HookedModel, texts: Documents, wanted: Choices, to: Path) -> Plan:
    free = free_space(to)
    if not countable(texts):
        most = wanted.max_tokens
        return Plan(None, most, most, wanted.bytes_per_row, free, exact=False)
    read = tokens = rows = 0
    for chunk in chunks(documents(model, texts), wanted.context, wanted.max_tokens):
        read = chunk.document + 1
        tokens += len(chunk.ids)
        rows += len(kept(chunk, wanted.pos, wanted.skip_first))
    return Plan(read, tokens, rows, wanted.bytes_per_row, free, exact=True)


def refuse_no_room(
    model: HookedModel, texts: Documents, wanted: Choices, to: Path, there: int
) -> int | None:
    """Raise unless the disk has room for the rows of all texts.

    Counting takes a second reading of the texts, so it is done only if they could be too many:
    no text has more tokens than bytes, but for the few that a tokenizer puts around it.

    Args:
        model: see ``collect``.
        texts: see ``collect``.
        wanted: see ``collect``.
        to: the folder.
        there: bytes of earlier rows, which need no room any more.

    Returns:
        The most tokens there can be, None if nothing bounds them.

    Raises:
        CheckpointError: it has none.
    """
    most = wanted.max_tokens
    if countable(texts):
        held = _most_tokens(texts)
        most = held if most is None else min(held, most)
    if most is None:
        return None
    room = free_space(to) + there
    if most * wanted.bytes_per_row <= room:
        return most
    planned = _planned(model, texts, wanted, to)
    if planned.size is not None and planned.size > room:
        raise CheckpointError(
            f"The disk of {str(to)!r} has no room for {planned}. Nothing was written. Store fewer "
            "sites or positions, in float16, of fewer texts (max_tokens=), or on another disk."
        )
    return planned.tokens


def _most_tokens(texts: Documents) -> int:
    if isinstance(texts, Tensor):
        return texts.numel()
    total = 0
    for row in [texts] if isinstance(texts, str) else texts:
        content = row.get("text", row.get("input_ids")) if isinstance(row, Mapping) else row
        if isinstance(content, str):
            total += len(content.encode("utf-8", "replace")) + 2
        else:
            total += len(content) if isinstance(content, Sized) else 0
    return total
