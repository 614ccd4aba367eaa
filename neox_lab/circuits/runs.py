"""The clean prompts, run with some edges of the network carrying something else.

Along an edge inside the circuit a reader sees what the writer writes in this very run. Along every
other edge it sees what the writer is replaced by, such as what it wrote for the corrupted prompts:

    input of reader v  =  residual stream  +  Σ over edges u→v outside (replacement_u - written_u)

One forward pass goes through the layers once, whatever the number of edges: before a layer reads,
one product over all writers so far gives what all its readers see. Several circuits run side by
side as copies of the batch. Below the first layer that has an edge outside, the run is the clean
one, which is known, so it begins there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.circuits.edges import edge_table
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.prompt_pairs import Batch, Pair
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.parts import at_least_float32

if TYPE_CHECKING:
    from neox_lab.hooks.cache import ActivationCache

Ablation = Literal["resample", "zero", "mean", "mean_by_pos"]
ABLATIONS = ("resample", "zero", "mean", "mean_by_pos")

NUMBERS_AT_ONCE = 2**26
"""Numbers of what all writers wrote that are held at a time: 256 MB in float32."""


class CircuitRuns:
    """Runs of one batch of clean prompts under circuits.

    Attributes:
        batch: the clean prompts, with the metric.
        writers: rows of a circuit's table.
        readers: its columns.
        clean: the metric of the whole model, ``[sample]``: one for each pair if the metric has
            that, else one.
    """

    def __init__(self, both: Pair, ablation: str) -> None:
        """Run the prompts that replacements come from.

        Args:
            both: its ``clean`` side is where replacements come from, its ``corrupted`` side what
                gets them: the clean prompts, since here circuits are cut out of the clean run.
            ablation: what stands outside the circuit: ``"resample"``, the other prompt's
                activations; ``"mean"``, their mean over all tokens; ``"mean_by_pos"``, the same
                column by column; ``"zero"``.

        Raises:
            InputError: an unknown ablation.
            HookError: a function is spliced in between heads and MLPs.
        """
        check("ablation", ablation, one_of(*ABLATIONS), InputError)
        self.batch: Batch = both.corrupted
        self.model = self.batch.model
        graph.check_whole(self.model)
        self.layers = self.model.config.num_hidden_layers
        self.parallel = self.model.config.use_parallel_residual
        self.writers, self.readers = graph.writers(self.model), graph.readers(self.model)
        self._rows = {node: row for row, node in enumerate(self.writers)}
        self._columns = {node: column for column, node in enumerate(self.readers)}
        self.last = f"blocks.{self.layers - 1}.hook_resid_post"
        hooks = list(dict.fromkeys(node.writing_hook for node in self.writers))
        found = self._activations(both.clean, hooks)
        made = {name: _replacement(both, found[name], ablation) for name in hooks}
        self.replacements = torch.stack(
            [node.part_of(made[node.writing_hook]) for node in self.writers]
        )  # [writer, batch, pos, d_model]
        own = self._activations(self.batch, [*hooks, "blocks.*.hook_resid_pre", self.last])
        self.own = torch.stack([node.part_of(own[node.writing_hook]) for node in self.writers])
        self.streams = [own["resid_pre", layer] for layer in range(self.layers)] + [own[self.last]]
        self.table = edge_table(self.writers, self.readers, self.parallel)
        self.clean = at_least_float32(self.batch.measure_streams(own[self.last])[0]).cpu()

    def _activations(self, batch: Batch, names: list[str]) -> ActivationCache:
        with torch.no_grad():
            _, cache = self.model.run_with_cache(
                batch.ids, names, stop_at_layer=self.layers, attention_mask=batch.prompts.mask
            )
        return cache

    @property
    def at_once(self) -> int:
        """Circuits in one forward pass."""
        return max(1, NUMBERS_AT_ONCE // self.replacements.numel())

    def measure(self, kept: Tensor) -> Tensor:
        """The metric under circuits.

        Args:
            kept: True for the edges of each, ``[circuit, writer, reader]``.

        Returns:
            ``[circuit, sample]``, on the CPU.
        """
        return torch.cat(list(self.measured(kept)))

    def measured(self, kept: Tensor) -> Iterator[Tensor]:
        """The same in parts, each as soon as it is known."""
        for some in kept.split(self.at_once):  # type: ignore[no-untyped-call]
            yield self._measure(some)

    @torch.no_grad()
    def _measure(self, kept: Tensor) -> Tensor:
        start = self._first_cut(kept)
        run = _Run(self, kept, start)
        stream = self.streams[start].repeat(len(kept), 1, 1)
        if start == self.layers:
            stream = run.seen(stream, self.last)
        else:
            arguments = self.batch.repeated(len(kept))
            del arguments["input_ids"]
            arguments |= {"start_at_layer": start, "stop_at_layer": self.layers}
            stream = self.model.run_with_hooks(stream, run.hooks(), **arguments).last_hidden_state
        return at_least_float32(self.batch.measure_streams(stream)).cpu()

    def require_numbers(self) -> None:
        """Refuse to search where the metric of the whole model or of nothing is no number.

        Raises:
            InputError: it is NaN or infinite.
        """
        ends = self.clean, self.measure(torch.zeros_like(self.table)[None])[0]
        for name, found in zip(("whole model", "model with every edge cut"), ends, strict=True):
            if not bool(found.isfinite().all()):
                raise InputError(
                    f"The metric of the {name} is NaN or infinite, so that no edge can be told "
                    "from another. model.check() names weights that are not finite."
                )

    def _first_cut(self, kept: Tensor) -> int:
        """The first layer with a reader that sees something else."""
        columns = (~kept & self.table).any(dim=0).any(dim=0).nonzero().flatten().tolist()
        return min((self.readers[column].layer for column in columns), default=self.layers)


class _Run:
    """One forward pass: what each writer's replacement differs by, filled as they write."""

    def __init__(self, runs: CircuitRuns, kept: Tensor, start: int) -> None:
        self.runs, self.count, self.start = runs, len(kept), start
        weight = runs.replacements
        self.cut = (~kept).to(weight)  # [circuit, writer, reader]
        shape = (len(runs.writers), self.count, *weight.shape[1:])
        self.changes = weight.new_zeros(shape)  # [writer, circuit, batch, pos, d_model]
        known = [row for row, node in enumerate(runs.writers) if node.layer < start]
        self.changes[known] = (weight[known] - runs.own[known])[:, None]
        self.before = runs.table.sum(dim=0).tolist()  # by reader: it sees so many first writers
        self.added: dict[str, Tensor] = {}

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """Everything that watches and changes the run."""
        found: list[tuple[str, HookFunction]] = []
        for layer in range(self.start, self.runs.layers):
            prefix = f"blocks.{layer}."
            found += [(f"{prefix}hook_{part}_input", self.read) for part in "qkv"]
            found.append((f"{prefix}hook_mlp_in", self.read))
            found.append((f"{prefix}attn.hook_result", self.wrote))
            found.append((f"{prefix}hook_mlp_out", self.wrote))
        return [*found, (self.runs.last, self.read)]

    @reads_only
    def wrote(self, tensor: Tensor, point: HookPoint) -> None:
        """Note by how much the replacements of some writers differ from what they wrote."""
        for node, row in self.runs._rows.items():
            if node.writing_hook == point.name:
                own = node.part_of(tensor).view(self.changes.shape[1:]).to(self.changes.device)
                torch.sub(self.runs.replacements[row], own, out=self.changes[row])

    def read(self, tensor: Tensor, point: HookPoint) -> Tensor:
        """A hook of readers; see ``seen``."""
        return self.seen(tensor, point.name)

    def seen(self, tensor: Tensor, hook: str) -> Tensor:
        """What readers see: the stream, with replacements along the edges that are cut."""
        if hook not in self.added:
            self.added = self._added(hook)
        added = self.added.pop(hook).to(tensor.device)  # [circuit, reader, batch, pos, d_model]
        split = tensor.view(self.count, -1, *tensor.shape[1:])
        if tensor.dim() == 4:  # [circuit * batch, pos, head, d_model]
            return (split + added.permute(0, 2, 3, 1, 4)).flatten(0, 1)
        return (split + added[:, 0]).flatten(0, 1)

    def _added(self, hook: str) -> dict[str, Tensor]:
        """What readers of a hook see beside the stream, and those that see the same writers.

        Everything that writers wrote is read from memory for it, which takes longer than the
        product itself; so queries, keys and values, and an MLP in parallel, share one.
        """
        readers, before = self.runs.readers, self.before
        first = next(at for at, node in enumerate(readers) if node.reading_hook == hook)
        alike = [at for at, rows in enumerate(before) if rows == before[first]]
        cut = self.cut[:, : before[first], alike[0] : alike[-1] + 1]
        changes = self.changes[: before[first]].transpose(0, 1)
        found = cut.transpose(1, 2) @ changes.flatten(2)
        found = found.view(*found.shape[:2], *changes.shape[2:])
        names = [readers[at].reading_hook for at in alike]
        return {
            name: found[:, names.index(name) : names.index(name) + names.count(name)]
            for name in dict.fromkeys(names)
        }


def _replacement(both: Pair, found: Tensor, ablation: str) -> Tensor:
    """What stands for the activations at one hook, in the columns of the clean prompts."""
    if ablation == "resample":
        return both.aligned(found)
    shape = (*both.corrupted.ids.shape, *found.shape[2:])
    if ablation == "zero":
        return found.new_zeros(shape)
    own = both.clean.own
    if ablation == "mean":
        return found[own].mean(dim=0).expand(shape)
    own = own.view(*own.shape, *[1] * (found.dim() - 2))
    total = torch.where(own, found, 0).sum(dim=0)
    mean = total / own.sum(dim=0).clamp(min=1).to(found.dtype)
    return both.aligned(mean.expand_as(found))
