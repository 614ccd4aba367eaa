"""The metric's gradients at what every reader reads, averaged over several runs of a batch.

A head's queries, keys and values each read the residual stream as if by themselves, so that a
layer of H heads has 3H gradients where the stream has one. No run has to keep the stream 3H times
for that: below the query q = W_q LN(x) of a head there is only its own matrix and the layer norm,
so that with g the gradient at q, w the norm's weight, x̂ what it makes of x before w, and σ its
scale

    gradient at x = (u - mean(u) - x̂ mean(u x̂)) / σ,    u = w W_qᵀ g

which is what autograd would compute, written out. Averaged over runs with weights c it needs only
sums as small as g itself, and W_q once for all runs:

    w W_qᵀ (Σ c g / σ), less its mean, - Σ c x̂ mean(u x̂) / σ,    mean(u x̂) = g · W_q(w x̂) / d_model

where W_q(w x̂) is the query without what biases put into it. Runs go through the model side by
side, as copies of the batch, and backwards in one pass, as far as memory allows.

Where anything of a user's stands in the network (a hook, a spliced function) the runs are those of
``gradients.run``, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from neox_lab.errors import InputError
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.graph import Node
from neox_lab.experiments.prompt_pairs import Batch
from neox_lab.hooks import reads_only
from neox_lab.model.block import SPLIT_INPUTS, Block, layer_norm_parts
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.model.parts import at_least_float32, plain_layer_norm

NUMBERS_AT_ONCE = 2**28
"""Numbers that the backward pass of runs side by side keeps: 1 GB in float32."""
KEPT = 24
"""Of these for each token and layer, in multiples of d_model."""

Slopes = Callable[[str], Tensor]
"""From the hook name of readers to the mean gradient there, as wide as what stands there."""


class Added(NamedTuple):
    """What a head or an MLP writes beside its own in each run.

    Attributes:
        node: which.
        change: ``[step, batch, pos, d_model]``.
        stream: what enters its layer, and is the same in all runs: ``[batch, pos, d_model]``.
    """

    node: Node
    change: Tensor
    stream: Tensor

    def hook(self) -> tuple[str, HookFunction]:
        """What adds it to runs side by side."""

        def add(tensor: Tensor, _: HookPoint) -> None:
            self.node.part_of(tensor).add_(self.change.flatten(0, 1).to(tensor))

        return self.node.writing_hook, add


def mean_slopes(
    batch: Batch,
    names: Sequence[str],
    embeds: Tensor,
    weights: Sequence[float],
    added: Added | None = None,
) -> Slopes:
    """Gradients of the metric at readers, a weighted sum over runs.

    Args:
        batch: what to run; gradients are those of each row's own metric where it has one.
        names: reading hooks of ``graph.readers``.
        embeds: what the tokens' embeddings are in each run, ``[step, batch, pos, d_model]``.
        weights: of the runs.
        added: what else is changed in each run.

    Raises:
        InputError: the metric has no gradient.
        HookError: the layer norm in front of attention is no layer norm.
    """
    if batch.model.hook_stack.placements:
        return _one_by_one(batch, names, embeds, weights, added)
    sums = _Sums(batch, names)
    size = embeds[0].numel() * KEPT * batch.model.config.num_hidden_layers
    at_once = max(1, NUMBERS_AT_ONCE // size)
    for first in range(0, len(embeds), at_once):
        some = slice(first, first + at_once)
        sums.run(embeds[some], weights[some], None if added is None else _part(added, some))
    return sums.slope


def line(start: Tensor, end: Tensor, places: Sequence[float]) -> Tensor:
    """Places between two tensors, 0 at the start and 1 at the end: ``[place, ...]``."""
    return torch.stack([start + place * (end - start) for place in places])


def _one_by_one(
    batch: Batch,
    names: Sequence[str],
    embeds: Tensor,
    weights: Sequence[float],
    added: Added | None,
) -> Slopes:
    totals: dict[str, Tensor] = {}
    for step, weight in enumerate(weights):
        hooks = [] if added is None else [_part(added, slice(step, step + 1)).hook()]
        with batch.model.hooks(hooks):
            found = gradients.run(batch, names, embeds=embeds[step]).gradients
        for name, gradient in found.items():
            totals[name] = totals.get(name, 0) + weight * gradient
    return totals.__getitem__


def _part(added: Added, some: slice) -> Added:
    return added._replace(change=added.change[some])


class _Sums:
    """Sums over runs from which the slopes of all readers are made.

    Attributes:
        direct: sums of gradients at MLPs' inputs and at the last residual stream, by hook name.
        scaled: Σ c g / σ at queries, keys and values ``[batch, pos, head, d_head]``, by hook name.
        alongs: c mean(u x̂) / σ of each run ``[step, batch, pos, head]``, by hook name.
        normalized: x̂ of each run ``[step, batch, pos, d_model]``, by layer.
    """

    def __init__(self, batch: Batch, names: Sequence[str]) -> None:
        self.batch, self.model = batch, batch.model
        self.layers = self.model.config.num_hidden_layers
        self.last = f"blocks.{self.layers - 1}.hook_resid_post"
        self.names = names
        self.heads = {name: _Head.of(self.model.backbone.layers, name) for name in names
                      if name.endswith(SPLIT_INPUTS)}  # fmt: skip
        self.direct: dict[str, Tensor] = {}
        self.scaled: dict[str, Tensor] = {}
        self.alongs: dict[str, list[Tensor]] = {}
        self.normalized: dict[int, list[Tensor]] = {}

    def run(self, embeds: Tensor, weights: Sequence[float], added: Added | None) -> None:
        """Run some copies of the batch side by side and add what comes back."""
        seen: dict[str, Tensor] = {}

        @reads_only
        def note(tensor: Tensor, point: HookPoint) -> None:
            seen[point.name] = tensor

        def keep(tensor: Tensor, point: HookPoint) -> None:
            seen[point.name] = tensor  # a copy of its own, which only what comes after it reads

        copies, layer, start = len(embeds), 0, embeds.flatten(0, 1)
        hooks: list[tuple[str, HookFunction]] = [*gradients.even_padding(self.batch, copies)]
        if added is not None:
            hooks.append(added.hook())
            layer, start = added.node.layer, added.stream.repeat(copies, 1, 1)
        hooks += [(head.projected, note) for head in self.heads.values()]
        hooks += [(name, note) for name in {head.stream for head in self.heads.values()}]
        hooks += [(name, keep) for name in self.names if name.endswith("hook_mlp_in")]
        arguments = self.batch.repeated(copies)
        del arguments["input_ids"]
        arguments |= {"start_at_layer": layer, "stop_at_layer": self.layers}
        with torch.enable_grad():
            start = start.to(self.model.dtype).detach().requires_grad_()
            output = self.model.run_with_hooks(start, hooks, **arguments)
            seen[self.last] = stream = output.last_hidden_state
            value = self.batch.sum_of_streams(stream)
            if not value.requires_grad:
                raise InputError(gradients.NO_GRADIENT)
            own = {name: self.heads[name].projected if name in self.heads else name
                   for name in self.names}  # fmt: skip
            found = torch.autograd.grad(
                value,
                [seen[name] for name in own.values()],
                allow_unused=True,
                materialize_grads=True,
            )
        self._add(dict(zip(self.names, found, strict=True)), seen, weights)

    def _add(
        self, found: dict[str, Tensor], seen: dict[str, Tensor], weights: Sequence[float]
    ) -> None:
        """Add the gradients of some runs."""
        shape = (len(weights), *self.batch.ids.shape)
        shares: dict[int, Tensor] = {}  # c / σ by layer
        for name, gradient in found.items():
            gradient = at_least_float32(gradient).view(*shape, *gradient.shape[2:])
            share = gradient.new_tensor(weights)
            if name not in self.heads:
                total = torch.tensordot(share, gradient, dims=1)
                self.direct[name] = self.direct.get(name, 0) + total
                continue
            head = self.heads[name]
            if head.layer not in shares:
                stream = at_least_float32(seen[head.stream].detach())
                normalized, scale = layer_norm_parts(stream, head.norm)
                shares[head.layer] = share.view(-1, 1, 1, 1, 1) / scale.view(*shape, 1, 1)
                self.normalized.setdefault(head.layer, []).append(normalized.view(*shape, -1))
            scaled = gradient * shares[head.layer]
            self.scaled[name] = self.scaled.get(name, 0) + scaled.sum(dim=0)
            without_bias = seen[head.projected].detach().view_as(gradient) - head.bias
            along = (scaled * without_bias).sum(dim=-1) / head.weight.shape[-1]
            self.alongs.setdefault(name, []).append(along)

    def slope(self, name: str) -> Tensor:
        """The weighted sum of gradients at readers of one hook; layers may be on other devices."""
        home = self.batch.ids.device
        if name in self.direct:
            return self.direct[name].to(home)
        head = self.heads[name]
        alongs, normalized = torch.cat(self.alongs[name]), torch.cat(self.normalized[head.layer])
        slope = torch.einsum("bphe,hed->hbpd", self.scaled[name], head.weight)
        slope -= torch.einsum("sbph,sbpd->hbpd", alongs, normalized)
        return slope.permute(1, 2, 0, 3).to(home)


class _Head(NamedTuple):
    """How the heads of a layer make their queries (or keys, or values) of the stream.

    Attributes:
        layer: its number.
        stream: hook name of what they read.
        projected: hook name of what they make.
        norm: the layer norm in between.
        weight: W times the norm's weight, less its mean over d_model, ``[head, d_head, d_model]``.
        bias: what they make of a stream that the layer norm leaves nothing of, ``[head, d_head]``.
    """

    layer: int
    stream: str
    projected: str
    norm: nn.LayerNorm
    weight: Tensor
    bias: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, blocks: nn.ModuleList, name: str) -> _Head:
        """For the reading hook ``name``, such as ``blocks.3.hook_q_input``."""
        _, number, hook = name.split(".")
        block, part = cast(Block, blocks[int(number)]), SPLIT_INPUTS.index(hook)
        norm = plain_layer_norm(block.input_layernorm, "input_layernorm")
        matrix, bias = block.attention.reading()
        heads, d_head = block.attention.heads, block.attention.d_head
        weight = at_least_float32(matrix).view(heads, 3, d_head, -1)[:, part]
        none = weight @ at_least_float32(norm.bias)
        if bias is not None:
            none = none + bias.view(heads, 3, d_head)[:, part]
        weight = weight * norm.weight
        weight = weight - weight.mean(dim=-1, keepdim=True)
        prefix = f"blocks.{number}."
        projected = f"{prefix}attn.hook_{'qkv'[part]}"
        return cls(int(number), f"{prefix}hook_resid_pre", projected, norm, weight, none)
