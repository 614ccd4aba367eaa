"""A dictionary in the network: its activations, its output and its error as hook points.

    codes  = encode(x)                       of what stands at site_in
    error  = target - decode(codes)          target: what stands at site_out; never of edited codes
    output = recons + error

With the error nothing is lost, and nothing edited the site keeps its tensor. An edit of the
activations changes the output by what the dictionary writes for it, and nothing takes that back
(the error that is made from edited activations would: SAELens's issue 326).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.errors import HookError
from neox_lab.hooks.names import exact
from neox_lab.hooks.splicing import Reading, SiteTap, Spliced, SplicedPoint
from neox_lab.hooks.table import shape_at
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.parts import at_least_float32

if TYPE_CHECKING:
    from neox_lab.sae.dictionary import Dictionary

INPUT, ACTS, RECONS, ERROR = (f"hook_sae_{part}" for part in ("input", "acts", "recons", "error"))


def splice(
    dictionary: Dictionary, points: Mapping[str, HookPoint], known: Mapping[str, int], error: bool
) -> Spliced:
    """How a dictionary goes into a network, see ``Hooked.spliced``.

    Args:
        dictionary: the dictionary.
        points: the network's hook points.
        known: lengths of the network's own axes.
        error: what the dictionary misses is added.

    Raises:
        HookNameError: the network has no such site.
        HookError: another width, or a site that cannot be read before the other is written.
    """
    sites, widths = (dictionary.site_in, dictionary.site_out), (dictionary.d_in, dictionary.d_out)
    read, written = places(repr(dictionary), sites, widths, points, known)
    transcoder = read.name != written.name
    function = SplicedDictionary(dictionary, transcoder, error)
    return Spliced(
        written.name,
        function,
        points_of(read, written, error),
        {"latent": dictionary.latents},
        Reading(read.name, function.read) if transcoder else None,
        [*dictionary.parameters()],
    )


def places(
    who: str,
    sites: tuple[str, str],
    widths: tuple[int, int],
    points: Mapping[str, HookPoint],
    known: Mapping[str, int],
) -> tuple[HookPoint, HookPoint]:
    """Where something is read and written.

    Args:
        who: what it is, for messages.
        sites: the two hook points.
        widths: how many numbers it reads and writes at a position.
        points: the network's hook points.
        known: lengths of the network's own axes.

    Raises:
        HookNameError: the network has no such site.
        HookError: another width, or a site that cannot be read before the other is written.
    """
    read, written = (points[exact(site, points)] for site in sites)
    for point, width, verb in zip((read, written), widths, ("reads", "writes"), strict=True):
        shape = shape_at(point, known)
        if point.axes[:2] != ("batch", "pos") or math.prod(shape[2:]) != width:
            raise HookError(
                f"{who} {verb} tensors [batch, pos, {width}]; at {point.name!r} stands "
                f"[{', '.join(point.axes)}], with {math.prod(shape[2:]):,} numbers at a position. "
                "It belongs to another model or another site."
            )
    order = list(points)
    if read.layer != written.layer or order.index(read.name) > order.index(written.name):
        raise HookError(
            f"{who} reads {read.name!r} and writes {written.name!r}; a dictionary can be "
            "spliced in where it reads earlier than it writes, in the same block."
        )
    return read, written


def points_of(read: HookPoint, written: HookPoint, error: bool) -> list[SplicedPoint]:
    """The hook points of a dictionary, in the order in which tensors pass them."""
    into, out = (" ".join(point.axes) for point in (read, written))
    found = [
        SplicedPoint(INPUT, into, f"what the dictionary reads at {read.name}", True),
        SplicedPoint(ACTS, "batch pos latent", "activations of the dictionary's features", True),
        SplicedPoint(RECONS, out, "what the features write, with the dictionary's bias", True),
    ]
    if error:
        found.append(SplicedPoint(ERROR, out, "what the unedited features miss", True))
    return found


def through_points(
    target: Tensor, recons: Tensor, after: Tensor, error: bool, tap: SiteTap
) -> Tensor | None:
    """Pass what features write, and what they miss, through their hook points.

    Args:
        target: what stands at the site ``[.., d]``, at least float32.
        recons: what the features of the run write ``[.., d]``, likewise.
        after: what they write once activations were changed by hooks; ``recons`` if none was.
        error: add what the features of the run miss.
        tap: of the site.

    Returns:
        What the site goes on with ``[.., d]``; None where that is its tensor.
    """
    written = tap(RECONS, after)
    if not error:
        return written
    missing = target - recons
    missed = tap(ERROR, missing)
    return None if written is recons and missed is missing else written + missed


class SplicedDictionary:
    """The function that stands at ``site_out``."""

    def __init__(self, dictionary: Dictionary, transcoder: bool, error: bool) -> None:
        """A dictionary, whether it reads elsewhere than it writes, and whether its error stays."""
        self.dictionary, self.transcoder, self.error = dictionary, transcoder, error
        self.names = (INPUT, ACTS, RECONS, ERROR) if error else (INPUT, ACTS, RECONS)
        self._read: Tensor | None = None

    def read(self, tensor: Tensor) -> None:
        """Keep what stands at ``site_in`` until ``site_out`` is reached in the same block."""
        self._read = tensor

    def __call__(self, tensor: Tensor, tap: SiteTap) -> Tensor | None:
        """The site's new tensor, or None to leave it.

        Raises:
            HookError: ``site_in`` was not passed before, or the dictionary is on another device.
        """
        x, device = self._source(tensor), self.dictionary.W_dec.device
        if tensor.device != device:
            raise HookError(
                f"{self.dictionary!r} is on {device}, the model on {tensor.device}; move one: "
                f"dictionary.to({str(tensor.device)!r})."
            )
        if self.error and not tap.watched(*self.names):
            return None  # what the features write and what they miss sum to what is there
        target = at_least_float32(tensor)
        recons, after = self._features(at_least_float32(x), target, tap)
        new = through_points(target, recons, after, self.error, tap)
        return None if new is None else new.to(tensor.dtype)

    def _source(self, tensor: Tensor) -> Tensor:
        """What the dictionary reads."""
        if not self.transcoder:
            return tensor
        x, self._read = self._read, None
        if x is None:
            raise HookError(
                f"{self.dictionary!r} is spliced in, and nothing passed {self.dictionary.site_in!r}"
                " before it: a module of another kind stands there."
            )
        return x

    def _features(self, x: Tensor, target: Tensor, tap: SiteTap) -> tuple[Tensor, Tensor]:
        """What the features write: unedited, and after edits of input and activations."""
        dictionary = self.dictionary
        flat = x.flatten(2)
        codes = dictionary.encode(flat)
        recons = dictionary.decode(codes, flat).to(target.dtype).view_as(target)
        after = recons
        edited = tap(INPUT, x)
        if edited is not x:
            flat = edited.flatten(2)
            codes = dictionary.encode(flat)
            after = dictionary.decode(codes, flat).to(target.dtype).view_as(target)
        if tap.watched(ACTS):
            acts = codes.dense().to(target.dtype)
            new = tap(ACTS, acts)
            if new is not acts:
                after = after + dictionary.written(acts, new, flat).view_as(target)
        return recons, after
