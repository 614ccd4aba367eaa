"""Rows of different length as one tensor.

    ids, mask = pad_rows([[5, 7, 9], [8]], fill=0)
    # ids [[5, 7, 9], [8, 0, 0]], mask [[1, 1, 1], [1, 0, 0]]

Padding on the right is never seen by causal attention. Padding on the left needs the mask, and lets
every row end in the same column, where generation goes on and prompts are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


def pad_row(row: Sequence[Item], length: int, fill: Item, side: str = "right") -> list[Item]:
    """``row`` and as many ``fill`` as make it ``length`` long."""
    missing = [fill] * (length - len(row))
    return [*row, *missing] if side == "right" else [*missing, *row]


def pad_rows(
    rows: Sequence[Sequence[int]], fill: int, side: str = "right"
) -> tuple[Tensor, Tensor]:
    """Rows of whole numbers as one tensor, as long as the longest.

    Args:
        rows: token ids of each text, or labels; at least one row.
        fill: what stands where a row has nothing.
        side: where it stands, "right" or "left".

    Returns:
        The rows ``[batch, pos]`` and the attention mask ``[batch, pos]``, 1 for what was there and
        0 for what was filled up; both int64 on the CPU.
    """
    longest = max(map(len, rows))
    padded = torch.tensor([pad_row(row, longest, fill, side) for row in rows], dtype=torch.long)
    mask = torch.tensor([pad_row([1] * len(row), longest, 0, side) for row in rows])
    return padded.reshape(len(rows), longest), mask.long().reshape(len(rows), longest)


def mask_of(ids: Tensor, pad_token_id: int | None, side: str = "right") -> Tensor:
    """The attention mask of rows that were filled up: 0 for padding at one end, 1 for the rest.

    Args:
        ids: token ids ``[batch, pos]``.
        pad_token_id: what rows were filled up with; the same token inside a text counts as text.
        side: where it stands, "right" or "left".
    """
    text = ids != (-1 if pad_token_id is None else pad_token_id)
    if side == "left":
        return (text.cumsum(dim=-1) > 0).to(ids.dtype)
    return (text.flip(-1).cumsum(dim=-1).flip(-1) > 0).to(ids.dtype)


def joined_rows(
    texts: Sequence[Sequence[int]], length: int, separator: int, fill: int | None = None
) -> Tensor:
    """Texts one after another, cut into rows of one length.

    Args:
        texts: token ids of each.
        length: tokens of a row; what does not fill the last one is left out.
        separator: stands between two texts.
        fill: fills up the only row if the texts are shorter; None for ``separator``.

    Returns:
        ``[row, length]``, int64 on the CPU; no rows without texts.
    """
    joined = [token for text in texts for token in (*text, separator)][:-1]
    if joined and len(joined) < length:
        joined = pad_row(joined, length, separator if fill is None else fill)
    rows = len(joined) // length
    return torch.tensor(joined[: rows * length], dtype=torch.long).view(rows, length)
