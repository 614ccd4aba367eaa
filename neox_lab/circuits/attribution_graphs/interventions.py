"""Features removed in real runs, beside what the graph says that this does.

The graph predicts along its edges: a feature that goes takes away what it added to others, whose
activations change by that, and so on up to the logits. Two runs put that to the test: in one the
rest is as the graph has it (patterns, denominators and errors of the first run, features chosen
anew), in the other nothing is held and MLPs are the model's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.circuits.attribution_graphs.replacement import LocalReplacement
from neox_lab.circuits.attribution_graphs.targets import Targets
from neox_lab.frames import make_frame
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.parts import at_least_float32
from neox_lab.sae import Codes

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.circuits.attribution_graphs.edges import Edges

TARGETS = 20  # features whose change is told of each removal: those predicted to change most
COLUMNS = ["removed", "target", "kind", "predicted", "replacement", "model"]


def interventions_of(
    run: LocalReplacement,
    traced: Tensor,
    logits: Targets,
    nodes: pd.DataFrame,
    edges: Edges,
    count: int,
) -> pd.DataFrame:
    """Remove the features of the largest influence, one in each run.

    Args:
        run: the local replacement model.
        traced: numbers of the features that are nodes ``[feature]``, in their order.
        logits: those that are nodes.
        nodes: the table of nodes.
        edges: between them.
        count: how many are removed.

    Returns:
        ``removed`` and ``target`` (names), ``kind`` of the target, and its change: ``predicted``
        along the edges, in the ``replacement`` model, and in the ``model`` itself.
    """
    features = torch.tensor((nodes["kind"] == "feature").to_numpy().nonzero()[0])
    answers = torch.tensor((nodes["kind"] == "logit").to_numpy().nonzero()[0])
    strength = torch.tensor(nodes["influence"].to_numpy(copy=True))[features]
    best = strength.topk(min(count, len(features))).indices
    if not len(best):
        return make_frame([], columns=COLUMNS)
    predicted = predictions(nodes, edges, features[best])
    removed = traced[best.to(traced.device)]
    held, free = (_changes(run, removed, traced, logits, hold=hold) for hold in (True, False))
    names, rows = nodes["name"].tolist(), []
    places = torch.cat([features, answers])
    for at, node in enumerate(features[best].tolist()):
        sizes = predicted[at, features].abs()
        sizes[best[at]] = 0
        some = sizes.topk(min(TARGETS, len(sizes)))
        chosen = some.indices[some.values > 0].tolist()
        for column in (*chosen, *range(len(features), len(places))):
            place = int(places[column])
            kind = "logit" if column >= len(features) else "feature"
            found = predicted[at, place], held[at, column], free[at, column]
            rows.append((names[node], names[place], kind, *map(float, found)))
    return make_frame(rows, columns=COLUMNS)


def predictions(nodes: pd.DataFrame, edges: Edges, removed: Tensor) -> Tensor:
    """How every node changes if a feature goes, along the edges, ``[removed, node]``."""
    values = torch.tensor(nodes["value"].to_numpy(copy=True))
    layers = torch.tensor(nodes["layer"].to_numpy(copy=True))
    is_feature = torch.tensor((nodes["kind"] == "feature").to_numpy(copy=True))
    change = torch.zeros(len(removed), len(nodes), dtype=torch.float64)
    share = torch.zeros_like(change)  # of its own activation that each feature gains
    rows = torch.arange(len(removed))
    change[rows, removed], share[rows, removed] = -values[removed].double(), -1.0
    order = layers[edges.target].argsort(stable=True)
    source, target, weight = edges.source[order], edges.target[order], edges.weight[order].double()
    for layer in torch.unique(layers[target]).tolist():
        own = layers[target] == layer
        moved = share[:, source[own]] * weight[own]
        change.index_add_(1, target[own], moved)
        there = (is_feature & (layers == layer)).nonzero().flatten()
        share[:, there] = change[:, there] / values[there].double()
    return change


def _changes(
    run: LocalReplacement, removed: Tensor, traced: Tensor, targets: Targets, hold: bool
) -> Tensor:
    """Changes of traced features and of logits in runs without one feature each.

    Returns:
        ``[removed, feature + logit]``, on the CPU.
    """
    runs = _Runs(run, removed, hold)
    ids = run.ids.expand(len(removed), -1)
    output = run.model.run_with_hooks(ids, runs.hooks())
    after = targets.read(at_least_float32(output.logits[:, -1]))
    before = targets.read(run.logits)
    found = run.features
    layer, pos, latent = (part[traced] for part in (found.layer, found.pos, found.latent))
    codes = runs.codes or run.transcoders.encode(runs.read)
    now = after.new_zeros(len(removed), len(traced))
    for at in torch.unique(layer).tolist():
        own = (layer == at).nonzero().flatten()
        indices, values = codes[at].indices[:, pos[own]], codes[at].values[:, pos[own]]
        same = indices == latent[own, None]
        now[:, own] = values.where(same, 0).sum(dim=-1).to(now)
    return torch.cat([now - found.activation[traced].to(now), after - before], dim=1).cpu()


class _Runs:
    """Hooks of runs in which one feature each is removed.

    Attributes:
        read: what each layer's features read ``[removed, pos, d_model]``.
        codes: what was active, where the features write for the MLPs; else empty.
    """

    def __init__(self, run: LocalReplacement, removed: Tensor, hold: bool) -> None:
        self.run, self.removed, self.hold = run, removed, hold
        self.read: dict[int, Tensor] = {}
        self.codes: dict[int, Codes] = {}

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """In the order of the forward pass."""
        found: list[tuple[str, HookFunction]] = []
        if self.hold:
            frozen = ["blocks.*.attn.hook_pattern", "blocks.*.ln?.hook_scale"]
            found = [(name, self._put) for name in (*frozen, "ln_final.hook_scale")]
        found += [(name, self._keep) for name in self.run.transcoders.read_at.values()]
        return [*found, ("blocks.*.hook_mlp_out", self._write)]

    def _put(self, tensor: Tensor, point: HookPoint) -> Tensor:
        return self.run.run[point.name].to(tensor).expand_as(tensor)

    @reads_only
    def _keep(self, tensor: Tensor, point: HookPoint) -> None:
        assert point.layer is not None
        home = self.run.embeddings.device  # layers may be on others
        self.read[point.layer] = at_least_float32(tensor).to(home)

    def _write(self, tensor: Tensor, point: HookPoint) -> Tensor:
        layer = point.layer
        assert layer is not None
        if self.hold:
            return self._rebuilt(layer).to(tensor)
        return (at_least_float32(tensor) - self._lost(layer).to(tensor.device)).to(tensor)

    def _lost(self, into: int) -> Tensor:
        """What the removed features wrote into a layer, ``[removed, pos, d_model]``."""
        run, found = self.run, self.run.features
        lost = run.embeddings.new_zeros(len(self.removed), *run.embeddings.shape)
        for row, number in enumerate(self.removed.tolist()):
            layer, pos = int(found.layer[number]), int(found.pos[number])
            if layer in run.transcoders.writers(into):
                vector = run.transcoders.written(layer, into, found.latent[number, None])[0]
                lost[row, pos] = at_least_float32(vector) * found.activation[number]
        return lost

    def _rebuilt(self, into: int) -> Tensor:
        """What the features and what they missed write, ``[removed, pos, d_model]``."""
        run = self.run
        if into in self.read:
            self.codes[into] = self._encoded(into)
        total = run.errors[into] + run.constants[into] + self._linear(into)
        total = total.expand(len(self.removed), -1, -1).clone()
        for layer in run.transcoders.writers(into):
            codes = self.codes[layer]
            for row in range(len(self.removed)):
                rows = run.transcoders.written(layer, into, codes.indices[row])
                written = at_least_float32(rows) * at_least_float32(codes.values[row, :, :, None])
                total[row] += written.sum(dim=1)
        return total

    def _linear(self, layer: int) -> Tensor:
        """What the linear path beside the features writes of what is read now."""
        skip = self.run._skips.get(layer)
        if skip is None:
            return self.run.linear[layer]
        shift = skip @ self.run.reading_bias(layer)
        return (self.read[layer] @ skip.T - shift).masked_fill(self.run.held[:, None], 0)

    def _encoded(self, layer: int) -> Codes:
        """What is active now, without positions that are held and the removed features."""
        run, found = self.run, self.run.features
        if run.transcoders.cross is not None:
            known = [self.read.get(at, self.read[layer]) for at in run.transcoders.layers]
            codes = run.transcoders.cross.encode(known)[layer]
        else:
            codes = run.transcoders.by_layer[layer].encode(self.read[layer])
        values = codes.values.masked_fill(run.held[:, None], 0)
        for row, number in enumerate(self.removed.tolist()):
            if int(found.layer[number]) == layer:
                pos, latent = int(found.pos[number]), found.latent[number]
                values[row, pos] = values[row, pos].where(codes.indices[row, pos] != latent, 0)
        return Codes(codes.indices, values, codes.latents)
