"""Which edges a model has, as a table ``[writer, reader]``.

The graph is the model's own. With parallel residual, as in Pythia, the MLP of a layer reads what
its heads read, so no head has an edge to the MLP of its own layer; in sequential blocks it has.
Counted over layers L and heads H a parallel model has Σ_l (1 + l(H + 1))(3H + 1) + 1 + L(H + 1)
edges, a sequential one L·H more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neox_lab.experiments.graph import Node


def edge_table(writers: Sequence[Node], readers: Sequence[Node], parallel: bool) -> Tensor:
    """True where there is an edge, ``[writer, reader]``.

    Args:
        writers: the rows.
        readers: the columns.
        parallel: the wiring.
    """
    wrote = torch.tensor([node.layer for node in writers])[:, None]
    read = torch.tensor([node.layer for node in readers])
    table = wrote < read
    if not parallel:
        heads = torch.tensor([node.kind == "head" for node in writers])[:, None]
        mlps = torch.tensor([node.kind == "mlp" for node in readers])
        table |= (wrote == read) & heads & mlps
    return table


def edge_labels(writers: Sequence[Node], readers: Sequence[Node]) -> dict[str, list[str]]:
    """Names of the rows and of the columns."""
    return {"writer": [node.name for node in writers], "reader": [node.name for node in readers]}


def without_dangling(kept: Tensor, writers: Sequence[Node], readers: Sequence[Node]) -> Tensor:
    """The edges that lie on a way from the embedding to the logits.

    Args:
        kept: True for edges of the circuit, ``[writer, reader]``.
        writers: its rows.
        readers: its columns.

    Returns:
        A new table; ``kept`` stays as it is.
    """
    place = {(w.kind, w.layer, w.head): row for row, w in enumerate(writers)}
    owner = [place.get((r.kind, r.layer, r.head), -1) for r in readers]  # who reads; -1: logits
    of_reader = torch.tensor(owner)
    inside = of_reader >= 0
    begins = torch.tensor([w.kind == "embed" for w in writers])
    kept = kept.clone()
    while True:
        receives, sends = begins.clone(), kept.any(dim=1)
        receives[of_reader[inside & kept.any(dim=0)]] = True
        needed = ~inside | sends[of_reader.clamp(min=0)]
        left = kept & receives[:, None] & needed
        if torch.equal(left, kept):
            return kept
        kept = left
