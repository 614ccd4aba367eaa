"""How a change is sent from one part of the network to another: the runs behind path patching.

A sender is one writer or several that are patched as one, at every position or at a named one.
Several senders go through the blocks together, as copies of the corrupted batch side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.graph import Node
from neox_lab.experiments.prompt_pairs import Batch, Pair
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.parts import at_least_float32

if TYPE_CHECKING:
    from neox_lab.hooks.cache import ActivationCache

Through = Literal["nothing", "mlps"]
Hooks = list[tuple[str, HookFunction]]
_OUTPUT = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "": "hook_mlp_out"}


class Sender(NamedTuple):
    """What is sent.

    Attributes:
        nodes: writers, patched as one.
        place: number of the named position where they write; 0 if none is named.
    """

    nodes: tuple[Node, ...]
    place: int


class PathRuns:
    """Both runs, and the ways of sending a change from one part to another.

    Attributes:
        corrupted: the batch that gets patched.
        from_clean: activations of the clean run, at the columns of the corrupted batch.
        own: activations of the corrupted run.
        final: its residual stream after the last block ``[batch, pos, d_model]``.
        chosen: 1 where senders write ``[place, batch, pos, 1]``.
        clean_value: the metric of the clean run.
        samples: the metric of the corrupted run ``[sample]``: one for each pair if it has that.
    """

    def __init__(self, both: Pair, through: Through, tokens_at_once: int) -> None:
        """Make both runs.

        Args:
            both: the batches.
            through: what is computed anew between sender and receiver.
            tokens_at_once: in one run, of all variants together.

        Raises:
            InputError: ``tokens_at_once`` is no number of tokens.
        """
        self.corrupted, self.through = both.corrupted, through
        self.chosen = both.chosen[..., None]
        self.model = both.corrupted.model
        self.layers = self.model.config.num_hidden_layers
        self.parallel = self.model.config.use_parallel_residual
        tokens_at_once = check("tokens_at_once", tokens_at_once, COUNT, InputError)
        self.at_once = max(1, tokens_at_once // self.corrupted.ids.numel())
        last = f"blocks.{self.layers - 1}.hook_resid_post"
        names = list(dict.fromkeys(node.writing_hook for node in graph.writers(self.model)))
        names += ["blocks.*.attn.hook_z", last]
        clean = self._run(both.clean, names)
        self.clean_value = float(both.clean.measure_streams(clean[last]).mean())
        self.from_clean = {name: both.aligned(clean[name]) for name in clean}
        self.own = self._run(
            self.corrupted, [*names, "blocks.*.hook_resid_pre", "blocks.*.hook_mlp_in"]
        )
        self.final = self.own[last]
        self.samples = at_least_float32(self.corrupted.measure_streams(self.final)[0]).cpu()

    def _run(self, batch: Batch, names: list[str]) -> ActivationCache:
        _, cache = self.model.run_with_cache(
            batch.ids,
            names,
            stop_at_layer=self.layers,
            attention_mask=batch.prompts.mask,
        )
        return cache

    def precedes(self, writer: Node, reader: Node) -> bool:
        """Whether there is an edge."""
        return writer.precedes(reader, self.parallel)

    def unknown(self, *sizes: int) -> Tensor:
        """The metric before anything is known: NaN ``[*sizes, sample]``."""
        return self.samples.new_full((*sizes, len(self.samples)), torch.nan)

    def change(self, sender: Sender, reader: Node) -> Tensor:
        """What a sender changes in what ``reader`` reads, ``[batch, pos, d_model]``."""
        total = torch.zeros_like(self.final)
        for node in sender.nodes:
            if self.precedes(node, reader):
                hook = node.writing_hook
                total += node.part_of(self.from_clean[hook]) - node.part_of(self.own[hook])
        return total * self.chosen[sender.place].to(total.dtype)

    def joint(self, senders: list[Sender], reading: list[Node]) -> Iterator[tuple[slice, Tensor]]:
        """Which senders, and the metric with each sent to all receivers ``[sender, sample]``."""
        for first in range(0, len(senders), self.at_once):
            some = senders[first : first + self.at_once]
            changes = Changes(self, some)
            hooks: Hooks = []
            inside = [reader for reader in reading if reader.kind != "logits"]
            for layer in sorted({reader.layer for reader in inside}):
                received = self._receive(layer, changes)
                of_layer = [reader for reader in inside if reader.layer == layer]
                variants = [(at, at, r) for at in range(len(some)) for r in of_layer]
                hooks += self._settings(layer, received, variants, len(some))
            start = min((reader.layer for reader in inside), default=self.layers)
            direct = [reader for reader in reading if reader.kind == "logits"]
            final = changes(direct[0]) if direct else None
            yield slice(first, first + len(some)), self._finish(start, len(some), hooks, final)

    def edges(
        self, senders: list[Sender], readers: list[Node]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Numbers of sender and reader ``[edge]``, and the metric ``[edge, sample]``, in parts.

        Senders have one node.
        """
        for first in range(0, len(senders), self.at_once):
            some = senders[first : first + self.at_once]
            changes = Changes(self, some)
            for layer in range(self.layers + 1):
                edges = [
                    (row, column)
                    for column, reader in enumerate(readers)
                    if reader.layer == layer
                    for row, sender in enumerate(some)
                    if self.precedes(sender.nodes[0], reader)
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
    def _receive(self, layer: int, changes: Changes) -> dict[str, Tensor]:
        """Step 2 in one block: what its readers make of changed inputs, by part.

        Returns:
            ``q``, ``k`` and ``v`` ``[sender, batch, pos, head, d_head]``, and under the empty name
            what the MLP writes ``[sender, batch, pos, d_model]``.
        """
        count, prefix = len(changes.senders), f"blocks.{layer}."
        received: dict[str, Tensor] = {}

        @reads_only
        def record(tensor: Tensor, point: HookPoint) -> None:
            part = next(p for p, name in _OUTPUT.items() if point.name == prefix + name)
            received[part] = tensor.view(count, -1, *tensor.shape[1:])

        def mlp_in(tensor: Tensor, _: HookPoint) -> Tensor:
            read = self.own[f"{prefix}hook_mlp_in"]
            return read.repeat(count, 1, 1) + changes(Node("mlp", layer))

        hooks = [(f"{prefix}hook_mlp_in", mlp_in)]
        residual = self.own["resid_pre", layer].repeat(count, 1, 1) + changes(Node("head", layer))
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
    ) -> Hooks:
        """Hooks that set receivers of one block: variant, sender and reader of each setting."""
        hooks: Hooks = []
        for part, name in _OUTPUT.items():
            of_part = [entry for entry in variants if entry[2].part == part]
            if not of_part:
                continue
            variant = torch.tensor([entry[0] for entry in of_part])
            sender = torch.tensor([entry[1] for entry in of_part])
            head = torch.tensor([entry[2].head for entry in of_part])
            values = received[part][sender] if not part else received[part][sender, :, :, head]

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
    def _finish(self, start: int, count: int, hooks: Hooks, change: Tensor | None) -> Tensor:
        """Step 3 from block ``start`` on: the metric of each variant, ``[variant, sample]``."""
        stream = self.final.repeat(count, 1, 1)
        if start < self.layers:
            residual = self.own["resid_pre", start].repeat(count, 1, 1)
            arguments = self._arguments(count, start, self.layers)
            stream = self.model.run_with_hooks(residual, hooks, **arguments).last_hidden_state
        stream = stream if change is None else stream + change
        return at_least_float32(self.corrupted.measure_streams(stream)).cpu()

    def _arguments(self, count: int, start: int, stop: int) -> dict[str, Any]:
        """Arguments of ``forward`` for ``count`` copies of the batch, from block to block."""
        arguments: dict[str, Any] = self.corrupted.repeated(count)
        del arguments["input_ids"]
        return arguments | {"start_at_layer": start, "stop_at_layer": stop}


class Changes:
    """What senders change in what readers read: called with a reader.

    The answer is ``[sender * batch, pos, d_model]``.
    """

    def __init__(self, runs: PathRuns, senders: list[Sender]) -> None:
        """Run the network once for ``through="mlps"``, else nothing."""
        self.runs, self.senders = runs, senders
        self.streams = self._through_mlps() if runs.through == "mlps" else None

    def __call__(self, reader: Node) -> Tensor:
        """What all senders change in what ``reader`` reads."""
        if self.streams is None:
            return torch.cat([self.runs.change(sender, reader) for sender in self.senders])
        if reader.kind == "logits":
            name = f"blocks.{reader.layer - 1}.hook_resid_post"
        else:
            inside = "hook_mlp_in" if reader.kind == "mlp" else "hook_resid_pre"
            name = f"blocks.{reader.layer}.{inside}"
        return self.streams[name] - self.runs.own[name].repeat(len(self.senders), 1, 1)

    @torch.no_grad()
    def _through_mlps(self) -> dict[str, Tensor]:
        """Streams of the corrupted run with senders exchanged, heads kept and MLPs made anew."""
        runs, count = self.runs, len(self.senders)
        streams: dict[str, Tensor] = {}

        @reads_only
        def record(tensor: Tensor, point: HookPoint) -> None:
            streams[point.name] = tensor

        def keep(tensor: Tensor, point: HookPoint) -> None:
            """Set heads to the corrupted run's values, and senders to the clean run's."""
            rows = tensor.view(count, -1, *tensor.shape[1:])
            heads = point.name.endswith("hook_z")
            if heads:
                rows[:] = runs.own[point.name]
            for row, sender in zip(rows, self.senders, strict=True):
                chosen = runs.chosen[sender.place] > 0
                for node in sender.nodes:
                    if node.layer == point.layer and node.kind == ("head" if heads else "mlp"):
                        own = node.part_of(row)
                        clean = node.part_of(runs.from_clean[point.name])
                        own.copy_(torch.where(chosen, clean, own))

        embed = Node("embed", -1)
        own, clean = runs.own["hook_embed"], runs.from_clean["hook_embed"]
        start = torch.cat(
            [
                torch.where(runs.chosen[s.place] > 0, clean, own) if embed in s.nodes else own
                for s in self.senders
            ]
        )
        last = f"blocks.{runs.layers - 1}.hook_resid_post"
        recorded = ["blocks.*.hook_resid_pre", "blocks.*.hook_mlp_in", last]
        runs.model.run_with_hooks(
            start,
            [
                ("blocks.*.attn.hook_z", keep),
                ("blocks.*.hook_mlp_out", keep),
                *((name, record) for name in recorded),
            ],
            **runs._arguments(count, 0, runs.layers),
        )
        return streams
