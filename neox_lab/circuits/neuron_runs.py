"""The clean prompts, run with single neurons as they are for the corrupted prompts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neox_lab.experiments.prompt_pairs import Pair
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.parts import at_least_float32
from neox_lab.progress import Progress

TOKENS_AT_ONCE = 1024


def neuron_hook(layer: int) -> str:
    """Where the neurons of a layer are, after the activation function."""
    return f"blocks.{layer}.mlp.hook_post"


def removed(both: Pair, neurons: list[tuple[int, int]], silent: bool = True) -> Tensor:
    """The metric with neurons removed, one at a time, minus that of the clean run.

    A run begins at the neuron's layer; neurons of one layer run side by side as copies of the
    batch.

    Args:
        both: its ``corrupted`` side are the clean prompts, which neurons are removed from.
        neurons: layer and number of each.
        silent: show no bar.

    Returns:
        ``[neuron, sample]``, on the CPU.
    """
    batch, model = both.corrupted, both.corrupted.model
    layers = sorted({layer for layer, _ in neurons})
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
    last = f"blocks.{model.config.num_hidden_layers - 1}.hook_resid_post"
    with torch.no_grad():
        _, own = model.run_with_cache(batch.ids, [*streams, last], **batch.arguments)
        hooks = [neuron_hook(layer) for layer in layers]
        _, other = model.run_with_cache(both.clean.ids, hooks, **both.clean.arguments)
    whole = batch.measure_streams(own[last])
    found: dict[tuple[int, int], Tensor] = {}
    with Progress(len(neurons), unit="neuron", silent=silent, delay=1) as bar:
        for layer, numbers in _by_layer(neurons, max(1, TOKENS_AT_ONCE // batch.ids.numel())):
            start, there = own[f"blocks.{layer}.hook_resid_pre"], other[neuron_hook(layer)]
            changes = at_least_float32(_run(both, layer, numbers, start, there) - whole)
            for number, change in zip(numbers, changes.cpu(), strict=True):
                found[layer, number] = change
            bar.update(len(numbers))
    return torch.stack([found[place] for place in neurons])


def _by_layer(neurons: list[tuple[int, int]], most: int) -> Iterator[tuple[int, list[int]]]:
    """Neurons of one layer, at most so many at a time."""
    for layer in sorted({layer for layer, _ in neurons}):
        numbers = [number for at, number in neurons if at == layer]
        for start in range(0, len(numbers), most):
            yield layer, numbers[start : start + most]


@torch.no_grad()
def _run(both: Pair, layer: int, numbers: list[int], start: Tensor, there: Tensor) -> Tensor:
    """The metric ``[neuron, sample]`` where each copy of the batch has one neuron removed."""
    batch, count = both.corrupted, len(numbers)

    def remove(tensor: Tensor, _: HookPoint) -> Tensor:
        copies = tensor.view(count, *there.shape).clone()
        for copy, number in enumerate(numbers):
            copies[copy, ..., number] = there[..., number]
        return copies.view(tensor.shape)

    arguments = batch.repeated(count)
    del arguments["input_ids"]
    arguments |= {"start_at_layer": layer, "stop_at_layer": batch.model.config.num_hidden_layers}
    stream = start.repeat(count, 1, 1)
    output = batch.model.run_with_hooks(stream, [(neuron_hook(layer), remove)], **arguments)
    return batch.measure_streams(output.last_hidden_state)
