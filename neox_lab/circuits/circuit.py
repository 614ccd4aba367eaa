"""A circuit: some edges of the network, and what can be asked of them."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.circuits.eap_files import EapFile, write
from neox_lab.circuits.edges import edge_table, without_dangling
from neox_lab.circuits.evaluation import (
    Evaluation,
    check_fit,
    evaluate,
    require_edges,
    require_shape,
)
from neox_lab.circuits.head_patterns import head_patterns
from neox_lab.circuits.prompts import Asked, prompts_of, width_of
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.errors import InputError
from neox_lab.experiments.graph import Node, node_of
from neox_lab.frames import make_frame
from neox_lab.results import GridResult

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.executors import AnyExecutor
    from neox_lab.experiments.metrics import Metric
    from neox_lab.experiments.patching.prompts import PromptsLike
    from neox_lab.family.contract import HookedModel
    from neox_lab.views import NetworkView


SIGNS = ("helps: removing it lowers the metric", "hurts: removing it raises the metric")
"""What a score below and one above 0 means; other numbers, such as counts, have no such meaning."""
BARE_SIGNS = ("below 0", "above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circuit(GridResult):
    """Edges from writers to readers.

    ``values`` is ``[writer, reader]``: the score of each edge, for what it is worth; ``computed``
    is True for the edges of the circuit. ``frame`` has a row for each of them.

    Attributes:
        parallel: the wiring of its model.
        name: how it was found.
        value_name: what the numbers of ``values`` are.
    """

    parallel: bool
    name: str
    value_name: str = "score: change of the metric when the edge is removed"
    _asked: Asked | None = dataclasses.field(default=None, compare=False)

    @property
    def kept(self) -> Tensor:
        """True for the edges of the circuit, ``[writer, reader]``."""
        return self.is_computed

    @property
    def edges(self) -> int:
        """How many edges it has."""
        return int(self.kept.sum())

    @property
    def all_edges(self) -> int:
        """How many its model has."""
        return int(edge_table(self.writers, self.readers, self.parallel).sum())

    @property
    def writers(self) -> list[Node]:
        """Rows of ``kept``."""
        layers = self._layers
        return [node_of(name, layers) for name in self.labels["writer"]]

    @property
    def readers(self) -> list[Node]:
        """Columns of ``kept``."""
        layers = self._layers
        return [node_of(name, layers) for name in self.labels["reader"]]

    @property
    def _layers(self) -> int:
        return sum(name.startswith("MLP") for name in self.labels["writer"])

    @property
    def nodes(self) -> list[str]:
        """Parts that an edge begins or ends at, such as ``"L3H2"``, in the order of the model."""
        kept = self.kept
        ends = {self.labels["writer"][row] for row in kept.any(dim=1).nonzero().flatten().tolist()}
        for column in kept.any(dim=0).nonzero().flatten().tolist():
            ends.add(self.labels["reader"][column].split(".")[0])
        return [name for name in [*self.labels["writer"], "logits"] if name in ends]

    def pruned(self) -> Circuit:
        """The circuit without edges that lie on no way from the embedding to the logits."""
        kept = without_dangling(self.kept, self.writers, self.readers)
        return dataclasses.replace(self, computed=kept)

    def overlap(self, other: Circuit) -> dict[str, float]:
        """How much of two circuits is the same.

        Args:
            other: of a model of the same shape.

        Returns:
            ``shared`` edges; ``jaccard``, shared of all edges of both; ``expected``, the Jaccard
            index of two circuits of these sizes drawn edge by edge at random.

        Raises:
            InputError: no circuit, or one of a model of another shape or wiring.
        """
        if not isinstance(other, Circuit):
            raise InputError(f"other={shown(other)}; expected a circuit.")
        require_shape(other, self.labels, self.parallel)
        shared = int((self.kept & other.kept).sum())
        either = int((self.kept | other.kept).sum())
        chance = self.edges * other.edges / max(1, self.all_edges)
        return {
            "shared": float(shared),
            "jaccard": shared / either if either else 1.0,
            "expected": chance / max(1e-9, self.edges + other.edges - chance),
        }

    def minimality(self) -> pd.DataFrame:
        """What the circuit loses with each of its edges.

        Returns:
            One row an edge, the one that is missed most first: ``writer``, ``reader`` and
            ``change`` of the metric when it is removed from the circuit as well (other edges than
            the circuit's are ablated all the while). An edge near 0 is not needed.

        Raises:
            InputError: the circuit is empty, or came from a file and no longer knows its prompts.
        """
        if self._asked is None:
            raise InputError(
                "This circuit came from a file and no longer knows its prompts, so minimality() "
                "cannot run them; evaluate(clean, corrupted, metric, model=model) can."
            )
        runs = CircuitRuns(prompts_of(self._asked, None, None, None, None), "resample")
        check_fit(self, runs)
        places = self.kept.nonzero()
        without = self.kept.repeat(len(places), 1, 1)
        without[torch.arange(len(places)), places[:, 0], places[:, 1]] = False
        own = runs.measure(self.kept[None]).double().mean()
        change = runs.measure(without).double().mean(dim=1) - own
        order = change.abs().argsort(descending=True).tolist()
        names = self.labels["writer"], self.labels["reader"]
        return make_frame(
            {
                "writer": [names[0][int(places[at, 0])] for at in order],
                "reader": [names[1][int(places[at, 1])] for at in order],
                "change": [float(change[at]) for at in order],
            }
        )

    def evaluate(
        self,
        clean: PromptsLike | None = None,
        corrupted: PromptsLike | None = None,
        metric: Metric | None = None,
        *,
        model: HookedModel | None = None,
        ablation: str = "resample",
        random: int = 20,
        seed: int = 0,
        executor: AnyExecutor | None = None,
    ) -> Evaluation:
        """Run the prompts with everything outside the circuit ablated.

        Args:
            clean: prompts, such as held-out ones; None for those it was found with.
            corrupted: their other side.
            metric: the metric; None for the one it was found with.
            model: another model of the same shape, such as another revision.
            ablation: what readers see along edges outside the circuit: what the writer writes for
                the corrupted prompt (``"resample"``), its mean over these prompts (``"mean"``, or
                ``"mean_by_pos"`` column by column), or ``"zero"``.
            random: circuits at random of as many edges, to compare with.
            seed: of these, and of the intervals.
            executor: any ``concurrent.futures.Executor``, or one of submitit, whose workers run the
                circuits (``docs/many-machines.md``); None runs them here.

        Returns:
            The metric of the whole model, of the circuit, of all but the circuit, of nothing and of
            random circuits; faithfulness of each, with an interval over prompts.

        Raises:
            InputError: an empty circuit, a model of another shape, or arguments that make no sense;
                workers could not load the model, or the metric cannot be sent.
            HookError: a function is spliced in between heads and MLPs.
            LostWorkerError: the worker of some circuits was lost again and again.
        """
        return evaluate(
            self,
            self._asked,
            clean,
            corrupted,
            metric,
            model,
            ablation=ablation,
            random=random,
            seed=seed,
            executor=executor,
        )

    def to_eap_ig(self, path: str | os.PathLike[str], d_model: int | None = None) -> None:
        """Write the circuit, with its scores, as EAP-IG and MIB read it.

        Args:
            path: ends in ``.json`` or ``.pt``; scores there are the negative of ours.
            d_model: width of the model; needed only of a circuit that came from a file.

        Raises:
            InputError: another ending, or the width is not known.
            CheckpointError: it cannot be written.
        """
        content = EapFile(self.values, self.kept, self.writers, self.readers, self.parallel)
        write(path, content, width_of(self._asked, d_model))

    def view(self) -> NetworkView:
        """The circuit as a network: the embedding on top, the logits below.

        A head that is pointed at or clicked shows where it looks on the first clean prompt, if the
        circuit knows its prompts: a run of the model as it is now.

        Raises:
            InputError: it has no edge.
        """
        from neox_lab.views import Link, NetworkView

        require_edges(self.kept)
        nodes, layers = self.nodes, self._layers
        place = {name: at for at, name in enumerate(nodes)}
        found = [node_of(name, layers) for name in nodes]
        heads = 1 + max(node.head for node in self.writers)
        order = ["embed", *(f"layer {layer}" for layer in range(layers)), "logits"]
        links = [
            Link(
                place[self.labels["writer"][row]],
                place[reader.split(".")[0]],
                float(self.values[row, column]),
                reader.partition(".")[2],
            )
            for row, column in self.kept.nonzero().tolist()
            for reader in [self.labels["reader"][column]]
        ]
        return NetworkView(
            nodes,
            [node.layer + 1 for node in found],
            [{"head": node.head, "mlp": heads}.get(node.kind, -1) for node in found],
            order,
            links,
            self.value_name,
            self.name,
            f"{self.edges:,} of {self.all_edges:,} edges.",
            signs=SIGNS if self.value_name.startswith("score") else BARE_SIGNS,
            attention=None if self._asked is None else head_patterns(self._asked, found),
        )


def chosen(
    like: GridResult, kept: Tensor, name: str, asked: Asked | None, parallel: bool
) -> Circuit:
    """A circuit of some of the edges that were scored.

    Args:
        like: scores.
        kept: True for the edges ``[writer, reader]``.
        name: how they were found.
        asked: the prompts.
        parallel: the wiring.
    """
    return Circuit(
        values=like.values.nan_to_num(),
        computed=kept.to(torch.bool),
        axes=like.axes,
        labels=like.labels,
        parallel=parallel,
        name=name,
        _asked=asked,
    )
