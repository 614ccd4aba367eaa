"""Runs with several dictionaries spliced in, some of whose nodes have the values of another run.

A node is a feature at all positions, or what a dictionary misses (its error). The other run is that
of corrupted prompts, position by position, or none: then every value is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.metrics import BoundMetric, Metric, output_logits
from neox_lab.experiments.patching.prompts import PromptsLike
from neox_lab.experiments.prompt_pairs import Batch, batch, pair
from neox_lab.features.misses import missed_share, tell_of_misfit
from neox_lab.features.reading import written_site
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.sae import Codes, Dictionary, TranscoderLayer
from neox_lab.sae.splicing import ACTS, ERROR, INPUT, RECONS

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


class Node(NamedTuple):
    """A part of a network with dictionaries in it.

    Attributes:
        site: the number of the dictionary.
        latent: the feature, or -1 for the error.
    """

    site: int
    latent: int


@dataclasses.dataclass(frozen=True)
class Site:
    """A dictionary and its values in the other run.

    Attributes:
        dictionary: the dictionary.
        name: the hook point it writes.
        active: the features that are active in text in either run.
        codes: the other run's features ``[batch, pos, slot]``; None for zeros.
        error: the other run's error, None for zeros.
    """

    dictionary: Dictionary
    name: str
    active: list[int]
    codes: Codes | None
    error: Tensor | None

    @property
    def short(self) -> str:
        """A short name, such as ``1.mlp_out``."""
        return self.name.removeprefix("blocks.").replace("hook_", "")

    def acts_of_other(self, like: Tensor) -> Tensor:
        """Activations of the other run ``[batch, pos, latent]``."""
        return torch.zeros_like(like) if self.codes is None else self.codes.dense().to(like)

    def error_of_other(self, like: Tensor) -> Tensor:
        """What the dictionary misses in the other run."""
        return torch.zeros_like(like) if self.error is None else self.error.to(like)


class Slopes(NamedTuple):
    """How one site goes from this run to the other; 0 at padding.

    Attributes:
        acts: change of the features ``[batch, pos, latent]``.
        error: change of the error.
        acts_slope: the metric's mean gradient there on the way.
        error_slope: likewise.
    """

    acts: Tensor
    error: Tensor
    acts_slope: Tensor
    error_slope: Tensor


@dataclasses.dataclass(frozen=True)
class SplicedRuns:
    """A network with dictionaries in it, and a metric.

    Attributes:
        run: the prompts and the metric.
        sites: the dictionaries, in the order of the forward pass.
    """

    run: Batch
    sites: list[Site]

    @classmethod
    def of(
        cls,
        model: HookedModel,
        dictionaries: Dictionary | Sequence[Dictionary] | Mapping[str, Dictionary],
        inputs: PromptsLike,
        corrupted: PromptsLike | None,
        metric: Metric,
    ) -> SplicedRuns:
        """Read the prompts, and keep what is needed of the other run.

        Raises:
            InputError: no dictionaries, prompts that do not pair up, or a metric that does not fit.
            HookError: a dictionary that does not fit the model, or two at one site.
        """
        listed = [dictionaries] if isinstance(dictionaries, Dictionary) else dictionaries
        if isinstance(listed, Mapping):
            listed = list(listed.values())
        if not isinstance(listed, list | tuple) or not listed:
            raise InputError(
                f"dictionaries={shown(dictionaries)}; expected a Dictionary, or a list or mapping "
                "of them."
            )
        if wrong := [each for each in listed if isinstance(each, TranscoderLayer)]:
            raise InputError(
                f"{wrong[0]!r} writes to several layers; a circuit is of dictionaries that write "
                "to one each. nl.features.effects measures what each of its features does."
            )
        places = {written_site(model, each): each for each in listed}
        if len(places) < len(listed):
            raise InputError("Two dictionaries write at one site; a circuit has one for each.")
        order = [name for name in model.hook_points if name in places]
        other: Batch | None = None
        if corrupted is None:
            run = batch(model, inputs, metric)
        else:
            both = pair(model, inputs, corrupted, metric)
            run, other = both.clean, both.corrupted
        with model.spliced([*places.values()]):
            own = _kept(run, order, (INPUT, RECONS, ERROR))
            theirs = None if other is None else _kept(other, order, (INPUT, ERROR))
        sites = []
        for name in order:
            dictionary, error = places[name], None
            missed = missed_share(own[f"{name}.{RECONS}"], own[f"{name}.{ERROR}"], run.own)
            tell_of_misfit(dictionary, name, missed, run.own)
            codes = [dictionary.encode(own[f"{name}.{INPUT}"].flatten(2))]
            if theirs is not None:
                codes.append(dictionary.encode(theirs[f"{name}.{INPUT}"].flatten(2)))
                error = theirs[f"{name}.{ERROR}"]
            text = [one.indices[(one.values != 0) & run.own[..., None]] for one in codes]
            active = torch.unique(torch.cat(text)).tolist()
            sites.append(Site(dictionary, name, active, codes[1] if theirs else None, error))
        return cls(run, sites)

    @property
    def nodes(self) -> list[Node]:
        """Every feature that is active, and the errors."""
        return [
            Node(number, latent)
            for number, site in enumerate(self.sites)
            for latent in (*site.active, -1)
        ]

    def name(self, node: Node) -> str:
        """A short name, such as ``1.mlp_out f123``."""
        site = self.sites[node.site].short
        return f"{site} error" if node.latent < 0 else f"{site} f{node.latent}"

    @torch.no_grad()
    def measure(self, exchanged: Iterable[Node] = (), kept: Iterable[Node] | None = None) -> Tensor:
        """The metric of each text, or a single one, ``[sample]``, on the CPU.

        Args:
            exchanged: nodes that get the value of the other run; all others keep what they have.
            kept: instead: nodes that keep what they have in this run; all others get the value of
                the other run, features that are active nowhere too.
        """
        hooks: list[tuple[str, HookFunction]] = []
        listed = list(exchanged if kept is None else kept)
        for number, site in enumerate(self.sites):
            own = [node.latent for node in listed if node.site == number]
            keep = torch.full((site.dictionary.latents,), kept is None, dtype=torch.bool)
            keep[[latent for latent in own if latent >= 0]] = kept is not None
            if not bool(keep.all()):
                hooks.append((f"{site.name}.{ACTS}", _put_features(site, keep)))
            if (-1 in own) == (kept is None):
                hooks.append((f"{site.name}.{ERROR}", _put_error(site)))
        run = self.run
        with run.model.spliced([site.dictionary for site in self.sites]):
            output = run.model.run_with_hooks(run.ids, hooks, **run.arguments)
        value, rows = run.measure(output_logits(output))
        return (value[None] if rows is None else rows).cpu()

    def slopes(self, number: int, steps: int) -> Slopes:
        """Changes of one site's activations and error, and the mean gradient on the way.

        Both go together from this run to the other; the rest of the network follows.
        """
        site, run = self.sites[number], self.run
        names = [f"{site.name}.{ACTS}", f"{site.name}.{ERROR}"]
        with run.model.spliced(site.dictionary):
            own = gradients.run(run, names)
            start = [own.activations[name] for name in names]
            end = [site.acts_of_other(start[0]), site.error_of_other(start[1])]
            slopes = [torch.zeros_like(tensor) for tensor in start]
            for place, weight in zip(*gradients.quadrature(steps), strict=True):
                between = {
                    name: a + place * (b - a) for name, a, b in zip(names, start, end, strict=True)
                }
                found = gradients.run(run, names, replaced=between).gradients
                for slope, name in zip(slopes, names, strict=True):
                    slope += weight * found[name]
        texts = [run.own.view(*run.own.shape, *[1] * (a.dim() - 2)) for a in start]
        acts, error = ((b - a) * t for a, b, t in zip(start, end, texts, strict=True))
        acts_slope, error_slope = (slope * t for slope, t in zip(slopes, texts, strict=True))
        return Slopes(acts, error, acts_slope, error_slope)

    def gradients(self, number: int, steps: int) -> Tensor:
        """Integrated gradients of one site's nodes, in the order of ``nodes``, ``[sample, node]``.

        A node's effect is its change times the mean gradient on the way.
        """
        found = self.slopes(number, steps)
        features = (found.acts * found.acts_slope).sum(dim=1)[:, self.sites[number].active]
        error = (found.error * found.error_slope).flatten(1).sum(dim=1, keepdim=True)
        return self.samples(torch.cat([features, error], dim=1))

    def samples(self, rows: Tensor) -> Tensor:
        """Shares of each text ``[batch, ...]``, or of the one number of a metric without rows."""
        knows_rows = isinstance(self.run.metric, BoundMetric)
        return (rows if knows_rows else rows.sum(dim=0, keepdim=True)).cpu()


@torch.no_grad()
def _kept(side: Batch, sites: list[str], parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Activations of the dictionaries' own hook points."""
    names = [f"{site}.{part}" for site in sites for part in parts]
    _, cache = side.model.run_with_cache(side.ids, names, **side.arguments)
    return {name: cache[name] for name in names}


def _put_features(site: Site, keep: Tensor) -> Callable[[Tensor, HookPoint], Tensor]:
    def put(acts: Tensor, _: HookPoint) -> Tensor:
        return torch.where(keep.to(acts.device), acts, site.acts_of_other(acts))

    return put


def _put_error(site: Site) -> Callable[[Tensor, HookPoint], Tensor]:
    def put(error: Tensor, _: HookPoint) -> Tensor:
        return site.error_of_other(error)

    return put
