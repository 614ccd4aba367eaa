"""A long question in several climbs, so that an interrupt finds something done.

A climb has measured nothing before its last layer. Where the model is in memory, a plain run more
costs little beside thousands of variants: so cells are divided into stretches of equal work, those
of upper layers first, and each goes up by itself. Where layers are read from files, everything goes
up at once, for each climb reads all of them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

MOST = 8
"""Climbs of one question."""
FULL = 4
"""Groups in each block of a climb, at least on the average: fewer leave a device less to do."""
SHARE = 0.03
"""Of the work, what plain runs may take that are made for each climb."""


def stretches(model: HookedModel, costs: Tensor, plain: int, group: int) -> list[slice]:
    """Stretches of about the same cost, the last one first.

    Args:
        model: that is asked.
        costs: of each cell, in tokens times blocks ``[cell]``, with those of lower layers first.
        plain: the same of the plain runs.
        group: the same of a full group in every block.
    """
    total = int(costs.sum())
    count = min(MOST, total // max(1, FULL * group), int(SHARE * total) // max(1, plain))
    if count < 2 or model.backbone.store is not None:
        return [slice(0, len(costs))]
    marks = total * torch.arange(1, count) // count
    cuts = [0, *torch.searchsorted(costs.cumsum(0), marks).tolist(), len(costs)]
    return [slice(first, last) for first, last in reversed(list(pairwise(cuts))) if first < last]
