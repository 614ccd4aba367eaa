"""Activations that are made by running one block again.

A block's activations all follow from the residual stream that enters it, so one tensor
``[batch, pos, d_model]`` a layer answers any question, at the price of one block's work when the
question is asked. The block asked about last is kept, because questions about a block come
together. What is made is exactly what a full cache would hold, or an error.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neox_lab.dropout import has_dropout
from neox_lab.errors import HookError
from neox_lab.hooks.derived import Maker, check_weights, weights_seen
from neox_lab.hooks.storage import Keeping
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.key_value_cache import given_cache

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedNetwork


def residual_points(model: HookedNetwork, first: int, last: int) -> list[HookPoint]:
    """What a lean cache stores: the residual stream before each block and after the last one."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(first, last)]
    if last > first:
        names.append(f"blocks.{last - 1}.hook_resid_post")
    return [model.hook_points[name] for name in names]


class LeanReplay:
    """Runs single blocks again to make activations that a lean cache did not store."""

    def __init__(
        self,
        model: HookedNetwork,
        arguments: Mapping[str, Any],
        keeping: Keeping,
    ) -> None:
        """Remember how the model ran; refuse runs that could not be repeated exactly.

        Raises:
            HookError: hooks that write are active, dropout is on, a key-value cache was given, or
                tensors are to be cut or converted.
        """
        if keeping.dtype is not None or keeping.pos_slice is not None:
            raise HookError(
                "lean=True keeps whole residual streams in the model's dtype; cut or convert what "
                "you take out of the cache instead of passing pos_slice or dtype."
            )
        if has_dropout(model):
            raise HookError(
                "lean=True repeats blocks, which dropout makes random. Call model.eval()."
            )
        if any(w.writes for p in model.hook_stack.placements for w in p.watchers):
            raise HookError(
                "lean=True repeats blocks without hooks, so what they changed would be missing. "
                "Cache without lean, or name what you need in names_filter."
            )
        if given_cache(arguments) is not None:
            raise HookError("lean=True cannot repeat a run that began with past_key_values.")
        dropped = ("input_ids", "inputs_embeds", "labels", "start_at_layer", "stop_at_layer")
        self.arguments = {k: v for k, v in arguments.items() if k not in dropped}
        self.model = model
        self.seen = weights_seen(model.parameters())
        self._latest: tuple[int, Mapping[str, Tensor]] | None = None

    def makers(
        self, points: Iterable[HookPoint], first: int, last: int
    ) -> Iterator[tuple[str, Maker]]:
        """Name and maker of those ``points`` that layers ``first`` to ``last - 1`` reach."""
        layers = self.model.config.num_hidden_layers
        for point in points:
            if point.name == "hook_embed":
                if first == 0:
                    yield point.name, lambda stored: stored["blocks.0.hook_resid_pre"]
                continue
            layer = layers if point.layer is None else point.layer  # past the last: the head
            if first <= layer < last or layer == last == layers:
                yield point.name, functools.partial(self._make, point.name, layer)

    def _make(self, name: str, layer: int, stored: Mapping[str, Tensor]) -> Tensor:
        """The tensor at ``name``, from running block ``layer`` (or, past the last, the head)."""
        check_weights(self.model.parameters(), self.seen, name)
        if self._latest is None or self._latest[0] != layer:
            layers = self.model.config.num_hidden_layers
            start = f"blocks.{layer}.hook_resid_pre"
            if layer == layers:
                start = f"blocks.{layer - 1}.hook_resid_post"
            stop = None if layer == layers else layer + 1
            with self.model.hook_stack.suspended():
                residual = stored[start].to(self.model.device)
                _, made = self.model.run_with_cache(
                    residual, start_at_layer=layer, stop_at_layer=stop, **self.arguments
                )
            self._latest = layer, made
        return self._latest[1][name]
