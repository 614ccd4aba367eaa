"""Edges of a sparse feature circuit: what one node does to another by no way of a third site.

    effect of u on d = Σ change of u · ∂d/∂u · slope of d

summed over positions: the change of u from this run to the other, the direct derivative, and the
metric's mean gradient at d, which the effect of the node d is made of (Marks et al., "Sparse
feature circuits", arXiv:2403.19647, appendix on edges). The derivative is direct: gradients end at
every site with a dictionary, so that what goes by way of one is an edge to it. All other parts of
the network pass gradients on, and so does the linear path of a transcoder. One run forward gives
all of it, and one run back for each node that is reached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.attribution.gradients import even_padding
from neox_lab.experiments.metrics import metric_name, output_logits
from neox_lab.features.spliced_runs import Node, Site, SplicedRuns
from neox_lab.frames import make_frame
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.results import Result
from neox_lab.sae.splicing import ACTS, ERROR, INPUT, RECONS

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import NetworkView


@dataclasses.dataclass(frozen=True)
class FeatureEdges(Result):
    """Direct effects between the nodes of a circuit.

    Attributes:
        frame: one row an edge, the largest first: ``upstream`` and ``downstream`` (sites, or
            ``metric``), ``upstream_latent`` and ``downstream_latent`` (a feature's number,
            ``error``, or nothing for the metric), and ``effect``, mean over texts.
        sites: all sites, in the order of the forward pass.
        title: the headline.
        value_name: what an effect is.
    """

    frame: pd.DataFrame
    sites: list[str]
    title: str
    value_name: str

    def view(self) -> NetworkView:
        """A row for each site and one for the metric; in a row, ends of large edges come first.

        Raises:
            InputError: there is no edge.
        """
        from neox_lab.views import Link, NetworkView

        if self.frame.empty:
            raise InputError("There is no edge above the threshold; ask for a lower one.")
        columns = ["upstream", "upstream_latent", "downstream", "downstream_latent", "effect"]
        edges = [self.frame[name].tolist() for name in columns]
        pairs = [((a, b), (c, d), effect) for a, b, c, d, effect in zip(*edges, strict=True)]
        parts = list(dict.fromkeys(part for begin, end, _ in pairs for part in (begin, end)))
        place = {part: at for at, part in enumerate(parts)}
        of_site = {
            site: [part for part in parts if part[0] == site] for site in (*self.sites, "metric")
        }
        rows = [site for site, own in of_site.items() if own]
        widest = max(len(own) for own in of_site.values())

        def column(site: str, latent: str) -> int:
            own = of_site[site]
            return (widest - len(own)) // 2 + own.index((site, latent))

        boxes = [f"f{latent}" if latent.isdigit() else latent for _, latent in parts]
        return NetworkView(
            [f"{site} {box}".strip() for (site, _), box in zip(parts, boxes, strict=True)],
            [rows.index(site) for site, _ in parts],
            [-1 if site == "metric" else column(site, latent) for site, latent in parts],
            rows,
            [Link(place[begin], place[end], effect) for begin, end, effect in pairs],
            self.value_name,
            self.title,
            boxes=[box or "metric" for box in boxes],
        )


def _place(runs: SplicedRuns, node: Node | None) -> tuple[str, str]:
    """Site and latent, as they stand in the frame."""
    if node is None:
        return "metric", ""
    return runs.sites[node.site].short, "error" if node.latent < 0 else str(node.latent)


class _Passed:
    """What passed one site in a run in which gradients end there.

    Attributes:
        acts: activations ``[batch, pos, latent]``, with the way back to earlier sites.
        error: likewise.
        begin: zeros added to what the site writes, at which gradients of later sites end.
        factor: what brings what features write to the scale of the input.
    """

    acts: Tensor
    error: Tensor
    begin: Tensor
    factor: Tensor | float

    def __init__(self, site: Site) -> None:
        """Nothing has passed yet."""
        self.dictionary, self.name = site.dictionary, site.name
        self._skipped: Tensor | None = None

    @property
    def hooks(self) -> list[tuple[str, HookFunction]]:
        """Hooks at the dictionary's own points."""
        made = {
            INPUT: reads_only(self._read),
            ACTS: reads_only(self._see),
            RECONS: self._end,
            ERROR: self._begin,
        }
        return [(f"{self.name}.{part}", function) for part, function in made.items()]

    def _read(self, x: Tensor, _: HookPoint) -> None:
        ours, flat = self.dictionary, x.flatten(2).to(self.dictionary.W_dec.dtype)
        self.factor = 1.0 if ours.is_transcoder else ours.normalise(flat.detach())[1][0]
        if ours.W_skip is not None:
            self._skipped = torch.nn.functional.linear(flat, ours.W_skip)

    def _see(self, acts: Tensor, _: HookPoint) -> None:
        self.acts = acts

    def _end(self, recons: Tensor, _: HookPoint) -> Tensor:
        ended = recons.detach()
        if self._skipped is None:
            return ended
        way = self._skipped - self._skipped.detach()
        return ended + way.to(recons.dtype).view_as(recons)

    def _begin(self, error: Tensor, _: HookPoint) -> Tensor:
        self.error, self.begin = error, torch.zeros_like(error).requires_grad_()
        return error.detach() + self.begin


class _Kept(NamedTuple):
    """The nodes of one site.

    Attributes:
        latents: features, and -1 for the error.
        acts: change of the features ``[batch, pos, feature]``.
        error: change of the error.
        acts_slope: the metric's mean gradient at the features.
        error_slope: likewise.
    """

    latents: list[int]
    acts: Tensor
    error: Tensor
    acts_slope: Tensor
    error_slope: Tensor

    @property
    def features(self) -> list[int]:
        """Without the error."""
        return [latent for latent in self.latents if latent >= 0]

    def weighted(self, passed: _Passed) -> Iterator[Tensor]:
        """Value times slope of each node, summed: what an edge to it is the gradient of."""
        for latent in self.latents:
            if latent < 0:
                yield (passed.error * self.error_slope).sum()
            else:
                slope = self.acts_slope[..., self.features.index(latent)]
                yield (passed.acts[..., latent] * slope).sum()

    def shares(self, passed: _Passed, gradient: Tensor) -> Tensor:
        """Effects of each node by a gradient at what the site writes, ``[batch, node]``."""
        gradient = gradient.flatten(2)
        rows = passed.dictionary.rows[self.features]
        slope = passed.factor * (gradient.to(rows.dtype) @ rows.T)
        effects = (self.acts * slope).sum(dim=1)
        if -1 not in self.latents:
            return effects
        error = (self.error.flatten(2) * gradient).sum(dim=(1, 2))
        return torch.cat([effects, error[:, None].to(effects)], dim=1)


def _kept(runs: SplicedRuns, chosen: Sequence[Node], number: int, steps: int) -> _Kept:
    """The nodes of one site among those that were chosen, the error last."""
    own = [node.latent for node in chosen if node.site == number]
    features = [latent for latent in own if latent >= 0]
    found = runs.slopes(number, steps)
    acts, slope = found.acts[..., features], found.acts_slope[..., features]
    latents = [*features, *([-1] if -1 in own else [])]
    return _Kept(latents, acts, found.error, slope, found.error_slope)


@torch.inference_mode(False)
def feature_edges(
    runs: SplicedRuns, chosen: Sequence[Node], steps: int, threshold: float
) -> FeatureEdges:
    """Edges between nodes, and from them to the metric, see ``FeatureCircuit.edges``."""
    kept = [_kept(runs, chosen, number, steps) for number in range(len(runs.sites))]
    passed, metric = _run(runs)
    found: list[tuple[Node, Node | None, float]] = []
    for number, end in enumerate(kept):
        for latent, value in zip(end.latents, end.weighted(passed[number]), strict=True):
            found += _edges_into(runs, kept[:number], passed, value, Node(number, latent))
    found += _edges_into(runs, kept, passed, metric, None)
    above = [edge for edge in found if abs(edge[-1]) > threshold]
    above.sort(key=lambda edge: -abs(edge[-1]))
    rows = [(*_place(runs, a), *_place(runs, b), effect) for a, b, effect in above]
    names = ["upstream", "upstream_latent", "downstream", "downstream_latent", "effect"]
    sites = [site.short for site in runs.sites]
    return FeatureEdges(
        make_frame(rows, columns=names),
        sites,
        f"{len(above):,} edges between {len(chosen):,} nodes",
        f"estimated change of {metric_name(runs.run.metric)}",
    )


def _edges_into(
    runs: SplicedRuns,
    kept: Sequence[_Kept],
    passed: Sequence[_Passed],
    value: Tensor,
    end: Node | None,
) -> list[tuple[Node, Node | None, float]]:
    """Effects of all nodes of earlier sites on one number."""
    begins = [number for number, site in enumerate(kept) if site.latents]
    if not begins or not value.requires_grad:
        return []
    ends = [passed[number].begin for number in begins]
    gradients = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
    found: list[tuple[Node, Node | None, float]] = []
    for number, gradient in zip(begins, gradients, strict=True):
        if gradient is None:  # no way leads there, as from attention to the MLP beside it
            continue
        shares = kept[number].shares(passed[number], gradient).detach()
        effects = runs.samples(shares).mean(dim=0).tolist()
        found += [
            (Node(number, latent), end, effect)
            for latent, effect in zip(kept[number].latents, effects, strict=True)
        ]
    return found


def _run(runs: SplicedRuns) -> tuple[list[_Passed], Tensor]:
    """One run in which gradients end at every site, and the metric of all texts, summed."""
    run, passed = runs.run, [_Passed(site) for site in runs.sites]
    hooks: list[tuple[str, HookFunction]] = even_padding(run)
    hooks += [hook for one in passed for hook in one.hooks]
    with torch.enable_grad(), run.model.spliced([site.dictionary for site in runs.sites]):
        output = run.model.run_with_hooks(run.ids, hooks, **run.arguments)
        value, rows = run.measure(output_logits(output))
    return passed, value if rows is None else rows.sum()
