"""Positions as people name them: counted in each text's own tokens, wherever it is padded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.selections import one_each

TokenPosition = int | Sequence[int] | Tensor
"""A position in each text's own tokens (0 is the first, -1 the last); or one for each text."""
TextPosition = TokenPosition | str
"""A ``TokenPosition``; or ``"mean"``, over all positions of a text."""


def positions(pos: TextPosition, lengths: Sequence[int]) -> list[int]:
    """One position, from 0, for each text.

    Args:
        pos: one for all texts, or one for each.
        lengths: how many tokens each text has.

    Raises:
        InputError: no whole numbers, another number of them than one or one for each text, or a
            text has no such position.
    """
    if isinstance(pos, str):
        raise InputError(f"pos={pos!r}; expected a position, 'mean', or a list of positions")
    given = one_each("pos", pos, len(lengths), InputError)
    for row, (at, length) in enumerate(zip(given, lengths, strict=True)):
        if not -length <= at < length:
            raise InputError(f"text {row} has {length} tokens and no position {at}")
    return [at % length for at, length in zip(given, lengths, strict=True)]
