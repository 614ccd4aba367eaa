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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check, shown
from neox_lab.errors import InputError
from neox_lab.experiments.attribution.agreement import Agreement, compare
from neox_lab.experiments.attribution.gradients import even_padding
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.metrics import metric_name, output_logits
from neox_lab.experiments.splices import with_same_splices
from neox_lab.features.spliced_runs import Node, Site, SplicedRuns
from neox_lab.frames import make_frame
from neox_lab.hooks import reads_only
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.results import Result
from neox_lab.sae.splicing import ACTS, ERROR, INPUT, RECONS

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import NetworkView

COLUMNS = ["upstream", "upstream_latent", "downstream", "downstream_latent", "effect"]


class Edge(NamedTuple):
    """An edge.

    Attributes:
        begin: the node upstream.
        end: the node downstream, None for the metric.
        effect: mean over texts.
    """

    begin: Node
    end: Node | None
    effect: float


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
    _measure: Callable[[int], Tensor] | None = dataclasses.field(default=None, compare=False)

    def check(self, k: int = 10, edges: int = 32) -> Agreement:
        """Compare the largest estimates with what happens when the upstream node is exchanged.

        Every other site is held at what it has in the run, and what the downstream node becomes is
        counted with the same slope as in the estimate; of the metric its own change counts.

        Args:
            k: how many of the largest misses to list.
            edges: so many edges are measured, a run for each upstream node among them.

        Returns:
            Correlation, largest misses, and a picture of both numbers of every edge measured.

        Raises:
            InputError: there is no edge, or a number that is none.
            HookError: other functions are spliced in than when it was made.
        """
        count = check("edges", edges, COUNT, InputError)
        if self.frame.empty or self._measure is None:
            raise InputError("There is no edge to measure; ask for a lower threshold.")
        frame = self.frame.head(count)
        names = [
            f"{a} {_box(b)} → {c} {_box(d)}".strip()
            for a, b, c, d in zip(*(frame[name] for name in COLUMNS[:-1]), strict=True)
        ]
        values = torch.tensor(frame["effect"].to_numpy(), dtype=torch.float32)
        estimated = AttributionResult(
            values=values,
            axes=("component",),
            labels={"component": names},
            total=float(values.sum()),
            per_row=None,
            title=f"The largest of {self.title}",
            value_name=self.value_name,
            facts={},
        )
        return compare(estimated, self._measure(len(frame)), k)

    def view(self, pages: Mapping[str, str] | None = None) -> NetworkView:
        """A row for each site and one for the metric; in a row, ends of large edges come first.

        Args:
            pages: for sites the folder that ``nl.features.pages`` wrote of their dictionary:
                features link to their page in it.

        Raises:
            InputError: there is no edge, or a folder is of no site.
        """
        from neox_lab.views import Link, NetworkView

        folders = self._folders(pages)
        if self.frame.empty:
            raise InputError("There is no edge above the threshold; ask for a lower one.")
        edges = [self.frame[name].tolist() for name in COLUMNS]
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

        boxes = [_box(latent) for _, latent in parts]
        return NetworkView(
            [f"{site} {box}".strip() for (site, _), box in zip(parts, boxes, strict=True)],
            [rows.index(site) for site, _ in parts],
            [-1 if site == "metric" else column(site, latent) for site, latent in parts],
            rows,
            [Link(place[begin], place[end], effect) for begin, end, effect in pairs],
            self.value_name,
            self.title,
            boxes=[box or "metric" for box in boxes],
            pages=[
                f"{folders[site].rstrip('/')}/{latent}.html"
                if site in folders and latent.isdigit()
                else ""
                for site, latent in parts
            ],
        )

    def _folders(self, pages: object) -> dict[str, str]:
        """The folder of pages of each site that has one.

        Raises:
            InputError: something else.
        """
        if pages is None:
            return {}
        if not isinstance(pages, Mapping) or not all(
            isinstance(one, str) for one in pages.values()
        ):
            raise InputError(
                f"pages={shown(pages)}; expected the folder that nl.features.pages wrote, for "
                f"each site: {{{self.sites[0]!r}: 'pages'}}."
            )
        if strange := [site for site in pages if site not in self.sites]:
            raise InputError(f"pages has {shown(strange[0])}, which is none of {self.sites}.")
        return dict(pages)


def _place(runs: SplicedRuns, node: Node | None) -> tuple[str, str]:
    """Site and latent, as they stand in the frame."""
    if node is None:
        return "metric", ""
    return runs.sites[node.site].short, "error" if node.latent < 0 else str(node.latent)


def _box(latent: str) -> str:
    return f"f{latent}" if latent.isdigit() else latent


class _Passed:
    """What passed one site in a run in which gradients end there.

    Attributes:
        acts: activations ``[batch, pos, latent]``, with the way back to earlier sites.
        error: likewise.
        recons: what the features write, without a way back.
        begin: what is added to what the site writes: zeros, at which gradients of later sites end.
        factor: what brings what features write to the scale of the input.
        skipped: what the linear path writes.
    """

    acts: Tensor
    error: Tensor
    recons: Tensor
    begin: Tensor
    factor: Tensor | float

    def __init__(
        self, site: Site, held: _Passed | None = None, change: Tensor | None = None
    ) -> None:
        """Nothing has passed yet.

        Args:
            site: where.
            held: the site writes what it wrote then, but for the linear path; None for this run.
            change: what is added; None for zeros.
        """
        self.dictionary, self.name = site.dictionary, site.name
        self._held, self._change = held or self, change
        self.skipped: Tensor | None = None

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
            self.skipped = torch.nn.functional.linear(flat, ours.W_skip)

    def _see(self, acts: Tensor, _: HookPoint) -> None:
        self.acts = acts

    def _end(self, recons: Tensor, _: HookPoint) -> Tensor:
        self.recons = recons.detach()
        ended, before = self._held.recons, self._held.skipped
        if self.skipped is None or before is None:
            return ended
        return ended + (self.skipped - before.detach()).to(recons.dtype).view_as(recons)

    def _begin(self, error: Tensor, _: HookPoint) -> Tensor:
        self.error, change = error, self._change
        self.begin = torch.zeros_like(error).requires_grad_() if change is None else change
        return self._held.error.detach() + self.begin


class _Kept(NamedTuple):
    """The nodes of one site.

    Attributes:
        latents: features, and -1 for the error.
        rows: what each feature of activation 1 writes ``[feature, d_out]``.
        acts: change of the features ``[batch, pos, feature]``.
        error: change of the error.
        acts_slope: the metric's mean gradient at the features.
        error_slope: likewise.
    """

    latents: list[int]
    rows: Tensor
    acts: Tensor
    error: Tensor
    acts_slope: Tensor
    error_slope: Tensor

    def weighted(self, passed: _Passed, latent: int) -> Tensor:
        """Value times slope of a node, summed: what an edge to it is the gradient of."""
        if latent < 0:
            return (passed.error * self.error_slope).sum()
        slope = self.acts_slope[..., self.latents.index(latent)]
        return (passed.acts[..., latent] * slope).sum()

    def written(self, passed: _Passed, latent: int) -> Tensor:
        """How what the site writes changes with one node."""
        if latent < 0:
            return self.error
        at = self.latents.index(latent)
        change = passed.factor * (self.acts[..., at, None].to(self.rows) * self.rows[at])
        return change.to(self.error).view_as(self.error)

    def shares(self, passed: _Passed, gradient: Tensor) -> Tensor:
        """Effects of each node by a gradient at what the site writes, ``[batch, node]``."""
        gradient = gradient.flatten(2)
        slope = passed.factor * (gradient.to(self.rows.dtype) @ self.rows.T)
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
    rows = runs.sites[number].dictionary.rows.detach()[features]
    return _Kept(latents, rows, acts, found.error, slope, found.error_slope)


@torch.inference_mode(False)
def feature_edges(
    runs: SplicedRuns, chosen: Sequence[Node], steps: int, threshold: float
) -> FeatureEdges:
    """Edges between nodes, and from them to the metric, see ``FeatureCircuit.edges``."""
    kept = [_kept(runs, chosen, number, steps) for number in range(len(runs.sites))]
    ends = [Node(number, latent) for number, site in enumerate(kept) for latent in site.latents]
    with torch.enable_grad():
        passed, metric = _run(runs, [_Passed(site) for site in runs.sites])
        found: list[Edge] = []
        for end in (*ends, None):
            site = len(kept) if end is None else end.site
            value = _counted(kept, passed, metric, end)
            every = _edges_into(runs, kept[:site], passed, value, end)
            found += [edge for edge in every if abs(edge.effect) > threshold]
    found.sort(key=lambda edge: -abs(edge.effect))
    rows = [(*_place(runs, a), *_place(runs, b), effect) for a, b, effect in found]
    return FeatureEdges(
        make_frame(rows, columns=COLUMNS),
        [site.short for site in runs.sites],
        f"{len(found):,} edges between {len(chosen):,} nodes",
        f"estimated change of {metric_name(runs.run.metric)}",
        with_same_splices(
            runs.run.model,
            lambda count: torch.tensor(_measured(runs, kept, found[:count]), dtype=torch.float32),
        ),
    )


def _counted(
    kept: Sequence[_Kept], passed: Sequence[_Passed], metric: Tensor, end: Node | None
) -> Tensor:
    """The number that an edge changes, all texts together."""
    return metric if end is None else kept[end.site].weighted(passed[end.site], end.latent)


@torch.inference_mode(False)
@torch.no_grad()
def _measured(runs: SplicedRuns, kept: Sequence[_Kept], edges: Sequence[Edge]) -> list[float]:
    """Exact direct effects: every site but the one upstream writes what it writes in the run."""
    own, metric = _run(runs, [_Passed(site) for site in runs.sites])
    moved: dict[Node, tuple[list[_Passed], Tensor]] = {}
    texts = len(runs.samples(metric.expand(len(runs.run.ids))))
    found = []
    for begin, end, _ in edges:
        if begin not in moved:
            change = kept[begin.site].written(own[begin.site], begin.latent)
            sites = [
                _Passed(
                    site, held, change if number == begin.site else torch.zeros_like(held.begin)
                )
                for number, (site, held) in enumerate(zip(runs.sites, own, strict=True))
            ]
            moved[begin] = _run(runs, sites)
        before, after = (_counted(kept, *run, end) for run in ((own, metric), moved[begin]))
        found.append(float(after - before) / texts)
    return found


def _edges_into(
    runs: SplicedRuns,
    kept: Sequence[_Kept],
    passed: Sequence[_Passed],
    value: Tensor,
    end: Node | None,
) -> Iterator[Edge]:
    """Effects of all nodes of earlier sites on one number."""
    begins = [number for number, site in enumerate(kept) if site.latents]
    if not begins or not value.requires_grad:
        return
    ends = [passed[number].begin for number in begins]
    gradients = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
    for number, gradient in zip(begins, gradients, strict=True):
        if gradient is None:  # no way leads there, as from attention to the MLP beside it
            continue
        shares = kept[number].shares(passed[number], gradient).detach()
        effects = runs.samples(shares).mean(dim=0).tolist()
        for latent, effect in zip(kept[number].latents, effects, strict=True):
            yield Edge(Node(number, latent), end, effect)


def _run(runs: SplicedRuns, passed: list[_Passed]) -> tuple[list[_Passed], Tensor]:
    """One run with its sites watched, and the metric of all texts, summed."""
    run = runs.run
    hooks: list[tuple[str, HookFunction]] = even_padding(run)
    hooks += [hook for one in passed for hook in one.hooks]
    with run.model.spliced([site.dictionary for site in runs.sites]):
        output = run.model.run_with_hooks(run.ids, hooks, **run.arguments)
        value, rows = run.measure(output_logits(output))
    return passed, value if rows is None else rows.sum()
