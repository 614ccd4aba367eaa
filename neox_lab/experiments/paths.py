"""Path patching: what one part of the model does by way of another.

A *sender* (embedding, head, MLP) writes to the residual stream; a *receiver* (queries, keys or
values of a head, an MLP, the logits) reads it. Patching the path between them changes what the
receiver reads by what the sender would have written in the clean run, and nothing else:

    1. Both runs are made; of each sender s, Δ(s) is what it writes in the clean run minus what it
       writes in the corrupted run.
    2. Every receiver r is computed anew from its input in the corrupted run plus the sum of Δ(s)
       over the senders before r. All other parts keep their values of the corrupted run, so Δ(s)
       reaches r by the direct edge alone. With ``through="mlps"`` MLPs between them are computed
       anew as well, and only heads keep their values.
    3. The corrupted run is made once more with the receivers (a head's q, k or v, an MLP's output)
       set to what step 2 gave, and everything after them computed as usual. Where the logits are
       a receiver, step 2's change of the final residual stream is added to it.

Steps 1 to 3 are path patching as in Wang et al., 2022, arXiv:2211.00593 (appendix B), who freeze
heads and let MLPs be computed anew, ``through="mlps"``. Goldowsky-Dill et al., 2023,
arXiv:2304.05969, patch a set of paths of the network written out as a tree; a direct edge is such
a path, followed by all that leads from the receiver to the logits. For one receiver both agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.attribution.edges import of_node, writing_hook
from neox_lab.experiments.attribution.pairs import Batch, pair
from neox_lab.experiments.graph import Node
from neox_lab.experiments.metrics import BoundMetric, Metric, metric_name
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.hooks.points import HookPoint

Through = Literal["nothing", "mlps"]
TOKENS_AT_ONCE = 2048
"""Tokens in one run, of all variants together."""

_OUTPUT = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "": "hook_mlp_out"}


def path_patch(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    senders: str | Iterable[str | Sequence[str]] = "heads",
    receivers: str | Iterable[str] = "logits",
    *,
    through: Through = "nothing",
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> PatchResult:
    """Send each sender's clean output to the receivers, and to nobody else.

    Args:
        model: any class with a head.
        clean: where the senders' outputs come from; see ``nl.patching.sweep``.
        corrupted: the prompts that get patched; as many tokens.
        metric: see ``neox_lab.experiments.metrics``.
        senders: ``"heads"``, ``"mlps"``, ``"all"``, or names such as ``["L0H1", "MLP2", "embed"]``,
            each patched by itself. A list of names inside the list is patched as one.
        receivers: ``"logits"`` (direct effects), or names such as ``["L9H6.q", "L9H9.q"]``, all
            patched at once; a head without a part stands for its q, k and v.
        through: ``"nothing"``: direct edges only. ``"mlps"``: also paths through MLPs.
        tokens_at_once: memory budget; the same numbers for any.

    Returns:
        The metric for each sender, over ``("layer", "head")`` for ``"heads"``, else over
        ``("sender",)``.

    Raises:
        InputError: unknown names, senders none of which comes before a receiver, pairs of unequal
            length or without difference.
    """
    if through not in ("nothing", "mlps"):
        raise InputError(f"through={through!r}; expected 'nothing' or 'mlps'.")
    listed = [senders] if isinstance(senders, str) else list(senders)
    single = [
        [node]
        for names in listed
        if isinstance(names, str)
        for node in graph.find_writers(model, names)
    ]
    groups = single + [
        graph.find_writers(model, names) for names in listed if not isinstance(names, str)
    ]
    reading = graph.find_readers(model, receivers)
    paths = _Paths(model, clean, corrupted, metric, through, tokens_at_once)
    if not any(paths.precedes(w, r) for group in groups for w in group for r in reading):
        raise InputError(
            f"No sender comes before a receiver: {listed[:6]} and {[r.name for r in reading[:6]]}."
        )
    samples = torch.cat([values for values in paths.joint(groups, reading)])  # [group, sample]
    told = receivers if isinstance(receivers, str) else ", ".join(receivers)
    if listed == ["heads"]:
        shape = (model.config.num_hidden_layers, model.config.num_attention_heads)
        labels = {"layer": _numbers(shape[0]), "head": _numbers(shape[1])}
        return paths.result(samples.reshape(*shape, -1), labels, f"paths to {told}")
    names = [" + ".join(node.name for node in group) for group in groups]
    return paths.result(samples, {"sender": names}, f"paths to {told}")


def edge_sweep(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Metric,
    senders: str | Iterable[str] = "all",
    receivers: str | Iterable[str] = "all",
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> PatchResult:
    """Patch every edge from a sender to a receiver by itself.

    Args:
        model: any class with a head.
        clean: see ``path_patch``.
        corrupted: see ``path_patch``.
        metric: see ``path_patch``.
        senders: names of writers, or ``"heads"``, ``"mlps"``, ``"all"``.
        receivers: names of readers, likewise; heads have one for each of q, k and v.
        tokens_at_once: memory budget; the same numbers for any.

    Returns:
        The metric over ``("writer", "reader")``; NaN where the reader does not come after the
        writer.

    Raises:
        InputError: see ``path_patch``.
    """
    writers, readers = graph.find_writers(model, senders), graph.find_readers(model, receivers)
    paths = _Paths(model, clean, corrupted, metric, "nothing", tokens_at_once)
    samples = paths.base_samples.new_full(
        (len(writers), len(readers), len(paths.base_samples)), torch.nan
    )
    for row, column, values in paths.edges(writers, readers):
        samples[row, column] = values
    if not samples.isfinite().any():
        raise InputError("No sender comes before a receiver: there is no edge between them.")
    labels = {"writer": [w.name for w in writers], "reader": [r.name for r in readers]}
    return paths.result(samples, labels, "edges")


class _Paths:
    """Both runs, and the ways of sending a change from one part to another."""

    def __init__(
        self, model: Any, clean: Any, corrupted: Any, metric: Metric, through: Through, tokens: int
    ) -> None:
        self.model, self.through = model, through
        source, self.base = pair(model, clean, corrupted, metric)
        self.metric = metric_name(metric)
        self.layers = model.config.num_hidden_layers
        self.parallel = model.config.use_parallel_residual
        self.at_once = max(1, tokens // self.base.ids.numel())
        writes = list(dict.fromkeys(writing_hook(node) for node in graph.writers(model)))
        last = f"blocks.{self.layers - 1}.hook_resid_post"
        self.there = self._run(source, [*writes, "blocks.*.attn.hook_z", last])
        self.here = self._run(
            self.base,
            [
                *writes,
                "blocks.*.attn.hook_z",
                "blocks.*.hook_resid_pre",
                "blocks.*.hook_mlp_in",
                last,
            ],
        )
        self.final = self.here[last]
        self.clean = float(source.measure_streams(self.there[last]).mean())
        self.base_samples = self.base.measure_streams(self.final)[0].float().cpu()

    def _run(self, batch: Batch, names: list[str]) -> Any:
        _, cache = self.model.run_with_cache(
            batch.ids, names, stop_at_layer=self.layers, **batch.arguments
        )
        return cache

    def precedes(self, writer: Node, reader: Node) -> bool:
        """Whether there is an edge."""
        return writer.precedes(reader, self.parallel)

    def change(self, group: Sequence[Node], reader: Node) -> Tensor:
        """What a group of senders changes in what ``reader`` reads, ``[batch, pos, d_model]``."""
        total = torch.zeros_like(self.final)
        for node in group:
            if self.precedes(node, reader):
                hook = writing_hook(node)
                total += of_node(self.there[hook], node) - of_node(self.here[hook], node)
        return total

    def joint(self, groups: list[list[Node]], reading: list[Node]) -> Iterator[Tensor]:
        """The metric with each group sent to all receivers, ``[group, sample]``, in parts."""
        for first in range(0, len(groups), self.at_once):
            some = groups[first : first + self.at_once]
            changes = _Changes(self, some)
            hooks = []
            inside = [reader for reader in reading if reader.kind != "logits"]
            for layer in sorted({reader.layer for reader in inside}):
                received = self._receive(layer, changes)
                here = [reader for reader in inside if reader.layer == layer]
                variants = [(at, at, r) for at in range(len(some)) for r in here]
                hooks += self._settings(layer, received, variants, len(some))
            start = min((reader.layer for reader in inside), default=self.layers)
            direct = [reader for reader in reading if reader.kind == "logits"]
            final = changes(direct[0]) if direct else None
            yield self._finish(start, len(some), hooks, final)

    def edges(
        self, writers: list[Node], readers: list[Node]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Numbers of writer and reader ``[edge]``, and the metric ``[edge, sample]``, in parts."""
        for first in range(0, len(writers), self.at_once):
            some = writers[first : first + self.at_once]
            changes = _Changes(self, [[node] for node in some])
            for layer in range(self.layers + 1):
                edges = [
                    (row, column)
                    for column, reader in enumerate(readers)
                    if reader.layer == layer
                    for row, writer in enumerate(some)
                    if self.precedes(writer, reader)
                ]
                received = self._receive(layer, changes) if edges and layer < self.layers else {}
                for start in range(0, len(edges), self.at_once):
                    part = edges[start : start + self.at_once]
                    row, column = (torch.tensor(numbers) for numbers in zip(*part, strict=True))
                    if layer == self.layers:
                        at_end = changes(readers[part[0][1]]).view(len(some), *self.final.shape)
                        values = self._finish(layer, len(part), [], at_end[row].flatten(0, 1))
                    else:
                        variants = [(at, w, readers[r]) for at, (w, r) in enumerate(part)]
                        hooks = self._settings(layer, received, variants, len(part))
                        values = self._finish(layer, len(part), hooks, None)
                    yield row + first, column, values

    @torch.no_grad()
    def _receive(self, layer: int, changes: _Changes) -> dict[str, Tensor]:
        """Step 2 in one block: what its readers make of changed inputs, by part.

        Returns:
            ``q``, ``k`` and ``v`` ``[group, batch, pos, head, d_head]``, and under the empty name
            what the MLP writes ``[group, batch, pos, d_model]``.
        """
        count, prefix = len(changes.groups), f"blocks.{layer}."
        received: dict[str, Tensor] = {}

        def record(tensor: Tensor, point: HookPoint) -> None:
            part = next(p for p, name in _OUTPUT.items() if point.name == prefix + name)
            received[part] = tensor.view(count, -1, *tensor.shape[1:])

        def mlp_in(tensor: Tensor, _: HookPoint) -> Tensor:
            read = self.here[f"{prefix}hook_mlp_in"]
            return read.repeat(count, 1, 1) + changes(Node("mlp", layer))

        record.reads_only = True  # type: ignore[attr-defined]
        hooks = [(f"{prefix}hook_mlp_in", mlp_in)]
        residual = self.here["resid_pre", layer].repeat(count, 1, 1) + changes(Node("head", layer))
        self.model.run_with_hooks(
            residual,
            [*hooks, *((prefix + name, record) for name in _OUTPUT.values())],
            **self._arguments(count, layer, layer + 1),
        )
        return received

    def _settings(
        self,
        layer: int,
        received: dict[str, Tensor],
        variants: list[tuple[int, int, Node]],
        count: int,
    ) -> list[tuple[str, Any]]:
        """Hooks that set receivers of one block: variant, group and reader of each setting."""
        hooks = []
        for part, name in _OUTPUT.items():
            of_part = [entry for entry in variants if entry[2].part == part]
            if not of_part:
                continue
            variant = torch.tensor([entry[0] for entry in of_part])
            group = torch.tensor([entry[1] for entry in of_part])
            head = torch.tensor([entry[2].head for entry in of_part])
            values = received[part][group] if not part else received[part][group, :, :, head]

            def write(
                tensor: Tensor,
                _: HookPoint,
                variant: Tensor = variant,
                head: Tensor = head,
                values: Tensor = values,
                whole: bool = not part,
            ) -> None:
                rows = tensor.view(count, -1, *tensor.shape[1:])
                if whole:
                    rows[variant] = values
                else:
                    rows[variant, :, :, head] = values

            hooks.append((f"blocks.{layer}.{name}", write))
        return hooks

    @torch.no_grad()
    def _finish(
        self, start: int, count: int, hooks: list[tuple[str, Any]], change: Tensor | None
    ) -> Tensor:
        """Step 3 from block ``start`` on: the metric of each variant, ``[variant, sample]``."""
        stream = self.final.repeat(count, 1, 1)
        if start < self.layers:
            residual = self.here["resid_pre", start].repeat(count, 1, 1)
            arguments = self._arguments(count, start, self.layers)
            stream = self.model.run_with_hooks(residual, hooks, **arguments).last_hidden_state
        stream = stream if change is None else stream + change
        return self.base.measure_streams(stream).float().cpu()

    def _arguments(self, count: int, start: int, stop: int) -> dict[str, Any]:
        """Arguments of ``forward`` for ``count`` copies of the batch, from block to block."""
        arguments: dict[str, Any] = self.base.repeated(count)
        del arguments["input_ids"]
        return arguments | {"start_at_layer": start, "stop_at_layer": stop}

    def result(self, samples: Tensor, labels: dict[str, list[str]], what: str) -> PatchResult:
        """Samples ``[*axes, sample]`` as a result."""
        knows_rows = isinstance(self.base.metric, BoundMetric)
        return PatchResult(
            values=samples.mean(dim=-1),
            axes=tuple(labels),
            clean=self.clean,
            corrupted=float(self.base_samples.mean()),
            site=(what,),
            metric=self.metric,
            direction="denoising",
            labels=labels,
            samples=samples.movedim(-1, 0) if knows_rows else None,
            base_samples=self.base_samples if knows_rows else None,
        )


class _Changes:
    """What groups of senders change in what readers read: called with a reader.

    The answer is ``[group * batch, pos, d_model]``.
    """

    def __init__(self, paths: _Paths, groups: list[list[Node]]) -> None:
        self.paths, self.groups = paths, groups
        self.streams = self._through_mlps() if paths.through == "mlps" else None

    def __call__(self, reader: Node) -> Tensor:
        if self.streams is None:
            return torch.cat([self.paths.change(group, reader) for group in self.groups])
        if reader.kind == "logits":
            name = f"blocks.{reader.layer - 1}.hook_resid_post"
        else:
            inside = "hook_mlp_in" if reader.kind == "mlp" else "hook_resid_pre"
            name = f"blocks.{reader.layer}.{inside}"
        return self.streams[name] - self.paths.here[name].repeat(len(self.groups), 1, 1)

    @torch.no_grad()
    def _through_mlps(self) -> dict[str, Tensor]:
        """Streams of the corrupted run with senders exchanged, heads kept and MLPs made anew."""
        paths, count = self.paths, len(self.groups)
        streams: dict[str, Tensor] = {}

        def record(tensor: Tensor, point: HookPoint) -> None:
            streams[point.name] = tensor

        def keep(tensor: Tensor, point: HookPoint) -> None:
            """Set heads to the corrupted run's values, and senders to the clean run's."""
            rows = tensor.view(count, -1, *tensor.shape[1:])
            heads = point.name.endswith("hook_z")
            if heads:
                rows[:] = paths.here[point.name]
            for row, group in zip(rows, self.groups, strict=True):
                for node in group:
                    if node.layer == point.layer and node.kind == ("head" if heads else "mlp"):
                        of_node(row, node).copy_(of_node(paths.there[point.name], node))

        record.reads_only = True  # type: ignore[attr-defined]
        embed = Node("embed", -1)
        start = torch.cat(
            [
                paths.there["hook_embed"] if embed in group else paths.here["hook_embed"]
                for group in self.groups
            ]
        )
        last = f"blocks.{paths.layers - 1}.hook_resid_post"
        recorded = ["blocks.*.hook_resid_pre", "blocks.*.hook_mlp_in", last]
        paths.model.run_with_hooks(
            start,
            [
                ("blocks.*.attn.hook_z", keep),
                ("blocks.*.hook_mlp_out", keep),
                *((name, record) for name in recorded),
            ],
            **paths._arguments(count, 0, paths.layers),
        )
        return streams


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]
