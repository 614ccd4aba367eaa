"""The clean prompts, run with every edge somewhere between open and cut, with a gradient.

    input of reader v = stream + Σ over edges u→v (1 - mask_uv)(replacement_u - written_u)

At masks of 0 and 1 this is the run of a circuit, see ``runs``. In between, autograd goes through
it: one run forward and one back give the gradient at the masks of all edges. What a layer's heads
or its MLP wrote stays one tensor, which every later layer reads from, so that memory grows with
the number of writers and not with the number of edges.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neox_lab.circuits.runs import CircuitRuns
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import BoundMetric, output_logits
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.parts import at_least_float32


def logits_under(runs: CircuitRuns, masks: Tensor) -> Tensor:
    """The logits of the clean prompts under masks, with a gradient at the masks.

    Args:
        runs: the prompts, and what stands outside the circuit.
        masks: 1 for an open edge, 0 for one that is cut, ``[writer, reader]``.
    """
    hooks = _Masked(runs, 1 - masks.to(runs.replacements)).hooks()
    with torch.enable_grad():
        output = runs.model.run_with_hooks(runs.batch.ids, hooks, **runs.batch.arguments)
        return output_logits(output)


class _Masked:
    """One run: by how much replacements differ from what was written, one tensor for each hook."""

    def __init__(self, runs: CircuitRuns, cut: Tensor) -> None:
        self.runs, self.cut = runs, cut
        self.rows: dict[str, list[int]] = {}
        self.columns: dict[str, list[int]] = {}
        for row, node in enumerate(runs.writers):
            self.rows.setdefault(node.writing_hook, []).append(row)
        for column, node in enumerate(runs.readers):
            self.columns.setdefault(node.reading_hook, []).append(column)
        self.changes: dict[str, Tensor] = {}  # [batch, pos, node, d_model] by writing hook

    def hooks(self) -> list[tuple[str, HookFunction]]:
        """Writers are watched, readers see something else."""
        found: list[tuple[str, HookFunction]] = [(name, self.wrote) for name in self.rows]
        return [*found, *((name, self.read) for name in self.columns)]

    @reads_only
    def wrote(self, tensor: Tensor, point: HookPoint) -> None:
        """Note what some writers would have to add to be replaced."""
        own = tensor if tensor.dim() == 4 else tensor[:, :, None]
        replaced = self.runs.replacements[self.rows[point.name]].permute(1, 2, 0, 3)
        self.changes[point.name] = replaced - own.to(replaced.device)

    def read(self, tensor: Tensor, point: HookPoint) -> Tensor:
        """What some readers see, ``[batch, pos, reader, d_model]`` or ``[batch, pos, d_model]``."""
        columns, reader = self.columns[point.name], self.runs.readers[self.columns[point.name][0]]
        for name, change in self.changes.items():
            rows = self.rows[name]
            if self.runs.writers[rows[0]].precedes(reader, self.runs.parallel):
                cut = self.cut[rows][:, columns]
                seen = torch.einsum("bpwd,wr->bprd", change, cut).view(tensor.shape)
                tensor = tensor + seen.to(tensor.device)
        return tensor


def distance_to_clean(runs: CircuitRuns, objective: str) -> Callable[[Tensor], Tensor]:
    """How far logits are from those of the whole model, as a function of them, a scalar.

    Args:
        runs: the prompts.
        objective: ``"metric"``, the mean over prompts of ``|metric - metric of the clean run|``;
            ``"kl"``, the divergence of the prediction from the clean one in nats, where the metric
            reads it, or at every token for a metric that does not say where.

    Raises:
        InputError: question answering has no prediction over tokens.
    """
    if objective == "metric":

        def moved(logits: Tensor) -> Tensor:
            value, rows = runs.batch.measure(logits)
            found = value[None] if rows is None else rows
            if not found.requires_grad and torch.is_grad_enabled():
                raise InputError(
                    "The metric has no gradient at the logits, as a count or an argmax has none. "
                    "Use one that changes smoothly, such as logit_difference, or "
                    "objective='kl'."
                )
            return (found - runs.clean.to(found)).abs().mean()

        return moved
    if runs.model.head == "question-answering":
        raise InputError(
            "objective='kl' compares predictions over tokens or labels, which question answering "
            "has not. Use objective='metric'."
        )
    with torch.no_grad():
        output = runs.model(**runs.batch.arguments)
        clean = _predicted(runs, output_logits(output))

    def diverged(logits: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(
            _predicted(runs, logits), clean, reduction="batchmean", log_target=True
        )

    return diverged


def _predicted(runs: CircuitRuns, logits: Tensor) -> Tensor:
    """Log-probabilities where the metric reads, ``[place, output]``."""
    if logits.dim() == 3:
        metric = runs.batch.metric
        if isinstance(metric, BoundMetric):
            rows = torch.arange(len(logits), device=logits.device)[:, None]
            logits = logits[rows, metric.positions].flatten(0, 1)
        else:
            logits = logits[runs.batch.own]
    return at_least_float32(logits).log_softmax(dim=-1)
