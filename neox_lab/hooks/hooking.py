"""Placing functions at hook points, and taking them away again whatever happens.

    with model.hooks(fwd_hooks=[("blocks.3.hook_resid_post", lambda x, hook: 0.9 * x)]):
        model(tokens)

Hooks live in a stack that belongs to one model and one thread, not in the modules. Leaving the
``with`` block, by whatever door, removes exactly what it placed. Names are looked up before
anything is placed, and a hook that the model ran past without ever reaching is an error.
"""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar, cast

from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import HookError, HookNeverFiredError, NeoxLabWarning
from neox_lab.hooks.names import Name, find
from neox_lab.model.hook_points import NO_TAPS, HookFunction, HookPoint, Taps, Watcher

Function = TypeVar("Function", bound=Callable[..., object])
_MARK = "reads_only"


def reads_only(function: Function) -> Function:
    """Decorator: promises that a hook neither changes the tensor it is given nor returns one.

    Such a hook is shown the network's own tensor, where another one gets a private copy: it costs
    no memory, and caches can still derive what follows from the tensors it reads. It may hold on
    to the tensor; the network never writes over one it has shown. A hook that breaks
    the promise and writes into it raises, where PyTorch counts changes (in inference mode it does
    not).

        @reads_only
        def note(tensor, hook):
            norms[hook.name] = tensor.norm()

    Args:
        function: the hook, or a class whose instances are hooks.

    Returns:
        The same function, or one that calls it where it takes no mark (a method of an object, a
        built-in). The hook raises HookError if it returns a tensor all the same, or changes
        the one it is given.
    """
    try:
        setattr(function, _MARK, True)
    except AttributeError:
        marked = functools.partial(function)
        setattr(marked, _MARK, True)
        return cast(Function, marked)
    return function


HookList = Sequence[tuple[Name, HookFunction]]
"""Pairs of a name (or alias, glob, predicate, short form) and a function."""


class Placement:
    """The watchers of one ``with`` block, grouped by the entry the user wrote.

    Attributes:
        runs: how often the model has run with them.
        entries: pairs of what the user named and the watchers that stand there.
        added: hook points that exist as long as the placement is in force, by the name of the
            point they stand behind.
        last: watchers that are called after those of all placements, with what the network goes
            on with.
        weights: leaves of functions that are placed; a cache's gradients leave their ``.grad``.
        since: the block from which on a run has to go, so that the function that is placed has what
            it needs of blocks before its own; None where it needs nothing of them.
    """

    def __init__(
        self, points: Mapping[str, HookPoint], fwd_hooks: HookList, bwd_hooks: HookList
    ) -> None:
        """Look up all names; nothing is placed yet.

        Raises:
            HookNameError: a name matches no hook point.
            HookError: an entry is not a pair of name and function, or the function does not take
                a tensor and a hook point.
        """
        self.runs = 0
        self.thread, self.runs_elsewhere = threading.get_ident(), 0
        self.entries: list[tuple[Name, list[Watcher]]] = []
        self.added: dict[str, list[HookPoint]] = {}
        self.last: list[Watcher] = []
        self.weights: list[Tensor] = []
        self.since: int | None = None
        for name, function in _pairs(fwd_hooks, "fwd_hooks"):
            self._add(name, function, "forward", points)
        for name, function in _pairs(bwd_hooks, "bwd_hooks"):
            self._add(name, function, "backward", points)

    def _add(
        self,
        name: Name,
        function: HookFunction,
        direction: Literal["forward", "backward"],
        points: Mapping[str, HookPoint],
    ) -> None:
        writes = not getattr(function, _MARK, False)
        called = as_called(function)
        watchers = [Watcher(point, called, direction, writes) for point in find(name, points)]
        self.entries.append((name, watchers))

    @property
    def watchers(self) -> list[Watcher]:
        """All watchers, in the order in which they were asked for."""
        return [watcher for _, watchers in self.entries for watcher in watchers]

    def check_all_reached(self) -> None:
        """Raise HookNeverFiredError if the model ran and some entry saw no tensor.

        Warn if it ran in other threads only.
        """
        if not self.runs:
            if self.runs_elsewhere:
                names = [name for name, _ in self.entries]
                warnings.warn(
                    f"The model ran in another thread while these hooks were placed: {names!r}. "
                    "Hooks meet the runs of the thread that places them; place them there.",
                    NeoxLabWarning,
                    stacklevel=5,
                )
            return
        missed = [name for name, watchers in self.entries if not any(w.reached for w in watchers)]
        if missed:
            raise HookNeverFiredError(
                f"The model ran, but these hooks were never reached: {missed!r}. "
                "Layers outside start_at_layer and stop_at_layer do not run. If that is what you "
                "want, pass must_fire=False."
            )


def _pairs(hooks: HookList, argument: str) -> Iterator[tuple[Name, HookFunction]]:
    entries: Iterable[object] = hooks if isinstance(hooks, Iterable) else [hooks]
    for entry in entries:
        if not (isinstance(entry, tuple | list) and len(entry) == 2 and callable(entry[1])):
            raise HookError(
                f"{argument} holds {entry!r}; expected pairs of a name and a function, such as "
                "[('blocks.0.hook_resid_pre', my_function)]."
            )
        yield entry[0], entry[1]


def as_called(function: Callable[..., Tensor | None]) -> HookFunction:
    """A hook as the network calls it: with the hook point as second argument.

    Args:
        function: takes the hook point second, or by the keyword ``hook``.

    Raises:
        HookError: it takes neither, or is no function.
    """
    if not callable(function):
        raise HookError(f"The hook {shown(function, 80)} is no function.")
    try:
        outside = inspect.signature(function, follow_wrapped=False)
        inside = inspect.signature(function)  # of what it hands its arguments to
    except (TypeError, ValueError):  # one of C's that says nothing of its arguments
        return function
    if _takes(outside, 0, 0) and (_takes(inside, 0, 0) or not _takes(outside, 0, hook=0)):
        return function
    if _takes(outside, 0, hook=0):

        @functools.wraps(function)
        def by_keyword(tensor: Tensor, point: HookPoint) -> Tensor | None:
            return function(tensor, hook=point)

        return by_keyword
    raise HookError(
        f"The hook {shown(function, 80)} takes {inside}; a hook is called with a tensor and the "
        "hook point: def my_hook(tensor, hook)."
    )


def _takes(signature: inspect.Signature, *given: object, **named: object) -> bool:
    try:
        signature.bind(*given, **named)
    except TypeError:
        return False
    return True


class HookStack(threading.local):
    """The placements in force for one model in the current thread, outermost first."""

    def __init__(self, everywhere: list[Placement]) -> None:
        """Empty; every thread starts with an empty stack of its own.

        Args:
            everywhere: the placements in force in all threads; an empty list.
        """
        self.placements: list[Placement] = []
        self.everywhere = everywhere

    def taps(self) -> Taps:
        """The taps for one run under the placements now in force."""
        if self.everywhere:
            self._count_for_other_threads()
        if not self.placements:
            return NO_TAPS
        for placement in self.placements:
            placement.runs += 1
        taps = Taps(watcher for placement in self.placements for watcher in placement.watchers)
        last = [watcher for placement in self.placements for watcher in placement.last]
        return taps.with_more(last) if last else taps

    def _count_for_other_threads(self) -> None:
        """Note in placements of other threads that a run passes them by."""
        here = threading.get_ident()
        for placement in tuple(self.everywhere):
            if placement.thread != here:
                placement.runs_elsewhere += 1

    def mark(self, *, step: int | None, positions: Tensor | None, generated: int) -> None:
        """Tell the hooks now placed where in a generated text the next run is; see HookPoint."""
        for placement in self.placements:
            for watcher in placement.watchers:
                watcher.point = watcher.point.during(step, positions, generated)

    @property
    def splices(self) -> list[Placement]:
        """The placements in force that add hook points."""
        return [placement for placement in self.placements if placement.added]

    @property
    def spliced(self) -> list[str]:
        """Where functions with hook points of their own are in force."""
        return [site for placement in self.splices for site in placement.added]

    @property
    def changing(self) -> list[str]:
        """Hook points at which something in force may change what passes, sorted."""
        watchers = [watcher for placement in self.placements for watcher in placement.watchers]
        names = [w.point.name for w in watchers if w.writes and w.direction == "forward"]
        return sorted({*names, *self.spliced})

    def first(self, layer: int) -> int:
        """The block at which a run of ``layer`` and those after it has to start."""
        return min([layer, *(p.since for p in self.placements if p.since is not None)])

    @property
    def weights(self) -> list[Tensor]:
        """Weights of what is spliced in."""
        return [weight for placement in self.placements for weight in placement.weights]

    def extended(self, points: dict[str, HookPoint]) -> dict[str, HookPoint]:
        """The hook points of a model, and those that placements in force add."""
        for placement in self.placements:
            for site, added in placement.added.items():
                if site in points:
                    points = _inserted(points, site, added)
        return points

    @contextmanager
    def placed(self, placement: Placement, must_fire: bool) -> Iterator[None]:
        """Put ``placement`` in force for the duration of a ``with`` block."""
        placements = self.placements  # of the thread that enters, whichever one leaves
        try:
            placements.append(placement)
            self.everywhere.append(placement)
            yield
        finally:
            for each in (placements, self.everywhere):
                if placement in each:  # an interrupt may come before it is
                    each.remove(placement)
        if must_fire:
            placement.check_all_reached()

    @contextmanager
    def suspended(self, *, but_splices: bool = False) -> Iterator[None]:
        """Take all placements out of force for the duration of a ``with`` block.

        Args:
            but_splices: leave those in force that add hook points.
        """
        placements = self.placements
        self.placements = self.splices if but_splices else []
        try:
            yield
        finally:
            self.placements = placements

    def __reduce__(self) -> tuple[type[HookStack], tuple[list[Placement]]]:
        """Copying or pickling a model gives the copy an empty stack."""
        return HookStack, ([],)


def _inserted(
    points: dict[str, HookPoint], site: str, added: Sequence[HookPoint]
) -> dict[str, HookPoint]:
    """``points`` with others behind ``site`` and what stands behind it already."""
    names = list(points)
    behind = [name for name in names if name == site or name.startswith(f"{site}.")]
    after = names.index(behind[-1]) + 1
    items = list(points.items())
    new = [(point.name, point) for point in added]
    return dict(items[:after] + new + items[after:])
