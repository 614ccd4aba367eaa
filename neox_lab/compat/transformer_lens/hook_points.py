"""Hooks that stay until they are taken away, placed for each run on the model's hook points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial, wraps
from typing import Any, Literal, Self, TypeAlias

from torch import Tensor, nn

from neox_lab.checks import check, one_of
from neox_lab.compat.transformer_lens.module_names import earlier_name
from neox_lab.errors import HookError, HookNameError, nearest
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.hooks.hooking import HookList, reads_only
from neox_lab.hooks.names import Name, find
from neox_lab.model.hook_points import HookFunction
from neox_lab.model.hook_points import HookPoint as NativePoint

Direction: TypeAlias = Literal["fwd", "bwd", "both"]
AnyHook: TypeAlias = Callable[..., "Tensor | None"]
"""A function of a tensor and, by keyword, ``hook``."""
AddedHooks: TypeAlias = Sequence[tuple[Name, AnyHook]]


@dataclass(eq=False)
class LensHandle:
    """One hook at one point.

    Attributes:
        hook: the function.
        is_permanent: it stays when hooks are reset.
        context_level: the level it was added at, by which it can be reset.
    """

    hook: AnyHook
    is_permanent: bool = False
    context_level: int | None = None


class HookPoint(nn.Module):
    """One named place of one model, with the hooks that were added there.

    In a module of one's own, see ``HookedRootModule``, it is called with the tensor of its place.

    Attributes:
        name: full name, such as ``blocks.3.attn.hook_q``.
        ctx: for whatever hooks want to remember; emptied by ``reset_hooks``.
        fwd_hooks: hooks on the tensor, in the order in which they run.
        bwd_hooks: hooks on its gradient.
    """

    def __init__(self, name: str = "") -> None:
        """A point without hooks; in a ``HookedRootModule`` ``setup`` names it."""
        super().__init__()
        self.name = name
        self.ctx: dict[object, object] = {}
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []

    def __repr__(self) -> str:
        """The name."""
        return f"HookPoint({self.name!r})"

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor ``[..]``, or what the hooks put in its place."""
        for handle in list(self.fwd_hooks):
            changed = handle.hook(tensor, hook=self)
            tensor = tensor if changed is None else changed
        if self.bwd_hooks and tensor.requires_grad:
            tensor = tensor.view_as(tensor)  # its own gradient, where what is given is a leaf
            for handle in self.bwd_hooks:
                tensor.register_hook(partial(handle.hook, hook=self))  # type: ignore[no-untyped-call]
        return tensor

    def layer(self) -> int:
        """Number of the block.

        Raises:
            HookError: the point is in no block.
        """
        if not self.name.startswith("blocks."):
            raise HookError(f"{self.name!r} is in no block, so it has no layer.")
        return int(self.name.split(".")[1])

    def add_hook(
        self,
        hook: AnyHook,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> LensHandle:
        """Let every run from now on call ``hook(tensor, hook=point)`` here.

        Args:
            hook: returns None to leave the tensor, or a tensor to replace it.
            dir: ``"bwd"`` for gradients.
            is_permanent: it stays when hooks are reset.
            level: a number by which it can be reset.
            prepend: run it before those that are there.

        Raises:
            HookError: another direction.
        """
        check("dir", dir, one_of("fwd", "bwd"), HookError)
        handle = LensHandle(hook, is_permanent, level)
        there = self._handles(dir)[0]
        there.insert(0 if prepend else len(there), handle)
        return handle

    def add_perma_hook(self, hook: AnyHook, dir: Literal["fwd", "bwd"] = "fwd") -> LensHandle:
        """``add_hook`` with ``is_permanent=True``.

        Args:
            hook: see ``add_hook``.
            dir: ``"bwd"`` for gradients.

        Raises:
            HookError: another direction.
        """
        return self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self, dir: Direction = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Take hooks away, permanent ones only if asked to.

        Args:
            dir: ``"both"`` for those on tensors and those on gradients.
            including_permanent: take permanent ones away, too, of whatever level.
            level: take only those of this level away; None for all.
        """
        for handles in self._handles(dir):
            handles[:] = [
                each
                for each in handles
                if not including_permanent
                and (each.is_permanent or level not in (None, each.context_level))
            ]

    def remove(self, handle: LensHandle) -> None:
        """Take one hook away; nothing happens where it is gone already."""
        for handles in self._handles("both"):
            handles[:] = [each for each in handles if each is not handle]

    def has_hooks(self, dir: Direction = "both", including_permanent: bool = True) -> bool:
        """Whether there are hooks in a direction.

        Args:
            dir: on tensors, on gradients, or ``"both"``.
            including_permanent: permanent ones count, too.
        """
        handles = [handle for each in self._handles(dir) for handle in each]
        return any(including_permanent or not handle.is_permanent for handle in handles)

    def clear_context(self) -> None:
        """Empty ``ctx``."""
        self.ctx = {}

    def _handles(self, dir: Direction) -> list[list[LensHandle]]:
        check("dir", dir, one_of("fwd", "bwd", "both"), HookError)
        both = {"fwd": [self.fwd_hooks], "bwd": [self.bwd_hooks]}
        return both.get(dir) or [self.fwd_hooks, self.bwd_hooks]

    def placed(self, dir: Literal["fwd", "bwd"]) -> HookList:
        """The hooks of a direction as this package takes them."""
        return [(self.name, self._while_there(each, dir)) for each in self._handles(dir)[0]]

    def _while_there(self, handle: LensHandle, dir: Literal["fwd", "bwd"]) -> HookFunction:
        there = self._handles(dir)[0]

        @wraps(handle.hook)
        def call(tensor: Tensor, _point: NativePoint) -> Tensor | None:
            # Hooks take themselves, and others, away within a run.
            return handle.hook(tensor, hook=self) if handle in there else None

        return call


class Hooks:
    """Adding hooks to a model and taking them away again."""

    native: GPTNeoXForCausalLM
    hook_dict: dict[str, HookPoint]
    """Every hook point by name, in the order of the forward pass."""
    __call__: Callable[..., Any]

    @property
    def mod_dict(self) -> dict[str, HookPoint]:
        """Every hook point by name; modules have no entries here."""
        return self.hook_dict

    def hook_points(self) -> list[HookPoint]:
        """Every hook point, in the order of the forward pass."""
        return list(self.hook_dict.values())

    def points_of(self, name: Name) -> list[HookPoint]:
        """The hook points of a name, alias, short form or function of names.

        Raises:
            HookNameError: it matches none.
        """
        found = find(earlier_name(name), self.native.hook_points)
        return [self.hook_dict[point.name] for point in found]

    def add_hook(
        self,
        name: Name,
        hook: AnyHook,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Let every run from now on call a hook; see ``HookPoint.add_hook``.

        What a hook adds is called from the next run on, and ``generate`` is one run.

        Args:
            name: a hook name, or a function of names.
            hook: called as ``hook(tensor, hook=point)``.
            dir: ``"bwd"`` for gradients.
            is_permanent: it stays when hooks are reset.
            level: a number by which it can be reset.
            prepend: run it before those that are there.

        Raises:
            HookNameError: the name matches no hook point.
        """
        self._add(name, hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: Name, hook: AnyHook, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """``add_hook`` with ``is_permanent=True``."""
        self._add(name, hook, dir, is_permanent=True)

    def _add(
        self,
        name: Name,
        hook: AnyHook,
        dir: Literal["fwd", "bwd"],
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> list[tuple[HookPoint, LensHandle]]:
        points = self.points_of(name)
        return [
            (point, point.add_hook(hook, dir, is_permanent, level, prepend)) for point in points
        ]

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take all hooks away, or those of a level; permanent ones only if asked to."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)

    def remove_all_hook_fns(
        self,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take all hooks away, and leave what they remember in ``ctx``."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empty every hook point's ``ctx``."""
        for point in self.hook_points():
            point.clear_context()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: AddedHooks = (),
        bwd_hooks: AddedHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Self]:
        """Add hooks for the duration of a ``with`` block.

        Args:
            fwd_hooks: pairs of a name (or a function of names) and a function, which is called as
                ``function(tensor, hook=point)``.
            bwd_hooks: likewise, called with gradients.
            reset_hooks_end: take these hooks away again at the end.
            clear_contexts: empty the ``ctx`` of their hook points, too.

        Raises:
            HookNameError: a name matches no hook point.
        """
        added: list[tuple[HookPoint, LensHandle]] = []
        try:
            for name, function in fwd_hooks:
                added += self._add(name, function, "fwd")
            for name, function in bwd_hooks:
                added += self._add(name, function, "bwd")
            yield self
        finally:
            _take_away(added if reset_hooks_end else [])
            if clear_contexts:
                for point, _ in added:
                    point.clear_context()

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: AddedHooks = (),
        bwd_hooks: AddedHooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run once with hooks added; see ``hooks``, and for the other arguments the call.

        Backward hooks belong to this run's graph and fire when it is backpropagated.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def get_caching_hooks(
        self,
        names_filter: Name | Iterable[Name] | None = None,
        incl_bwd: bool = False,
        device: str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, AnyHook]], list[tuple[str, AnyHook]]]:
        """Hooks that keep tensors in a dict, and gradients as ``<name>_grad``; none is added.

        Args:
            names_filter: what to keep; None for all.
            incl_bwd: keep gradients, too.
            device: keep tensors there.
            remove_batch_dim: keep the first row, without its axis.
            cache: the dict; None for a new one.

        Returns:
            The dict, hooks on tensors and hooks on gradients.
        """
        kept: dict[str, Tensor] = {} if cache is None else cache
        row = 0 if remove_batch_dim else ...

        @reads_only
        def keep(tensor: Tensor, hook: HookPoint) -> None:
            kept[hook.name] = tensor.detach().to(device)[row]

        @reads_only
        def keep_gradient(gradient: Tensor, hook: HookPoint) -> None:
            kept[f"{hook.name}_grad"] = gradient.detach().to(device)[row]

        names = self.names_of(names_filter)
        backward = names if incl_bwd else []
        return kept, [(n, keep) for n in names], [(n, keep_gradient) for n in backward]

    def names_of(self, names_filter: Name | Iterable[Name] | None) -> list[str]:
        """The hook names that a ``names_filter`` asks for, in the order of the forward pass."""
        short = isinstance(names_filter, tuple) and not all(
            isinstance(n, str) for n in names_filter
        )
        one = short or isinstance(names_filter, str) or callable(names_filter)
        asked: Any = ["*"] if names_filter is None else [names_filter] if one else names_filter
        wanted = {point.name for name in asked for point in self.points_of(name)}
        return [name for name in self.hook_dict if name in wanted]

    def add_caching_hooks(
        self,
        names_filter: Name | Iterable[Name] | None = None,
        incl_bwd: bool = False,
        device: str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Add the hooks of ``get_caching_hooks``; every run from now on fills the dict."""
        kept, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, "bwd")
        return kept

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Place the hooks that were added on the model, for one run."""
        forward = [pair for point in self.hook_points() for pair in point.placed("fwd")]
        backward = [pair for point in self.hook_points() for pair in point.placed("bwd")]
        with self.native.hooks(forward, backward, must_fire=False):
            yield


class HookedRootModule(nn.Module, Hooks):
    """A module of one's own with hook points, which run as ``self.hook_square(x * x)``.

    ``setup()``, called at the end of ``__init__``, gives every ``HookPoint`` its name.
    """

    def setup(self) -> None:
        """Name the hook points after where they are in this module."""
        named = self.named_modules()
        self.hook_dict = {name: part for name, part in named if isinstance(part, HookPoint)}
        for name, point in self.hook_dict.items():
            point.name = name

    def points_of(self, name: Name) -> list[HookPoint]:
        """The hook points of a name, glob or function of names.

        Raises:
            HookNameError: it matches none.
        """
        wanted = name if callable(name) else partial(fnmatchcase, pat=str(name))
        found = [point for own, point in self.hook_dict.items() if wanted(own)]
        if not found:
            hint = "" if callable(name) else nearest(str(name), self.hook_dict)
            raise HookNameError(f"{name!r} matches no hook point of this module.{hint}")
        return found

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: Name | Iterable[Name] | None = None,
        device: str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run once and keep the tensors at hook points, by name.

        Args:
            model_args: of ``forward``, as are ``model_kwargs``.
            names_filter: what to keep; None for all.
            device: keep tensors there.
            remove_batch_dim: keep the first row, without its axis.
            incl_bwd: backpropagate from what is returned, a scalar, and keep gradients, too.
            reset_hooks_end: take the hooks that keep tensors away again.
            clear_contexts: empty the ``ctx`` of these hook points.
            model_kwargs: see ``model_args``.
        """
        kept, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim
        )
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
        return output, kept


def _take_away(added: Iterable[tuple[HookPoint, LensHandle]]) -> None:
    for point, handle in added:
        point.remove(handle)
