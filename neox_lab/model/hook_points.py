"""What a hook point is, and how a tensor passes one.

The forward pass names its intermediate tensors by sending each through a *tap*:

    q = tap("attn.hook_q", q)

With nobody watching, a tap hands the tensor straight back (one look-up in an empty dictionary).
With watchers it calls them in the order they were placed; each may return a replacement.
Three rules make this safe:

* **A writer gets a private copy.** A hook of the user's may do anything to the tensor it is
  given, also in place. What was cached before, the residual stream a block input is a view of,
  and the caller's own tensors stay what they were.
* **A replacement must fit.** Another shape, dtype or device is an error that names the hook.
* **Expensive tensors are asked for.** ``tap.watched("attn.hook_pattern")`` tells the network
  whether anyone wants attention weights; if not, they are never made.

The taps of a run are passed *down* the forward pass as an argument. Modules hold no hook state,
so two threads, two models, or a generator abandoned half-way cannot disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.errors import HookError
from neox_lab.other_names import HOOK, ours


@dataclass(frozen=True)
class HookPoint:
    """One named place in the network; hook functions receive it as their second argument.

    Attributes:
        name: full name, such as ``blocks.3.attn.hook_q``.
        layer: number of the block it is in, None for points outside the blocks.
        axes: names of the tensor's axes, such as ``("batch", "pos", "head", "d_head")``.
        meaning: one line saying what the tensor is.
        aliases: other names it answers to.
        in_float32: the tensor is float32 even where the model's dtype is narrower.
        follows_from: full names of the points whose tensors lead to this one by one cheap step.
        equals: full name of the point whose tensor this one is, perhaps seen through a stride of
            zero; None if it is a tensor of its own.
        ends_gradients: a gradient here can be read but flows no further.
        sizes: lengths of axes that belong to this point alone, such as ``{"latent": 512}``.
        step: in generation, number of the step: 0 reads the prompt, later ones one new token;
            None outside generation.
        positions: in generation, absolute positions of the tensor ``[batch or 1, pos]``.
        generated: how many of the last positions are generated tokens.
    """

    name: str
    layer: int | None
    axes: tuple[str, ...]
    meaning: str
    aliases: tuple[str, ...] = ()
    in_float32: bool = False
    follows_from: tuple[str, ...] = ()
    equals: str | None = None
    ends_gradients: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict, hash=False)
    step: int | None = field(default=None, compare=False)
    positions: Tensor | None = field(default=None, compare=False, repr=False)
    generated: int = field(default=0, compare=False)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Called where there is no such attribute.

            Raises:
                AttributeError: always; what TransformerLens calls otherwise is told.
            """
            raise AttributeError(f"HookPoint has no attribute {name!r}.{ours(name, HOOK)}")

    def during(self, step: int | None, positions: Tensor | None, generated: int) -> HookPoint:
        """This point in one step of a generation.

        Args:
            step: number of the step, None outside generation.
            positions: absolute positions ``[batch or 1, pos]``, None outside generation.
            generated: how many of the last positions are generated tokens.
        """
        # Every step makes one for every watcher; dataclasses.replace takes eight times as long.
        point = object.__new__(HookPoint)
        point.__dict__.update(self.__dict__, step=step, positions=positions, generated=generated)
        return point


HookFunction = Callable[[Tensor, HookPoint], "Tensor | None"]


@dataclass(eq=False)
class Watcher:
    """One function placed at one hook point.

    Attributes:
        point: where.
        function: called with the tensor (or its gradient) and the point.
        direction: ``"forward"`` sees the tensor, ``"backward"`` its gradient.
        writes: False promises that the function neither changes its tensor nor returns one;
            it then gets the network's own tensor instead of a copy.
        reached: how often a tensor has passed here.
    """

    point: HookPoint
    function: HookFunction
    direction: Literal["forward", "backward"] = "forward"
    writes: bool = True
    reached: int = field(default=0, init=False)

    def call(self, tensor: Tensor, _tap: Tap) -> Tensor | None:
        """Call the function with a tensor that is its to change.

        Args:
            tensor: what passes the point.
            _tap: of the part of the network the point is in; for watchers with points of their own.
        """
        return self.function(tensor, self.point)


@dataclass(eq=False)
class LocatedWatcher(Watcher):
    """A watcher that is told, run by run, where in each text the positions of its tensor stand.

    Attributes:
        positions: in each text's own tokens, cached ones included, ``[batch or 1, pos]``; -1 for
            padding. None before the first run.
        past: how many positions were read before, and are cached.
    """

    positions: Tensor | None = field(default=None, init=False)
    past: int = field(default=0, init=False)


class Tap:
    """Where tensors of one part of the network (one block, or the outside) meet their watchers."""

    __slots__ = ("_watchers",)

    def __init__(self, watchers: Mapping[str, Sequence[Watcher]]) -> None:
        """Watchers by hook name, relative to the part of the network this tap serves."""
        self._watchers = watchers

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Pass ``tensor`` through hook point ``name``: the same tensor, or its replacement.

        Raises:
            HookError: a replacement of wrong type, shape, dtype or device, or a gradient asked
                for where none can flow.
        """
        watchers = self._watchers.get(name)
        return tensor if watchers is None else _visit(tensor, watchers, self)

    def watched(self, *names: str) -> bool:
        """True if anyone watches one of ``names``."""
        watchers = self._watchers
        return bool(watchers) and any(name in watchers for name in names)

    def written(self, *names: str) -> bool:
        """True if someone may replace the tensor at one of ``names``."""
        return any(
            watcher.writes and watcher.direction == "forward"
            for name in names
            for watcher in self._watchers.get(name, ())
        )

    def altered(self, *names: str) -> bool:
        """True if someone may replace the tensor at one of ``names`` or wants its gradient."""
        return any(
            watcher.writes or watcher.direction == "backward"
            for name in names
            for watcher in self._watchers.get(name, ())
        )


NO_TAP = Tap({})


class Taps:
    """All watchers of one run: hands each part of the network its tap."""

    def __init__(self, watchers: Iterable[Watcher] = ()) -> None:
        """Watchers in the order in which they are to be called at the same point."""
        self.watchers = tuple(watchers)
        outside: dict[str, list[Watcher]] = {}
        blocks: dict[int, dict[str, list[Watcher]]] = {}
        for watcher in self.watchers:
            layer, name = watcher.point.layer, watcher.point.name
            if layer is None:
                outside.setdefault(name, []).append(watcher)
            else:
                inside = name.split(".", 2)[2]
                blocks.setdefault(layer, {}).setdefault(inside, []).append(watcher)
        self.outside = Tap(outside) if outside else NO_TAP
        self._blocks = {layer: Tap(inside) for layer, inside in blocks.items()}
        self.located = [w for w in self.watchers if isinstance(w, LocatedWatcher)]

    def locate(self, positions: Tensor, past: int) -> None:
        """Tell those who want to know where in the texts this run is; see ``LocatedWatcher``."""
        for watcher in self.located:
            watcher.positions, watcher.past = positions, past

    def block(self, layer: int) -> Tap:
        """The tap of block ``layer``; its names are relative, such as ``attn.hook_q``."""
        return self._blocks.get(layer, NO_TAP)

    def with_more(self, watchers: Iterable[Watcher]) -> Taps:
        """These taps and further watchers, called after them."""
        return Taps((*self.watchers, *watchers))

    def __bool__(self) -> bool:
        """True if anyone watches anything."""
        return bool(self.watchers)


NO_TAPS = Taps()


def _visit(tensor: Tensor, watchers: Sequence[Watcher], tap: Tap) -> Tensor:
    """Show ``tensor`` to each watcher in turn, following replacements."""
    for watcher in watchers:
        watcher.reached += 1
        try:
            if watcher.direction == "backward":
                tensor = _watch_gradient(tensor, watcher)
            elif watcher.writes:
                tensor = _offer(tensor, watcher, tap)
            else:
                _show(tensor, watcher)
        except Exception as error:
            _name_point(error, watcher)
            raise
    return tensor


def _name_point(error: Exception, watcher: Watcher) -> None:
    """Say below an error's message at which hook point it was raised."""
    if watcher.point.name not in str(error):
        function = watcher.function
        called = getattr(function, "__qualname__", None) or type(function).__name__
        error.add_note(f"It was raised in the hook {called} at {watcher.point.name!r}.")


def _show(tensor: Tensor, watcher: Watcher) -> None:
    """Show a tensor, or a gradient, to a watcher that promised only to read it."""
    # Inference tensors do not count changes, and what is being compiled has none yet.
    counts = not (tensor.is_inference() or torch.compiler.is_compiling())
    changes = tensor._version if counts else 0
    returned = watcher.function(tensor, watcher.point)
    if counts and tensor._version != changes:
        raise HookError(
            f"The hook at {watcher.point.name!r} is marked reads_only, and wrote into the "
            "network's own tensor. Leave out the mark; it then writes into a copy, which counts."
        )
    if returned is not None:
        raise HookError(
            f"The hook at {watcher.point.name!r} is marked reads_only, and returned a value that "
            "would be ignored. Leave out the mark, or return nothing."
        )


def _offer(tensor: Tensor, watcher: Watcher, tap: Tap = NO_TAP) -> Tensor:
    """Give a writer its private copy; return that (perhaps edited) or its replacement."""
    private = tensor.clone()
    replacement = watcher.call(private, tap)
    return private if replacement is None else fitting(replacement, tensor, watcher.point)


def _watch_gradient(tensor: Tensor, watcher: Watcher) -> Tensor:
    """Give ``tensor`` an autograd node of its own and call the watcher with its gradient."""
    point = watcher.point
    if not tensor.requires_grad:
        raise HookError(
            f"A backward hook at {point.name!r} can never fire: no gradient flows there. Run the "
            "model outside torch.no_grad()/inference_mode(), with parameters or inputs that "
            "require a gradient."
        )

    def on_gradient(gradient: Tensor) -> Tensor | None:
        try:
            if watcher.writes:
                return _gradient_offer(gradient, watcher)
            _show(gradient, watcher)
        except Exception as error:
            _name_point(error, watcher)
            raise
        return None

    # A view of its own, because one tensor may stand at several hook points (the input of a
    # block is also the input of its MLP): each point wants only the gradient of its own path.
    own = tensor.view_as(tensor)
    own.register_hook(on_gradient)  # type: ignore[no-untyped-call]
    return own


def _gradient_offer(gradient: Tensor, watcher: Watcher) -> Tensor:
    """What a writer makes of a gradient; where gradients end, it may only look."""
    offered = _offer(gradient, watcher)
    if watcher.point.ends_gradients and not torch.equal(offered, gradient):
        raise HookError(
            f"The gradient at {watcher.point.name!r} can be read but not replaced: it is that of "
            "each head's own view of the residual stream, and ends there. Replace the gradient at "
            "attn.hook_q, hook_k or hook_v, or at hook_resid_pre."
        )
    return offered


def fitting(replacement: object, original: Tensor, point: HookPoint) -> Tensor:
    """``replacement``, if it can stand in for ``original``.

    Args:
        replacement: what a hook returned.
        original: what it was given.
        point: where.

    Raises:
        HookError: it is no tensor, or of another shape, dtype or device.
    """
    if not isinstance(replacement, torch.Tensor):
        raise HookError(
            f"The hook at {point.name!r} returned {type(replacement).__name__}; a hook returns "
            "a tensor to replace what it was given, or None to leave it."
        )
    for what, got, expected in (
        ("shape", list(replacement.shape), list(original.shape)),
        ("dtype", replacement.dtype, original.dtype),
        ("device", replacement.device, original.device),
    ):
        if got != expected:
            axes = f" ({', '.join(point.axes)})" if what == "shape" else ""
            raise HookError(
                f"The hook at {point.name!r} returned a tensor of {what} {got}; "
                f"expected {expected}{axes}."
            )
    return replacement
