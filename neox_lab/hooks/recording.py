"""From a request to a filled cache: what to store, what to make on access, where to put it.

    full      every activation is stored, except what follows from a stored one by one cheap step
    filtered  only what ``names_filter`` names
    lean      only the residual stream before each block is stored; any other activation of a
              block is made by running that block again, alone, when it is asked for

Lean keeps d_model numbers a token and layer; the full cache about 13, and all activations
together are about 30 d_model + 2 head · pos.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import HookError
from neox_lab.hooks.cache import ActivationCache, run_backward
from neox_lab.hooks.cache_files import SpillFile, spilled
from neox_lab.hooks.derived import follows, is_made_as_in_the_run, maker_of
from neox_lab.hooks.hooking import Placement
from neox_lab.hooks.lean import LeanReplay, residual_points
from neox_lab.hooks.names import Name, find_all
from neox_lab.hooks.storage import Keeping, bytes_of
from neox_lab.hooks.table import axis_sizes, dtype_at, shape_at
from neox_lab.memory import free_memory
from neox_lab.model.hook_points import HookPoint, Watcher
from neox_lab.model.key_value_cache import given_cache, is_cache
from neox_lab.model.masking import packed_texts
from neox_lab.model.network import layer_span
from neox_lab.model.parts import takes_tap
from neox_lab.sizes import parse_size, size_in_words

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Plan = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of every tensor that will be stored, by hook name."""


def plan_for(
    model: HookedModel,
    points: Iterable[HookPoint],
    keeping: Keeping,
    batch: int,
    pos: int,
    past: int = 0,
) -> Plan:
    """Shape and dtype of what would be stored of ``points``.

    Args:
        model: which would run.
        points: what to store.
        keeping: how.
        batch: rows.
        pos: positions read.
        past: earlier positions in a key-value cache, which queries see too.
    """
    sizes = axis_sizes(model.config, batch, pos, past)
    dtype = model.dtype
    return {
        point.name: (
            keeping.shape(shape_at(point, sizes), point),
            keeping.dtype or dtype_at(point, dtype),
        )
        for point in points
    }


def distinct(
    points: Iterable[HookPoint], everything: Mapping[str, HookPoint], written: set[str]
) -> Iterable[HookPoint]:
    """The points whose tensors those at ``points`` are; tensors that are the same count once.

    Args:
        points: of interest.
        everything: every hook point, in forward order.
        written: names at which hooks write; what leaves there is another tensor than what arrives.
    """
    order = {name: place for place, name in enumerate(everything)}
    found: dict[str, HookPoint] = {}
    for point in points:
        while point.equals is not None:
            if max(point.name, point.equals, key=order.__getitem__) in written:
                break
            point = everything[point.equals]
        found[point.name] = point
    return found.values()


def over_budget(needed: int, budget: int | None, device: torch.device) -> str | None:
    """None if ``needed`` bytes fit; otherwise a sentence saying that they do not."""
    if budget is not None:
        if needed <= budget:
            return None
        return f"This cache needs {size_in_words(needed)}; the budget is {size_in_words(budget)}."
    free = free_memory(device)
    if free is None or needed <= 0.9 * free:
        return None
    return f"This cache needs {size_in_words(needed)}; {size_in_words(free)} are free on {device}."


def _mask_of(model: HookedModel, arguments: Mapping[str, Any]) -> Tensor | None:
    """The mask of a run: the one given, or the one its positions stand for without a cache."""
    given, positions = arguments.get("attention_mask"), arguments.get("position_ids")
    if given is not None or positions is None or given_cache(arguments) is not None:
        return given
    use_cache = arguments.get("use_cache")
    cached = model.config.use_cache if use_cache is None else use_cache
    recomputes = model.backbone.gradient_checkpointing and model.training  # then without a cache
    return None if cached and not recomputes else packed_texts(positions)


class Recording:
    """One run with a cache, from request to result."""

    def __init__(
        self,
        model: HookedModel,
        arguments: Mapping[str, Any],
        names_filter: Name | Iterable[Name] | None,
        keeping: Keeping,
        *,
        lean: bool,
        gradients: bool = False,
        pieces: list[str] | None,
    ) -> None:
        """Decide what to store; nothing runs yet.

        Args:
            model: the model to run.
            arguments: of ``forward``.
            names_filter: what to keep; None for everything.
            keeping: how.
            lean: store residual streams only.
            gradients: gradients will be kept, too.
            pieces: token strings of the first row.

        Raises:
            HookNameError: ``names_filter`` names no hook point.
            HookError: a lean run that could not be repeated exactly, or is to keep gradients.
        """
        if lean and gradients:
            raise HookError("lean=True keeps no gradients; leave out incl_bwd or lean.")
        if model.backbone.devices is not None and keeping.device is None:
            keeping = dataclasses.replace(keeping, device=model.device)  # not here and there
        elif keeping.device is not None and _device(keeping.device) == model.device:
            keeping = dataclasses.replace(keeping, device=None)
        self.model, self.arguments, self.keeping = model, dict(arguments), keeping
        self.gradients = gradients
        wanted = find_all("*" if names_filter is None else names_filter, model.hook_points)
        self.cache = ActivationCache(
            model.hook_points,
            model=model,
            attention_mask=_mask_of(model, arguments),
            pieces=pieces,
            input_ids=arguments.get("input_ids"),
            position_ids=arguments.get("position_ids"),
        )
        self.first, self.last = layer_span(
            arguments.get("start_at_layer"),
            arguments.get("stop_at_layer"),
            model.config.num_hidden_layers,
        )
        self.replay = LeanReplay(model, arguments, keeping) if lean else None
        if self.replay is not None:
            self.stored = residual_points(model, self.first, self.last)
            self.lazy = [point for point in wanted if point not in self.stored]
        else:
            self.lazy = self._derivable(wanted)
            self.stored = [p for p in wanted if p not in self.lazy and self._reached(p)]
            mask = self.cache.attention_mask
            for point in self.lazy:
                self.cache.make_on_access(point.name, maker_of(point, model, mask))
        self.spill_path: Path | None = None

    @property
    def plan(self) -> Plan:
        """Shape and dtype of what will be stored."""
        return self._plan_for(self.stored)

    def _plan_for(self, points: Iterable[HookPoint]) -> Plan:
        given = self.arguments.get("input_ids")
        if given is None:
            given = self.arguments["inputs_embeds"]
        batch, pos = given.shape[:2]
        cache = given_cache(self.arguments)
        past = cache.get_seq_length(self.first) if is_cache(cache) else 0
        return plan_for(self.model, points, self.keeping, batch, pos, past)

    @property
    def nbytes(self) -> int:
        """Memory that will be stored, in bytes."""
        plans = [self.plan]
        if self.keeping.as_it_is:
            written = {watcher.point.name for watcher in self._writers()}
            points = distinct(self.stored, self.model.hook_points, written)
            plans = [self._plan_for(points)]
        if self.gradients:  # no two of them are the same tensor
            plans.append(self.plan)
        return sum(bytes_of(*entry) for plan in plans for entry in plan.values())

    def reserve(self, budget: int | str | None, spill: str | os.PathLike[str] | None) -> None:
        """Check that the cache fits, or that it may go to a file.

        Raises:
            HookError: it does not fit and ``spill`` is None, or there are gradients to spill.
        """
        device = torch.device(self.keeping.device or self.model.device)
        limit = None if budget is None else parse_size(budget, "budget", HookError)
        too_large = over_budget(self.nbytes, limit, device)
        if too_large is None:
            return
        if spill is None:
            raise HookError(
                f"{too_large} Keep less with names_filter or pos_slice, keep residual streams "
                "only with lean=True, or write the cache to a file with spill='cache.safetensors'."
            )
        if self.gradients:
            raise HookError(f"{too_large} A file takes no gradients; leave out incl_bwd or spill.")
        self.keeping = dataclasses.replace(self.keeping, device="cpu")
        if not isinstance(spill, str | os.PathLike) or "\0" in os.fspath(spill):
            raise HookError(f"spill={shown(spill)}; expected the path of a file.")
        self.spill_path = Path(spill)

    @contextmanager
    def _room(self) -> Iterator[SpillFile | None]:
        """A file for what is stored, if it does not fit into memory."""
        if self.spill_path is None:
            yield None
            return
        read = self.cache.read_by_run()
        plan = self.plan | {name: (tuple(t.shape), t.dtype) for name, t in read.items()}
        with spilled(self.spill_path, plan, self.cache.description()) as file:
            for name, tensor in read.items():
                file.put(name, tensor)
            yield file
            self._check_spilled()

    def run(
        self, incl_bwd: bool | Callable[[Any], Tensor], *, keep_graph: bool = False
    ) -> tuple[Any, ActivationCache]:
        """Run the model; return its output and the filled cache.

        Args:
            incl_bwd: what to backpropagate from, see ``run_backward``.
            keep_graph: leave it to the caller's mode whether a graph is recorded.

        Raises:
            HookError: something has another size than was planned for; no file is left then.
            CheckpointError: the file exists or cannot be made.
        """
        placement = Placement(self.model.hook_points, (), ())
        records = self.gradients or (keep_graph and torch.is_grad_enabled())
        with self._room() as file:
            watchers = self.cache.watchers(self.stored, self.keeping, file)
            if self.gradients:
                watchers += self.cache.gradient_watchers(self.stored, self.keeping)
            placement.entries.append(("run_with_cache", watchers))
            with (
                torch.set_grad_enabled(records),
                self.model.hook_stack.placed(placement, must_fire=False),
            ):
                output = self.model(**self.arguments)
        if self.gradients:
            with torch.enable_grad():
                weights = [*self.model.parameters(), *self.model.hook_stack.weights]
                run_backward(output, incl_bwd, weights)
        if self.replay is not None:
            for name, maker in self.replay.makers(self.lazy, self.first, self.last):
                self.cache.make_on_access(name, maker)
        return output, self.cache

    def _check_spilled(self) -> None:
        """Refuse a file with room for what never came, which would be read as zeros."""
        missing = [name for name in self.plan if name not in self.cache]
        if missing:
            raise HookError(
                f"The run never reached {missing[0]!r}, for which the file has room. Leave it out "
                "with names_filter, or let the spliced function pass it through its tap."
            )

    def _writers(self) -> Iterator[Watcher]:
        """The hooks in force that may replace what they are given."""
        for placement in self.model.hook_stack.placements:
            yield from (watcher for watcher in placement.watchers if watcher.writes)

    def _derivable(self, wanted: list[HookPoint]) -> list[HookPoint]:
        """Points whose tensors need not be stored, because they follow from stored ones."""
        if self.gradients or not self.keeping.as_it_is:  # what is made later has no gradient
            return []
        # An edit anywhere in a block may reach what would be made from its parts.
        written = {watcher.point.layer for watcher in self._writers()}
        names = {point.name for point in wanted}
        past = given_cache(self.arguments) is not None
        return [
            point
            for point in wanted
            if follows(point, self.model.hook_points, past)
            and names.issuperset(point.follows_from)
            and point.layer not in written
            and self._reached(point)
            and (
                point.layer is None
                or is_made_as_in_the_run(point, self.model.backbone.block(point.layer))
            )
        ]

    def _reached(self, point: HookPoint) -> bool:
        """Whether the run passes ``point``."""
        if point.layer is not None:
            block = self.model.backbone.block(point.layer)
            if ".mlp." in point.name and not takes_tap(block.mlp):
                return False
            return self.first <= point.layer < self.last
        if point.name.startswith("hook_embed"):  # a function spliced in there may have points
            return self.first == 0
        return self.arguments.get("stop_at_layer") is None


def _device(given: torch.device | str) -> torch.device:
    """A device by its name.

    Raises:
        HookError: there is no such device.
    """
    try:
        return torch.device(given)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise HookError(f"device={shown(given)} is no device of PyTorch: {reason:.200}") from None
