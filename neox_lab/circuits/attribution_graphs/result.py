"""An attribution graph: nodes, edges, how exact they are, and how far to trust them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import check, number, shown
from neox_lab.circuits.attribution_graphs.edges import Edges, pruned
from neox_lab.circuits.attribution_graphs.neuronpedia import write
from neox_lab.data.statistics import correlation
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.results import FrameResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import AttributionGraphView, Mark

NODES, EDGES = 0.8, 0.98
"""Shares of the influence that a picture keeps, as circuit-tracer's."""


@dataclasses.dataclass(frozen=True)
class AttributionGraph(FrameResult):
    """Who added what to whom, from the tokens of a prompt to the logits.

    A node's ``value`` is the activation of a feature, or a logit over the mean of all (over another
    one, where that was asked for); an edge's weight is what its source adds to its target's value.
    For every feature and logit

        value = sum of all incoming edges + constant          (biases of norms, attention, encoder)

    and ``missing`` says how far that is off. Nodes that were not traced are the sources of edges
    that were left out; their sum is in ``incoming``.

    Attributes:
        nodes: one row a node, in the numbers that edges use: ``name``, ``kind`` (``feature``,
            ``error``: what features miss of an MLP, or all of it where there are none; ``token``,
            ``logit``), ``layer`` (-1 for tokens, the number of layers for logits), ``pos``,
            ``token``, ``token_id`` (of tokens and logits, else -1), ``latent`` (of features, else
            -1), ``probability`` (of logits over the mean), ``weight`` (how much each logit counts),
            ``influence`` (how much of the logits goes back to it), ``value``, ``incoming``,
            ``constant``, ``gross`` (the sum of all that comes in, each taken absolute) and
            ``missing``; NaN where nothing comes in.
        links: the edges, by numbers of nodes.
        tokens: of the prompt.
        layers: of the model.
        interventions: what happened to later nodes when a feature was removed, see there.
        replacement: of the influence that ends at tokens and errors, the part that ends at tokens:
            1 where features explain everything.
        completeness: of all that comes into nodes, weighted by their influence, the part that does
            not come from errors.
        unexplored: of all influence, the part at features that were not traced.
        kept: which shares of nodes' and edges' influence are in here; (1, 1) unless pruned.
    """

    nodes: pd.DataFrame
    links: Edges
    tokens: list[str]
    layers: int
    interventions: pd.DataFrame
    replacement: float
    completeness: float
    unexplored: float
    kept: tuple[float, float] = (1.0, 1.0)

    @property
    def frame(self) -> pd.DataFrame:
        """The nodes, those of the largest influence first."""
        return self.nodes.sort_values("influence", ascending=False, kind="stable").reset_index(
            drop=True
        )

    @property
    def edges(self) -> pd.DataFrame:
        """One row an edge, the largest first: ``source``, ``target`` (names) and ``weight``."""
        order = self.links.weight.abs().argsort(descending=True, stable=True)
        names = self.nodes["name"].to_numpy()
        return make_frame({
            "source": names[self.links.source[order].numpy()],
            "target": names[self.links.target[order].numpy()],
            "weight": self.links.weight[order].numpy(),
        })  # fmt: skip

    def into(self, name: str) -> pd.DataFrame:
        """The edges into a node, the largest first.

        Args:
            name: of the node, as in ``nodes``.

        Raises:
            InputError: there is no such node.
        """
        return self._edges_at("target", name)

    def out_of(self, name: str) -> pd.DataFrame:
        """The edges out of a node, the largest first.

        Args:
            name: of the node, as in ``nodes``.

        Raises:
            InputError: there is no such node.
        """
        return self._edges_at("source", name)

    def _edges_at(self, end: str, name: object) -> pd.DataFrame:
        names = self.nodes["name"].tolist()
        if not isinstance(name, str) or name not in names:
            raise InputError(
                f"There is no node {shown(name)} in this graph; .frame lists them, such as "
                f"{names[0]!r} and {names[-1]!r}."
            )
        edges = self.edges
        return edges[edges[end] == name].reset_index(drop=True)

    @property
    def conservation(self) -> float:
        """The largest |missing|, as a share of the sum of all that comes in, each taken absolute.

        A node whose incoming edges nearly cancel cannot be known better than its largest one.
        """
        shares = self.nodes["missing"].abs() / self.nodes["gross"]
        return float(np.nanmax(shares.to_numpy(), initial=0.0))

    @property
    def agreement(self) -> pd.DataFrame:
        """Predictions beside interventions: Pearson's correlation and the mean miss.

        One row for each kind of target and each run; the miss is in units of the mean change.
        """
        rows = []
        for kind, own in self.interventions.groupby("kind", sort=True):
            for run in ("replacement", "model"):
                seen, said = own[run].to_numpy(float), own["predicted"].to_numpy(float)
                size = np.abs(seen).mean()
                miss = np.abs(seen - said).mean() / size if size else np.nan
                rows.append((kind, run, len(own), correlation(said, seen), miss))
        columns = ["kind", "run", "changes", "correlation", "relative_miss"]
        return make_frame(rows, columns=columns)

    def prune(self, nodes: float = NODES, edges: float = EDGES) -> AttributionGraph:
        """The part that carries most of the influence.

        Args:
            nodes: share of the nodes' influence, above 0 to 1; tokens and logits always stay.
            edges: share of what their edges carry.

        Returns:
            A graph of fewer nodes; numbers of nodes are those of the whole graph but ``influence``,
            which is that of the edges that are left.

        Raises:
            InputError: no such share.
        """
        share = check("nodes", nodes, number(above=0, most=1), InputError)
        of_edges = check("edges", edges, number(above=0, most=1), InputError)
        weight, layers = weights(self.nodes), torch.tensor(self.nodes["layer"].to_numpy(copy=True))
        kinds = self.nodes["kind"].tolist()
        keep, links = pruned(self.links, weight, layers, kinds, share, of_edges)
        number_of = keep.cumsum(dim=0) - 1
        links = Edges(number_of[links.source], number_of[links.target], links.weight)
        left = self.nodes[keep.numpy()].reset_index(drop=True)
        left["influence"] = links.influence(weight[keep], layers[keep]).numpy()
        kept = (self.kept[0] * share, self.kept[1] * of_edges)
        return dataclasses.replace(self, nodes=left, links=links, kept=kept)

    def view(
        self,
        groups: Mapping[str, Sequence[str]] | None = None,
        pinned: Sequence[str] = (),
        pages: str | Mapping[int, str] | None = None,
    ) -> AttributionGraphView:
        """Tokens from left to right, layers from below; pruned, if it is not yet.

        Args:
            groups: supernodes: a name, and the names of nodes that are one thing. They get a colour
                and are one line in the lists of edges.
            pinned: names of nodes whose edges to each other stay in sight.
            pages: the folder that ``nl.features.pages`` wrote, or one for each layer: features link
                to their page in it.

        Raises:
            InputError: a node that is not in the picture, or no such folders.
        """
        from neox_lab.views import AttributionGraphView, Flow

        folders = _folders(pages, self.layers)
        small = self if self.kept != (1.0, 1.0) else self.prune()
        nodes, links = small.nodes, small.links
        ends = (links.source.tolist(), links.target.tolist(), links.weight.tolist())
        shares = links.shares(len(nodes)).tolist()
        answer = nodes[nodes["kind"] == "logit"].iloc[0].to_dict()
        return AttributionGraphView(
            self.tokens,
            self.layers,
            [_mark(row, folders) for row in nodes.to_dict("records")],
            [Flow(*each) for each in zip(*ends, shares, strict=True)],
            groups,
            pinned,
            _headline(answer),
            *self._notes(small),
        )

    def to_neuronpedia(
        self,
        path: str | os.PathLike[str],
        slug: str,
        scan: str = "",
        groups: Mapping[str, Sequence[str]] | None = None,
        pinned: Sequence[str] = (),
    ) -> None:
        """Write the JSON that Neuronpedia's front end for graphs reads; ids are unique.

        Args:
            path: ends in ``.json``.
            slug: the graph's name there: lower-case letters, digits and dashes.
            scan: what the front end calls the model with its transcoders.
            groups: supernodes, as in ``view``.
            pinned: nodes that are pinned, as in ``view``.

        Raises:
            InputError: another ending or name, or nodes that are not in it.
            CheckpointError: the file cannot be written.
        """
        small = self if self.kept != (1.0, 1.0) else self.prune()
        write(small, path, slug, scan, {} if groups is None else groups, pinned)

    def _notes(self, drawn: AttributionGraph) -> tuple[str, str]:
        """How far to trust it: in a line, and in a few sentences."""
        found = self.agreement
        held, whole = (
            found[found["run"] == run]["correlation"].tolist() for run in ("replacement", "model")
        )
        line = (
            f"{drawn.kept[0]:.0%} of the influence is drawn; {self.replacement:.0%} of all ends at "
            "tokens, the rest at errors."
        )
        said = (
            f"{self.completeness:.0%} of what comes into nodes comes from tokens and features. "
            f"Edges add up to the values of nodes but for {self.conservation:.0e} of them."
        )
        if held:
            line += f" Removed features: r {min(held):.2f} held, {min(whole):.2f} free."
            said += (
                " Features were removed in real runs: what the graph predicted agrees with a "
                f"correlation of at least {min(held):.2f} where attention and norms were held, "
                f"{min(whole):.2f} in the model itself."
            )
        if self.unexplored > 0.005:
            said += f" {self.unexplored:.0%} of the influence is at features not traced."
        return line, said


def _headline(answer: Mapping[Hashable, Any]) -> str:
    """What the first logit asks: the likeliest was said, others were asked for."""
    from neox_lab.views import label

    likeliest = answer["weight"] == answer["probability"]
    return f"What {'made it say' if likeliest else 'adds to'} {label(answer['token'], 40)}"


def _folders(pages: object, layers: int) -> dict[int, str]:
    """The folder with the pages of each layer's features.

    Raises:
        InputError: something else.
    """
    if pages is None:
        return {}
    found = dict.fromkeys(range(layers), pages) if isinstance(pages, str) else pages
    if not isinstance(found, Mapping) or not all(isinstance(one, str) for one in found.values()):
        raise InputError(
            f"pages={shown(pages)}; expected the folder that nl.features.pages wrote, or one for "
            "each layer: {0: 'pages of layer 0'}."
        )
    return dict(found)


def _mark(row: Mapping[Hashable, Any], folders: Mapping[int, str]) -> Mark:
    """A node as the picture takes it."""
    from neox_lab.views import Mark

    kind, layer = row["kind"], int(row["layer"])
    said, page = "", ""
    influence = float(row["influence"])
    if kind == "feature":
        said = f"layer {layer}, feature {row['latent']} at {row['token']!r}: {row['value']:.3g}"
        folder = folders.get(layer, "")
        page = f"{folder.rstrip('/')}/{row['latent']}.html" if folder else ""
    elif kind == "error":
        said = f"layer {layer}: what its features miss at {row['token']!r}"
    elif kind == "logit":
        is_one = row["probability"] == row["probability"]
        said = f"probability {row['probability']:.1%}" if is_one else "difference of two logits"
        influence = float(row["weight"])
    return Mark(row["name"], kind, layer, int(row["pos"]), influence, said, page)


def weights(nodes: pd.DataFrame) -> Tensor:
    """How much each logit counts, 0 of other nodes ``[node]``."""
    chance = nodes["weight"].fillna(0).to_numpy(dtype=np.float64, copy=True)
    return torch.tensor(chance)


def scores(nodes: pd.DataFrame, links: Edges) -> tuple[float, float]:
    """How much of the influence is explained: ``replacement`` and ``completeness``."""
    kind = nodes["kind"].to_numpy()
    influence = nodes["influence"].to_numpy(float)
    tokens, errors = influence[kind == "token"].sum(), influence[kind == "error"].sum()
    is_error = torch.tensor(kind == "error")
    shares = links.shares(len(nodes)).double()
    missed = torch.zeros(len(nodes), dtype=torch.float64)
    missed.index_add_(0, links.target, shares * is_error[links.source])
    counts = torch.tensor(influence) + weights(nodes)
    reads = torch.tensor((kind == "feature") | (kind == "logit"))
    total = float(counts[reads].sum())
    complete = float(((1 - missed) * counts)[reads].sum()) / total if total else np.nan
    return float(tokens / (tokens + errors)) if tokens + errors else np.nan, complete
