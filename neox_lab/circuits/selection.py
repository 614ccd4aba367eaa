"""From scores to a circuit, and circuits at random to compare with."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from neox_lab.checks import check, number, whole
from neox_lab.errors import InputError
from neox_lab.experiments.graph import Node
from neox_lab.results import GridResult

PATIENCE = 2_000  # random ways in a row that bring no new edge


def require_all(scores: GridResult, table: Tensor) -> None:
    """Refuse scores of which some are not known: a rank among them would mean nothing.

    Args:
        scores: of edges or of nodes.
        table: True for those that there are, in the shape of the scores.

    Raises:
        InputError: some were not measured, or are NaN.
    """
    unknown = table & (~scores.is_computed | scores.values.isnan())
    if not bool(unknown.any()):
        return
    first = unknown.nonzero()[0].tolist()
    name = " → ".join(scores.labels[axis][at] for axis, at in zip(scores.axes, first, strict=True))
    raise InputError(
        f"{int(unknown.sum()):,} of {int(table.sum()):,} scores are not known, the first that of "
        f"{name}, so which are largest is not known either: the sweep was interrupted, or the "
        "model gives NaN (model.check() names such weights). Compute them again."
    )


def wanted(name: str, count: int | None, share: float | None, most: int) -> int:
    """How many edges or nodes are meant.

    Args:
        name: what is counted, and the argument that says how many.
        count: so many.
        share: or this share of all, from 0 to 1.
        most: how many there are.

    Raises:
        InputError: not exactly one of both, or one out of range.
    """
    if (count is None) == (share is None):
        raise InputError(f"Give either {name}= (a number) or share= (of all {name}, 0 to 1).")
    if count is not None:
        return check(name, count, whole(least=1, most=most), InputError)
    share = check("share", share, number(above=0, most=1), InputError)
    return counted(share, most)


def counted(share: float, most: int) -> int:
    """How many a share of all is, at least one.

    Args:
        share: from 0 to 1.
        most: how many there are.
    """
    return max(1, int(share * most))


def highest(weight: Tensor, table: Tensor, count: int) -> Tensor:
    """The edges of the largest weight.

    Args:
        weight: how much each counts ``[writer, reader]``.
        table: True where there is an edge.
        count: how many.

    Returns:
        True for the edges that are chosen, ``[writer, reader]``.
    """
    order = weight.masked_fill(~table, -torch.inf).flatten().argsort(descending=True, stable=True)
    kept = torch.zeros_like(table).flatten()
    kept[order[:count]] = True
    return (kept.view_as(table)) & table


def greedy(
    weight: Tensor, table: Tensor, count: int, writers: Sequence[Node], readers: Sequence[Node]
) -> Tensor:
    """Edges one after another, the largest among those that lead to a part that is in already.

    It begins at the logits, so that every edge leads to them; edges whose writer hears nothing
    remain until ``without_dangling`` takes them.
    """
    columns: dict[tuple[str, int, int], list[int]] = {}
    for column, node in enumerate(readers):
        columns.setdefault((node.kind, node.layer, node.head), []).append(column)
    kept, inside = torch.zeros_like(table), set[tuple[str, int, int]]()
    waiting: list[tuple[float, int, int]] = []

    def enter(key: tuple[str, int, int]) -> None:
        if key in inside:
            return
        inside.add(key)
        for column in columns.get(key, ()):
            for row in table[:, column].nonzero().flatten().tolist():
                heapq.heappush(waiting, (-float(weight[row, column]), row, column))

    logits = readers[-1]
    enter((logits.kind, logits.layer, logits.head))
    while waiting and count > 0:
        _, row, column = heapq.heappop(waiting)
        kept[row, column], count = True, count - 1
        node = writers[row]
        enter((node.kind, node.layer, node.head))
    return kept


def random_circuit(
    table: Tensor,
    count: int,
    writers: Sequence[Node],
    readers: Sequence[Node],
    chance: Random,
) -> Tensor:
    """Edges of random ways from the embedding to the logits, about ``count`` of them.

    A handful of edges drawn one by one leads nowhere and does nothing, which is an easy null to
    beat. Here every edge lies on a whole way: from the logits back, each time to one of the writers
    before, all as likely. Ways are added as long as the circuit comes closer to ``count`` edges.
    """
    columns: dict[tuple[str, int, int], list[int]] = {}
    for column, node in enumerate(readers):
        columns.setdefault((node.kind, node.layer, node.head), []).append(column)

    before = [table[:, column].nonzero().flatten().tolist() for column in range(len(readers))]
    if count >= int(table.sum()):
        return table.clone()
    chosen: set[tuple[int, int]] = set()
    failures = 0
    while len(chosen) < count and failures < PATIENCE:
        column, way = len(readers) - 1, set[tuple[int, int]]()
        while True:
            row = chance.choice(before[column])
            way.add((row, column))
            node = writers[row]
            if node.kind == "embed":
                break
            column = chance.choice(columns[node.kind, node.layer, node.head])
        new = len(way - chosen)
        if abs(len(chosen) + new - count) < abs(len(chosen) - count):
            failures = 0
            chosen |= way
        else:
            failures += 1
    kept = torch.zeros_like(table)
    for row, column in chosen:
        kept[row, column] = True
    return kept
