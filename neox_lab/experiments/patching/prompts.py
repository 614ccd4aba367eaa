"""Pairs of prompts, side by side: tokens, padding, which position belongs to which.

Texts of different lengths are padded on the left, so that the same column is the same distance
from the end. Within a pair both prompts must have the same length, unless ``positions`` names the
places that correspond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor

from neox_lab.checks import ids_to_tensor, listed_texts, shown
from neox_lab.data.positions import TokenPosition
from neox_lab.errors import InputError
from neox_lab.notices import tell_of_length
from neox_lab.padding import pad_rows
from neox_lab.selections import one_each

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.hooks.cache import ActivationCache

PromptsLike: TypeAlias = "str | Sequence[str] | Tensor | Mapping[str, Tensor]"
"""Prompts as users give them: a string, a list of strings, token ids ``[batch, pos]``, or a mapping
with ``input_ids`` and ``attention_mask`` ``[batch, pos]``."""

PromptsOrCache: TypeAlias = "PromptsLike | ActivationCache"
"""Prompts, or the cache of a run with as many rows (or one) and positions as there are patched."""

Positions = Mapping[str, TokenPosition | tuple[TokenPosition, TokenPosition]]
"""Names of positions: ``{"subject": 3}``, ``{"subject": [3, 5]}`` for each pair, or
``{"subject": (clean, corrupted)}`` where they differ between the two prompts."""


_READ = {"input_ids", "attention_mask", "token_type_ids"}  # the last says nothing to GPT-NeoX


@dataclass
class Prompts:
    """A batch of prompts.

    Attributes:
        ids: tokens ``[batch, pos]``.
        mask: 1 for text and 0 for padding ``[batch, pos]``; None without padding.
    """

    ids: Tensor
    mask: Tensor | None

    @property
    def own(self) -> Tensor:
        """True for text ``[batch, pos]``."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask > 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [int(count) for count in self.own.sum(dim=1)]

    @property
    def arguments(self) -> dict[str, Tensor]:
        """Arguments of ``forward``."""
        found = {"input_ids": self.ids}
        return found if self.mask is None else found | {"attention_mask": self.mask}

    def part(self, pairs: slice, length: int) -> Prompts:
        """Some pairs, up to column ``length``."""
        mask = None if self.mask is None else self.mask[pairs, :length]
        if mask is not None and bool(mask.bool().all()):
            mask = None
        return Prompts(self.ids[pairs, :length], mask)


def read_prompts(model: HookedModel, given: PromptsLike, name: str) -> Prompts:
    """Tokens and padding from whatever the user gave.

    Args:
        model: with a tokenizer, if texts are given.
        given: see ``PromptsLike``.
        name: of the argument, for errors.

    Raises:
        InputError: something else, no tokens, positions of their own, entries that nobody reads,
            or padding that changes how a text is read, see ``refuse_other_angles``.
        TokenizerError: texts and no tokenizer.
    """
    prepared: Mapping[str, Tensor] = {}
    given = cast(PromptsLike, listed_texts(given))
    if isinstance(given, Mapping):
        try:
            prepared = {key: torch.as_tensor(value) for key, value in given.items()}
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{name} holds what is no tensor: {shown(given)}.") from None
    elif isinstance(given, str | Tensor):
        prepared = model.prepare_inputs(given)
    elif isinstance(given, list | tuple) and given and all(isinstance(t, str) for t in given):
        rows = [model.prepare_inputs(text)["input_ids"][0].tolist() for text in given]
        padded, own = pad_rows(rows, model.config.pad_token_id or 0, "left")
        prepared = {"input_ids": padded, "attention_mask": own}
    ids = prepared.get("input_ids")
    if (
        ids is None
        or ids.dim() != 2
        or ids.is_floating_point()
        or ids.dtype == torch.bool
        or 0 in ids.shape
    ):
        raise InputError(
            f"{name} must be a string, a list of strings, token ids [batch, pos], or a mapping "
            f"with input_ids and attention_mask; got {shown(given, 80)}.{ids_to_tensor(given)}"
        )
    ids = ids.to(model.device).long()
    if "position_ids" in prepared:
        raise InputError(
            f"{name} cannot have position_ids: positions count from 0 here. Give texts that are "
            "packed into one row as the rows of a batch."
        )
    if unknown := sorted(map(str, prepared.keys() - _READ)):
        raise InputError(
            f"{name} has {', '.join(unknown)}, which would be left out; expected input_ids and "
            "attention_mask."
        )
    if isinstance(given, Mapping):  # others are told of where they are made into tokens
        tell_of_length(ids.shape[1], model.config.max_position_embeddings)
    mask = prepared.get("attention_mask")
    if mask is not None:
        if mask.shape != ids.shape:
            raise InputError(
                f"The attention_mask of {name} has shape {list(mask.shape)}; expected "
                f"{list(ids.shape)}."
            )
        mask = None if bool(mask.bool().all()) else mask.to(model.device)
    prompts = Prompts(ids, mask)
    refuse_other_angles(model, prompts.own, name)
    return prompts


def refuse_other_angles(model: HookedModel, own: Tensor, name: str) -> None:
    """Raise if a text would be read otherwise alone, because angles depend on the longest text.

    Args:
        model: what reads them.
        own: True for text ``[batch, pos]``.
        name: of the argument, for errors.

    Raises:
        InputError: it would.
    """
    rotary, width = model.backbone.rotary, own.shape[1]
    for row, length in enumerate(own.sum(dim=1).tolist()):
        if rotary.regime(length) != rotary.regime(width):
            kind = model.config.rope_parameters["rope_type"]
            raise InputError(
                f"{name}: text {row} has {length} tokens and is padded to {width}, where positions "
                f"turn by other angles (rope_type {kind!r}), so the text would be read otherwise "
                "than alone. Ask about texts of one length at a time."
            )


def check_pairs(model: HookedModel, clean: Prompts, corrupted: Prompts, named: bool) -> None:
    """Check that prompts correspond, pair by pair.

    Args:
        model: for the tokens in messages.
        clean: the prompts with the behaviour.
        corrupted: those without it.
        named: whether positions are named, so that lengths may differ.

    Raises:
        InputError: another number of prompts, lengths that differ, or equal prompts.
    """
    if len(clean.ids) != len(corrupted.ids):
        raise InputError(
            f"There are {len(clean.ids)} clean and {len(corrupted.ids)} corrupted prompts; each "
            "clean prompt needs its own corrupted one."
        )
    lengths = list(zip(clean.lengths, corrupted.lengths, strict=True))
    unequal = [row for row, (ours, theirs) in enumerate(lengths) if ours != theirs]
    if unequal and not named:
        row = unequal[0]
        shown = [_pieces(model, side.ids[row][side.own[row]]) for side in (clean, corrupted)]
        raise InputError(
            f"Pair {row}: the clean prompt has {lengths[row][0]} tokens, {shown[0]}, the corrupted "
            f"one {lengths[row][1]}, {shown[1]}. Patching puts a position of one at the same "
            "position of the other, so change words that are as many tokens, or name the "
            "positions that correspond: positions={'subject': (clean, corrupted)}."
        )
    if named:
        return
    if clean.ids.shape != corrupted.ids.shape or not torch.equal(clean.own, corrupted.own):
        raise InputError(
            "Clean and corrupted prompts must be padded in the same places; got shapes "
            f"{list(clean.ids.shape)} and {list(corrupted.ids.shape)}."
        )
    same = ((clean.ids == corrupted.ids) | ~clean.own).all(dim=1)
    if bool(same.any()):
        row = int(same.nonzero()[0])
        raise InputError(
            f"Pair {row}: clean and corrupted prompt are the same tokens, "
            f"{_pieces(model, clean.ids[row][clean.own[row]])}, so there is nothing to patch."
        )


def _pieces(model: HookedModel, ids: Tensor) -> list[str] | list[int]:
    """Tokens for a message."""
    numbers: list[int] = ids[:50].tolist()  # of a page the beginning will do
    return numbers if model.tokenizer is None else model.tokenizer.pieces(numbers)


def may_differ(source: Prompts | None, patched: Prompts, reads: Tensor | None) -> Tensor:
    """False where a patch is known to change nothing that is read, ``[batch, pos]``.

    Left of the first difference both runs are equal; and no text looks at padding. (Padding in
    front of a text looks ahead, so what is there may differ in any case.)

    Args:
        source: the prompts that patches come from; None if they come from elsewhere.
        patched: the prompts that get patched.
        reads: columns that the metric reads ``[batch, read]``; None for all.
    """
    known = torch.ones_like(patched.own)
    if source is not None:
        differs = (source.ids != patched.ids) | (source.own != patched.own)
        known = differs.cumsum(dim=1) > 0
    if reads is None:
        return known | ~patched.own
    return known & patched.own.scatter(1, reads, True)


def patched_columns(positions: Positions, patched: Prompts) -> Tensor:
    """Columns of named positions in the prompts that get patched, ``[place, batch]``.

    Args:
        positions: see ``Positions``, pairs being ``(source, patched)``; they count each text's own
            tokens, -1 is the last.
        patched: the prompts.

    Raises:
        InputError: no position, or one that a text does not have.
    """
    _check_named(positions)
    return torch.stack(
        [
            position_columns(patched, _side(where, 1, name), name)
            for name, where in positions.items()
        ]
    )


def _check_named(positions: object) -> None:
    if not isinstance(positions, Mapping) or not all(map(_is_name, positions)):
        raise InputError(
            f"positions={shown(positions)}; expected places by name, such as {{'last': -1}}."
        )
    if not positions:
        raise InputError("positions is empty; name at least one, such as {'last': -1}.")


def _is_name(name: object) -> bool:
    """Texts, and whole numbers, which count as a name too."""
    return isinstance(name, str) or (isinstance(name, int) and not isinstance(name, bool))


def source_columns(positions: Positions, source: Prompts, patched: Prompts) -> Tensor:
    """For each column of the patched prompts the one of the source's that is patched in.

    Args:
        positions: see ``patched_columns``.
        source: the prompts that patches come from.
        patched: the prompts that get patched.

    Returns:
        Columns ``[batch, pos]``; those without a name stay where they are.

    Raises:
        InputError: a position that a text does not have, or one that gets two different patches.
    """
    _check_named(positions)
    batch, length = patched.ids.shape
    columns = torch.arange(length, device=patched.ids.device).repeat(batch, 1)
    taken: dict[tuple[int, int], int] = {}
    for (name, where), into in zip(
        positions.items(), patched_columns(positions, patched).tolist(), strict=True
    ):
        out_of = position_columns(source, _side(where, 0, name), name).tolist()
        for row, (column, found) in enumerate(zip(into, out_of, strict=True)):
            if taken.setdefault((row, column), found) != found:
                raise InputError(
                    f"positions[{name!r}] is a place of text {row} that another name patches from "
                    "elsewhere. Sweep them one by one."
                )
            columns[row, column] = found
    return columns


def are_moved(source: Prompts, patched: Prompts, columns: Tensor) -> bool:
    """Whether patches come from other columns than those they go to, or from longer texts.

    Args:
        source: the prompts that patches come from.
        patched: the prompts that get patched.
        columns: where they come from ``[batch, pos]``, see ``source_columns``.
    """
    straight = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    return source.lengths != patched.lengths or not torch.equal(columns, straight)


def _side(
    where: TokenPosition | tuple[TokenPosition, TokenPosition], side: int, name: str
) -> TokenPosition:
    """The source's (0) or the patched prompts' (1) part of a named position."""
    if not isinstance(where, tuple):
        return where
    if len(where) != 2:
        raise InputError(
            f"positions[{name!r}] is {where!r}; a tuple is a pair of positions in the two prompts. "
            "Write a list for one position for each pair of prompts."
        )
    return where[side]


def position_columns(prompts: Prompts, where: TokenPosition, name: str) -> Tensor:
    """The columns ``[batch]`` of a position counted in each text's own tokens."""
    given = one_each(f"positions[{name!r}]", where, len(prompts.ids), InputError)
    found = []
    for row, (own, pos) in enumerate(zip(prompts.own, given, strict=True)):
        columns = own.nonzero().flatten()
        if not -len(columns) <= pos < len(columns):
            raise InputError(
                f"positions[{name!r}] is {pos}, but text {row} has {len(columns)} tokens."
            )
        found.append(columns[pos])
    return torch.stack(found)
