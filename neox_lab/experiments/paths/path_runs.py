"""How a change is sent from one part of the network to another: the runs behind path patching.

A sender is one writer or several that are patched as one, at every position or at a named one.
Several senders go through the blocks together, as copies of the corrupted batch side by side. Both
plain runs and all copies go up the blocks as one, so that each layer's weights are used in one
place and time: in each block the plain runs first, then, group by group, what receivers make of
changed inputs, and the copies in which they are set to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check
from neox_lab.errors import InputError
from neox_lab.experiments.graph import Node
from neox_lab.experiments.metrics import BoundMetric
from neox_lab.experiments.patching.progress_report import Watch
from neox_lab.experiments.patching.runs import Stream, blocks_of
from neox_lab.experiments.patching.spilling import Room
from neox_lab.experiments.patching.stretches import stretches
from neox_lab.experiments.prompt_pairs import Batch, Pair
from neox_lab.hooks import reads_only
from neox_lab.model.attention import head_results
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.parts import at_least_float32

Through = Literal["nothing", "mlps"]
Hooks = list[tuple[str, HookFunction]]
_OUTPUT = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "": "hook_mlp_out"}
_WRITTEN = ["hook_embed", "attn.hook_z", "hook_mlp_out"]


class Sender(NamedTuple):
    """What is sent.

    Attributes:
        nodes: writers, patched as one.
        place: number of the named position where they write; 0 if none is named.
    """

    nodes: tuple[Node, ...]
    place: int


class Path(NamedTuple):
    """A sender, and the receivers that hear of it."""

    sender: Sender
    readers: Sequence[Node]

    @property
    def entry(self) -> int:
        """The first block in which anything differs; the number of blocks for the logits."""
        return min(reader.layer for reader in self.readers)


class PathRuns:
    """Both runs, and the copies that a change is sent through.

    Attributes:
        corrupted: the batch that gets patched.
        own: its plain run.
        chosen: 1 where senders write ``[place, batch, pos, 1]``.
        clean_value: the metric of the clean run; NaN before it is at the top.
        samples: the metric of the corrupted run ``[sample]``, one for each pair if it has that;
            NaN likewise.
        paths: what is sent where, see ``prepare``.
        values: the metric of each path ``[path, sample]``, NaN likewise.
        computed: of which paths it is known.
    """

    def __init__(self, both: Pair, through: Through, tokens_at_once: int) -> None:
        """Nothing is run yet.

        Args:
            both: the batches.
            through: what is computed anew between sender and receiver.
            tokens_at_once: in one run of a block, of all copies together.

        Raises:
            InputError: ``tokens_at_once`` is no number of tokens.
        """
        self.both, self.corrupted, self.through = both, both.corrupted, through
        self.chosen = both.chosen[..., None]
        self.model = both.corrupted.model
        self.blocks = blocks_of(self.model)
        self.layers = self.model.config.num_hidden_layers
        tokens_at_once = check("tokens_at_once", tokens_at_once, COUNT, InputError)
        self.at_once = max(1, tokens_at_once // self.corrupted.ids.numel())
        self.clean_value = torch.nan
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        rows = len(self.corrupted.ids) if isinstance(self.corrupted.metric, BoundMetric) else 1
        self.samples = torch.full((rows,), torch.nan, dtype=dtype)
        self._changes: dict[Node, Tensor] = {}

    def prepare(self, paths: Sequence[Path]) -> None:
        """Make room for what is known of each path: nothing yet, should ``run`` be interrupted.

        Args:
            paths: what is sent where.
        """
        self.paths = paths
        self.values = torch.full(
            (len(paths), len(self.samples)), torch.nan, dtype=torch.float32
        ).to(self.samples)
        self.computed = torch.zeros(len(paths), dtype=torch.bool)

    @torch.no_grad()
    def run(self, watch: Watch) -> None:
        """Send every change; fills ``values`` and ``computed``.

        Args:
            watch: told how many blocks copies have gone through, and how many there are.
        """
        paths = self.paths
        order = sorted(range(len(paths)), key=lambda number: paths[number].entry)
        costs = torch.tensor([self.layers + 1 - paths[number].entry for number in order])
        total, done = int(costs.sum()), 0
        for span in stretches(self.model, costs, 2 * self.layers, self.at_once * self.layers):
            self._climb(order[span], watch, done, total)
            done += int(costs[span].sum())

    def _climb(self, order: list[int], watch: Watch, done: int, total: int) -> None:
        """Both plain runs and some paths go up.

        Args:
            order: numbers of those that go up, in the order in which they enter.
            watch: see ``run``.
            done: what was done before.
            total: what there is to do.
        """
        paths, kept = self.paths, [*_WRITTEN, "hook_resid_pre", "hook_mlp_in"]
        self.own = Stream(self.model, self.corrupted.prompts, kept)
        self._clean = Stream(self.model, self.both.clean.prompts, _WRITTEN)
        room = Room(self.model.device)
        starts = range(0, len(order), self.at_once)
        numbers = [order[first : first + self.at_once] for first in starts]
        groups = [Group(self, [paths[number] for number in each], room) for each in numbers]
        senders = {node for number in order for node in paths[number].sender.nodes}
        for layer in watch.climb(self.layers):
            self._advance(layer, senders)
            for group in groups:
                going = group.step(layer)
                done += going
                if going:
                    watch.report(done, total)
        self._measure_runs()
        for which, group in zip(numbers, groups, strict=True):
            self.values[which] = self._measure(self.corrupted, group.top()).to(self.values)
            self.computed[which] = True
            done += len(which)
            watch.report(done, total)

    def _advance(self, layer: int, senders: set[Node]) -> None:
        """Both plain runs go through one block; what its senders change is kept."""
        self._clean.advance()
        self.own.advance()
        for node in senders:
            if max(node.layer, 0) == layer:
                clean, own = self.both.aligned(self.written(node, True)), self.written(node, False)
                self._changes[node] = clean - own

    def written(self, node: Node, clean: bool) -> Tensor:
        """What a writer of the block that was run last writes ``[batch, pos, d_model]``."""
        run = self._clean if clean else self.own
        if node.kind != "head":
            return run(node.writing_hook, node.layer)
        attention = self.blocks[node.layer].attention
        own = slice(node.head * attention.d_head, (node.head + 1) * attention.d_head)
        z = run("attn.hook_z", node.layer)[:, :, node.head, None]
        return head_results(z, attention.writing().weight[:, own])[:, :, 0]

    @property
    def home(self) -> torch.device:
        """Where tensors are between blocks; those in blocks of other devices are there."""
        return self.own.leaving.device

    def at(self, hook: str, layer: int, clean: bool = False) -> Tensor:
        """What a run shows in its last block, at the columns of the corrupted batch."""
        return self.both.aligned(self._clean(hook, layer)) if clean else self.own(hook, layer)

    def precedes(self, writer: Node, reader: Node) -> bool:
        """Whether there is an edge."""
        return writer.precedes(reader, self.model.config.use_parallel_residual)

    def change(self, sender: Sender, reader: Node) -> Tensor:
        """What a sender changes in what ``reader`` reads, ``[batch, pos, d_model]``."""
        total = torch.zeros_like(self.own.leaving)
        for node in sender.nodes:
            if self.precedes(node, reader):
                total += self._changes[node]
        return total * self.chosen[sender.place].to(total.dtype)

    def go(self, entering: Tensor, layer: int, hooks: Hooks) -> Tensor:
        """Copies of the corrupted batch through one block ``[copy * batch, pos, d_model]``."""
        arguments: dict[str, Any] = self.corrupted.repeated(
            len(entering) // len(self.corrupted.ids)
        )
        del arguments["input_ids"]
        arguments |= {"start_at_layer": layer, "stop_at_layer": layer + 1, "use_cache": False}
        output = self.model.run_with_hooks(entering, hooks, **arguments)
        found: Tensor = output.last_hidden_state
        return found

    def _measure_runs(self) -> None:
        """The metric of both plain runs, which are at the top."""
        self.clean_value = float(self.both.clean.measure_streams(self._clean.leaving).mean())
        self.samples = self._measure(self.corrupted, self.own.leaving)[0]

    @staticmethod
    def _measure(batch: Batch, streams: Tensor) -> Tensor:
        return at_least_float32(batch.measure_streams(streams)).cpu()


class Group:
    """Some paths, each with a copy of the corrupted batch, on their way up."""

    def __init__(self, runs: PathRuns, paths: list[Path], room: Room) -> None:
        """Nothing is run yet.

        Args:
            runs: the plain runs, and what senders change.
            paths: in the order in which they enter.
            room: where residual streams wait.
        """
        self.runs, self.paths, self.room = runs, paths, room
        self.batch = len(runs.corrupted.ids)
        self.senders = list(dict.fromkeys(path.sender for path in paths))
        number = {sender: at for at, sender in enumerate(self.senders)}
        self.received: dict[int, list[tuple[int, int, Node]]] = {}  # by block: row, sender, reader
        for row, path in enumerate(paths):
            for reader in path.readers:
                entry = row, number[path.sender], reader
                self.received.setdefault(reader.layer, []).append(entry)
        self.x: Tensor | None = None
        self.anew: Tensor | None = None  # with heads kept and MLPs made anew, a row for each sender
        self._mlp_in: Tensor | None = None

    def step(self, layer: int) -> int:
        """Go through one block; how many paths did."""
        after = self._make_anew(layer)
        going = sum(path.entry <= layer for path in self.paths)
        if going:
            own, before = self.runs.at("hook_resid_pre", layer), 0
            parts = []
            if self.x is not None:
                parts, before = [self.x.to(own.device)], len(self.x) // self.batch
            if going > before:
                parts.append(own.repeat(going - before, 1, 1))
            x = parts[0] if len(parts) == 1 else torch.cat(parts)
            self.x = self._kept("x", self.runs.go(x, layer, self._settings(layer, going)), going)
        if after is not None:
            self.anew = self._kept("anew", after, len(self.paths))
        return going

    def top(self) -> Tensor:
        """The residual streams after the last block ``[path * batch, pos, d_model]``."""
        runs, last = self.runs, self.runs.layers
        final = runs.own.leaving
        before = 0 if self.x is None else len(self.x) // self.batch
        x = final.repeat(len(self.paths), 1, 1)
        if self.x is not None:
            x[: before * self.batch] = self.x.to(final.device)
        rows = x.view(len(self.paths), *final.shape)
        for row, sender, reader in self.received.get(last, []):
            rows[row] += self._change(sender, reader)
        return x

    def _kept(self, which: str, x: Tensor, count: int) -> Tensor:
        """``x``, or a copy of it in a file, once the group has all its rows."""
        return self.room.put((self, which), x) if count == len(self.paths) else x

    def _change(self, sender: int, reader: Node) -> Tensor:
        """What a sender changes in what ``reader`` reads, ``[batch, pos, d_model]``."""
        own = self.runs.own
        if self.anew is None:
            return self.runs.change(self.senders[sender], reader)
        rows = slice(sender * self.batch, (sender + 1) * self.batch)
        if reader.kind == "mlp":
            assert self._mlp_in is not None
            return self._mlp_in[rows] - own("hook_mlp_in", reader.layer)
        plain = own.leaving if reader.kind == "logits" else own("hook_resid_pre", reader.layer)
        return self.anew[rows].to(plain.device) - plain

    def _settings(self, layer: int, count: int) -> Hooks:
        """Hooks that set the receivers of one block in ``count`` copies."""
        reading = self.received.get(layer, [])
        senders = sorted({sender for _, sender, _ in reading})
        made = self._receive(layer, senders) if reading else {}
        place = {sender: at for at, sender in enumerate(senders)}
        hooks: Hooks = []
        for part, name in _OUTPUT.items():
            of_part = [entry for entry in reading if entry[2].part == part]
            if not of_part:
                continue
            row = torch.tensor([entry[0] for entry in of_part])
            sender = torch.tensor([place[entry[1]] for entry in of_part])
            head = torch.tensor([entry[2].head for entry in of_part])
            values = made[part][sender] if not part else made[part][sender, :, :, head]

            def write(
                tensor: Tensor,
                _: HookPoint,
                row: Tensor = row,
                head: Tensor = head,
                values: Tensor = values,
                whole: bool = not part,
            ) -> None:
                rows, there = tensor.view(count, -1, *tensor.shape[1:]), tensor.device
                if whole:
                    rows[row.to(there)] = values.to(there)
                else:
                    rows[row.to(there), :, :, head.to(there)] = values.to(there)

            hooks.append((f"blocks.{layer}.{name}", write))
        return hooks

    def _receive(self, layer: int, senders: list[int]) -> dict[str, Tensor]:
        """What the readers of one block make of changed inputs, by part.

        Returns:
            ``q``, ``k`` and ``v`` ``[sender, batch, pos, head, d_head]``, and under the empty name
            what the MLP writes ``[sender, batch, pos, d_model]``.
        """
        prefix = f"blocks.{layer}."
        received: dict[str, Tensor] = {}

        def changed(hook: str, reader: Node) -> Tensor:
            changes = torch.cat([self._change(sender, reader) for sender in senders])
            return self.runs.at(hook, layer).repeat(len(senders), 1, 1) + changes

        @reads_only
        def record(tensor: Tensor, point: HookPoint) -> None:
            part = next(p for p, name in _OUTPUT.items() if point.name == prefix + name)
            received[part] = tensor.view(len(senders), -1, *tensor.shape[1:]).to(self.runs.home)

        def mlp_in(tensor: Tensor, _: HookPoint) -> Tensor:
            return changed("hook_mlp_in", Node("mlp", layer)).to(tensor.device)

        hooks: Hooks = [(prefix + name, record) for name in _OUTPUT.values()]
        hooks.insert(0, (f"{prefix}hook_mlp_in", mlp_in))
        self.runs.go(changed("hook_resid_pre", Node("head", layer)), layer, hooks)
        return received

    def _make_anew(self, layer: int) -> Tensor | None:
        """One block with senders exchanged, heads kept and the MLP made anew: what leaves it.

        None where nobody asks.
        """
        if self.runs.through != "mlps" or layer > max(self.received):
            return None
        if layer == 0:
            self.anew = self._exchanged("embed", self.runs.at("hook_embed", -1), "hook_embed", -1)
        assert self.anew is not None

        @reads_only
        def record(tensor: Tensor, _: HookPoint) -> None:
            self._mlp_in = tensor.to(self.runs.home)

        def keep_heads(tensor: Tensor, _: HookPoint) -> Tensor:
            own = self.runs.at("attn.hook_z", layer)
            return self._exchanged("head", own, "attn.hook_z", layer).to(tensor.device)

        def exchange(tensor: Tensor, _: HookPoint) -> Tensor:
            own = tensor.to(self.runs.home)
            return self._exchanged("mlp", own, "hook_mlp_out", layer).to(tensor.device)

        prefix = f"blocks.{layer}."
        hooks: Hooks = [(f"{prefix}attn.hook_z", keep_heads), (f"{prefix}hook_mlp_in", record)]
        hooks.append((f"{prefix}hook_mlp_out", exchange))
        return self.runs.go(self.anew.to(self.runs.own.leaving.device), layer, hooks)

    def _exchanged(self, kind: str, own: Tensor, hook: str, layer: int) -> Tensor:
        """What stands at a hook, for each sender with its own part of the clean run's."""
        clean = self.runs.at(hook, layer, clean=True)
        rows = own.view(-1, *clean.shape).expand(len(self.senders), *clean.shape).clone()
        for row, sender in zip(rows, self.senders, strict=True):
            chosen = self.runs.chosen[sender.place] > 0
            for node in sender.nodes:
                if (node.kind, node.layer) == (kind, layer):
                    part = node.part_of(row)
                    part.copy_(torch.where(chosen, node.part_of(clean), part))
        return rows.flatten(0, 1)
