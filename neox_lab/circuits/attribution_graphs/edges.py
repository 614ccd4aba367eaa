"""The edges of an attribution graph, its influences, and which of them are worth a look."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from neox_lab.circuits.attribution_graphs.rows import Rows


@dataclasses.dataclass(frozen=True)
class Edges:
    """What nodes add to nodes.

    Attributes:
        source: number of the node that writes ``[edge]``.
        target: number of the node that reads ``[edge]``.
        weight: what it adds to the target's value ``[edge]``.
    """

    source: Tensor
    target: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.source)

    def of(self, chosen: Tensor) -> Edges:
        """Some of them: a mask, or numbers."""
        return Edges(self.source[chosen], self.target[chosen], self.weight[chosen])

    def shares(self, nodes: int) -> Tensor:
        """Each absolute weight as a share of all that go into its target ``[edge]``."""
        total = torch.zeros(nodes, dtype=self.weight.dtype).index_add_(
            0, self.target, self.weight.abs()
        )
        return self.weight.abs() / total.clamp(min=torch.finfo(total.dtype).tiny)[self.target]

    def influence(self, weight: Tensor, layers: Tensor) -> Tensor:
        """How much of the logits goes back to each node, along all ways.

        p (Â + Â² + ..), with Â the absolute weights as shares of each target's.

        Args:
            weight: of each node: a logit's probability, 0 of others ``[node]``.
            layers: of each node; edges lead to higher ones ``[node]``.
        """
        shares, found = self.shares(len(weight)), torch.zeros_like(weight)
        for layer in torch.unique(layers[self.target]).flip(0).tolist():
            own = layers[self.target] == layer
            into = (found + weight)[self.target[own]]
            found.index_add_(0, self.source[own], shares[own] * into)
        return found


def joined(
    traced: Tensor, sources: int, features: int, first: Rows, parts: list[tuple[int, Rows]]
) -> Edges:
    """Rows as edges between nodes; those from features without a row are left out.

    Nodes are numbered: features in the order of ``traced``, errors and tokens as in the rows, then
    logits.
    """
    node = torch.full((sources,), -1, device=traced.device)
    node[traced] = torch.arange(len(traced), device=traced.device)
    rest = torch.arange(sources - features, device=traced.device)
    node[features:] = len(traced) + rest
    last = len(traced) + len(rest)
    found = [(node[rows.source], node[rows.targets][rows.row], rows.value) for _, rows in parts]
    found.append((node[first.source], last + first.row, first.value))
    source, target, weight = (torch.cat(column).cpu() for column in zip(*found, strict=True))
    known = source >= 0
    return Edges(source[known], target[known], weight[known])


def pruned(
    edges: Edges, weight: Tensor, layers: Tensor, kinds: list[str], nodes: float, share: float
) -> tuple[Tensor, Edges]:
    """Nodes and edges that carry most of the influence.

    Args:
        edges: all of them.
        weight: see ``Edges.influence``.
        layers: see ``Edges.influence``.
        kinds: of each node.
        nodes: features, errors and tokens of the largest influence are kept until they have this
            share of it; tokens and logits always.
        share: edges are kept until they have this share of what edges carry; then features that
            nothing goes into or out of, and errors that nothing goes out of, are dropped.

    Returns:
        True for nodes that stay, and the edges.
    """
    always = torch.tensor([kind in ("token", "logit") for kind in kinds])
    keep = largest(edges.influence(weight, layers), nodes) | always
    edges = edges.of(keep[edges.source] & keep[edges.target])
    into = (edges.influence(weight, layers) + weight)[edges.target]
    edges = edges.of(largest(edges.shares(len(weight)) * into, share))
    is_feature = torch.tensor([kind == "feature" for kind in kinds])
    while True:
        reads, writes = torch.zeros_like(keep), torch.zeros_like(keep)
        reads[edges.target], writes[edges.source] = True, True
        left = keep & (always | (writes & (reads | ~is_feature)))
        if torch.equal(left, keep):
            return keep, edges
        keep = left
        edges = edges.of(keep[edges.source] & keep[edges.target])


def largest(values: Tensor, share: float) -> Tensor:
    """True for the largest values that have a share of their sum."""
    order = values.argsort(descending=True, stable=True)
    before = values[order].cumsum(dim=0) - values[order]
    keep = torch.zeros(len(values), dtype=torch.bool)
    keep[order] = (before < share * values.sum()) & (values[order] > 0)
    return keep
