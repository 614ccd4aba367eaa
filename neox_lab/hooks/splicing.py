"""Functions with hook points of their own, spliced into the network for a while.

A dictionary, a probe or a bottleneck takes the tensor at a hook point, gives back another, and has
activations in between that deserve a name:

    def autoencoder(x, tap):
        acts = tap("hook_acts", torch.relu(x @ W_enc + b_enc))
        return acts @ W_dec + b_dec

    acts = SplicedPoint("hook_acts", "batch pos latent", "which features are active")
    with model.spliced_function("blocks.3.hook_mlp_out", autoencoder, [acts], {"latent": 4096}):
        _, cache = model.run_with_cache("The cat sat on the mat")
        cache["blocks.3.hook_mlp_out.hook_acts"]

Until the ``with`` block ends, ``blocks.3.hook_mlp_out.hook_acts`` is a hook point like any other:
in the table (right after its site), in completion, in caches; hooks read, replace and differentiate
it. Like hooks, functions are called in the order in which they were placed: those placed at the
site before see what the network made of it, those placed later, and the rest of the network, what
the function returned.

Experiments see them, too. ``nl.patching.sweep`` and ``ablate`` take the name of any hook point as
their ``site``, one cell a position, and all other sites give what runs with the function in place
give, cell by cell:

        nl.patching.sweep(model, clean, corrupted, metric, "blocks.3.hook_mlp_out.hook_acts")

A sweep then goes through hooks and is slower. Whatever would pass a function by, such as a lens
below a function at ``ln_final.hook_normalized``, refuses it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from neox_lab.errors import HookError, nearest
from neox_lab.hooks.hooking import Placement
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.model.hook_points import HookPoint, Tap, Watcher


class SplicedPoint(NamedTuple):
    """A hook point of a spliced function.

    Attributes:
        name: begins with ``hook_``; its full name is that of the site, a dot, and this.
        axes: axis names, separated by blanks.
        meaning: what the tensor is.
        in_float32: the tensor is float32 even where the model's dtype is narrower.
    """

    name: str
    axes: str
    meaning: str
    in_float32: bool = False


class SiteTap:
    """What a spliced function sends its activations through; names are those of its points."""

    __slots__ = ("_inside", "_points", "_tap", "run")

    def __init__(self, tap: Tap, inside: str, points: Mapping[str, HookPoint], run: int) -> None:
        """The tap of a part of the network, the site's name there, and the function's points.

        Args:
            tap: the tap.
            inside: the name.
            points: the points.
            run: counts the runs of the network since the function is in place; what functions at
                several sites keep for each other is of one run.
        """
        self._tap = tap
        self._inside = inside
        self._points = points
        self.run = run

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Pass ``tensor`` through hook point ``name``: the same tensor, or its replacement.

        Raises:
            HookError: the function was spliced in without this point, or with another shape.
        """
        point = self._points.get(name)
        if point is None:
            raise HookError(
                f"The spliced function passes a tensor through {name!r}, which is none of its "
                f"points {[*self._points]}.{nearest(name, self._points)}"
            )
        self._check(tensor, point)
        return self._tap(f"{self._inside}.{name}", tensor)

    def _check(self, tensor: Tensor, point: HookPoint) -> None:
        """Raise HookError unless ``tensor`` has the axes and own lengths of ``point``."""
        lengths = [point.sizes.get(axis) for axis in point.axes]
        fits = tensor.dim() == len(lengths) and all(
            length in (None, size) for length, size in zip(lengths, tensor.shape, strict=True)
        )
        if not fits:
            axes = ", ".join(
                axis if length is None else f"{axis}: {length}"
                for axis, length in zip(point.axes, lengths, strict=True)
            )
            raise HookError(
                f"The tensor at {point.name!r} has shape {list(tensor.shape)}; expected [{axes}]."
            )

    def watched(self, *names: str) -> bool:
        """True if anyone watches one of ``names``, so that an expensive tensor is wanted."""
        return self._tap.watched(*(f"{self._inside}.{name}" for name in names))


SplicedFunction = Callable[[Tensor, SiteTap], "Tensor | None"]
"""From the tensor at a site to its replacement, or None to leave it."""


class Reading(NamedTuple):
    """A second place that a spliced function needs the tensor of.

    Attributes:
        site: name of the hook point.
        function: given its tensor, as the network goes on with it.
    """

    site: str
    function: Callable[[Tensor], None]


class Spliced(NamedTuple):
    """What puts itself into the network: the arguments of ``spliced_function``, and a reading.

    Attributes:
        site: the hook point the function stands at.
        function: what stands there.
        points: its own hook points.
        sizes: lengths of axes that only these have.
        reading: where it reads besides, or None.
        weights: leaves that a gradient may reach.
        since: the site from which on runs are needed, where this function sums up what others found
            at sites before its own; None for its own.
    """

    site: str
    function: SplicedFunction
    points: Sequence[SplicedPoint]
    sizes: Mapping[str, int]
    reading: Reading | None = None
    weights: Sequence[Tensor] = ()
    since: str | None = None


class Spliceable(Protocol):
    """What ``model.spliced`` takes, such as a dictionary of features."""

    def splice(
        self, points: Mapping[str, HookPoint], known: Mapping[str, int], error: bool
    ) -> list[Spliced]:
        """How it goes into a network: what is to stand at each site.

        Args:
            points: the network's hook points.
            known: lengths of the network's own axes.
            error: what it misses is added.

        Raises:
            HookError: it does not fit.
        """


def brought(parts: list[Spliced], devices: Collection[torch.device]) -> list[Spliced]:
    """The same for a model whose layers are on several devices.

    The tensor of a site moves to where the weights of what is spliced in are, and back. What has no
    weights, or weights that are on none of these devices, is left as it is.

    Args:
        parts: what goes into the network together.
        devices: where parts of the model are.
    """
    place = next((weight.device for part in parts for weight in part.weights), None)
    return [_moving(part, place) for part in parts] if place in devices else parts


def _moving(part: Spliced, place: torch.device | None) -> Spliced:
    def function(tensor: Tensor, tap: SiteTap) -> Tensor | None:
        new = part.function(tensor.to(place), tap)
        return None if new is None else new.to(tensor.device)

    reading = part.reading
    if reading is not None:
        keep = reading.function
        reading = Reading(reading.site, lambda tensor: keep(tensor.to(place)))
    return part._replace(function=function, reading=reading)


class _Splice(Watcher):
    """A spliced function at its site."""

    def __init__(
        self,
        site: HookPoint,
        spliced: SplicedFunction,
        points: Mapping[str, HookPoint],
        placement: Placement,
    ) -> None:
        """The site, the function, the function's points by their own names, what it is part of."""
        super().__init__(site, lambda tensor, _point: tensor)  # is called through ``call``
        self.spliced = spliced
        self.points = points
        self.placement = placement
        self.inside = site.name if site.layer is None else site.name.split(".", 2)[2]

    def call(self, tensor: Tensor, tap: Tap) -> Tensor | None:
        """Run the function on a private copy of the site's tensor."""
        return self.spliced(tensor, SiteTap(tap, self.inside, self.points, self.placement.runs))


def spliced_in(
    points: Mapping[str, HookPoint], spliced: Spliced, known: Mapping[str, int]
) -> Placement:
    """A placement that puts something into the network; see ``Hooked.spliced``.

    Args:
        points: the model's hook points.
        spliced: what goes where.
        known: lengths of the network's own axes, see ``axis_sizes``.

    Raises:
        HookNameError: no such site.
        HookError: something stands there that has the same points.
    """
    site, function, own, sizes, reading, weights, since = spliced
    if taken := [point.name for point in own if f"{site}.{point.name}" in points]:
        raise HookError(
            f"At {site!r} another dictionary is spliced in already ({taken[0]}). Two at one site "
            "would each undo the other; leave the with block of the first."
        )
    placement = splice(points, site, function, own, sizes, known)
    placement.weights += weights
    placement.since = None if since is None else points[since].layer
    if reading is not None:

        def read(tensor: Tensor, _: HookPoint) -> None:
            reading.function(tensor)

        placement.last.append(Watcher(points[reading.site], read, writes=False))
    return placement


def splice(
    points: Mapping[str, HookPoint],
    site: str | ShortForm,
    function: SplicedFunction,
    own: Sequence[SplicedPoint],
    sizes: Mapping[str, int],
    known: Mapping[str, int],
) -> Placement:
    """A placement that puts ``function`` into the network; see ``Hooked.spliced_function``.

    Args:
        points: the model's hook points.
        site: name, alias or short form of the hook point the function stands at.
        function: what stands there.
        own: the function's hook points.
        sizes: lengths of axes that only these have.
        known: lengths of the network's own axes, see ``axis_sizes``.

    Raises:
        HookNameError: no such site.
        HookError: points that exist already or are called as one of the network's, or axes of
            unknown length.
    """
    at = points[exact(site, points)]
    if not callable(function) or not all(isinstance(point, SplicedPoint) for point in own):
        raise HookError(
            "Expected a function of a tensor and a tap, and its points as SplicedPoint(name, axes, "
            f"meaning); got {function!r:.60} and {own!r:.80}."
        )
    added = {point.name: _hook_point(point, at, sizes, known) for point in own}
    clashes = [point.name for point in added.values() if point.name in points]
    if clashes or len(added) < len(own):
        names = clashes or [point.name for point in own]
        raise HookError(f"Every hook point needs a name of its own; {names} would exist twice.")
    network = {name.rpartition(".")[2] for name in points if name.rpartition(".")[0] not in points}
    if taken := [point.name for point in own if point.name in network]:
        raise HookError(
            f"{taken[0]!r} is the name of a point of the network: ({taken[0][5:]!r}, layer) would "
            "mean two. Choose another."
        )
    placement = Placement(points, (), ())
    placement.entries.append((at.name, [_Splice(at, function, added, placement)]))
    placement.added[at.name] = list(added.values())
    return placement


def _hook_point(
    point: SplicedPoint, site: HookPoint, sizes: Mapping[str, int], known: Mapping[str, int]
) -> HookPoint:
    """The hook point that stands for ``point`` at ``site``."""
    if not (point.name.startswith("hook_") and point.name.isidentifier()):
        raise HookError(f"{point.name!r} is no name of a hook point; expected 'hook_...'.")
    axes = tuple(point.axes.split())
    own = {axis: sizes[axis] for axis in axes if axis in sizes}
    redefined = sorted(known.keys() & sizes)
    unknown = [a for a in axes if a not in own and a not in known and not a.isdigit()]
    if redefined or unknown:
        raise HookError(
            f"{point.name!r} has axes {list(axes)}: of unknown length are {unknown}; give sizes= "
            f"for them, and only for axes that the network does not have ({', '.join(known)})."
        )
    return HookPoint(
        f"{site.name}.{point.name}",
        site.layer,
        axes,
        point.meaning,
        in_float32=point.in_float32,
        sizes=own,
    )
