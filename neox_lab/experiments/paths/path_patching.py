"""Path patching: what one part of the model does by way of another.

A *sender* (embedding, head, MLP) writes to the residual stream; a *receiver* (queries, keys or
values of a head, an MLP, the logits) reads it. Patching the path between them changes what the
receiver reads by what the sender would have written in the clean run, and nothing else:

    1. Both runs are made; of each sender s, Δ(s) is what it writes in the clean run minus what it
       writes in the corrupted run; with ``positions`` at one named position only, 0 elsewhere.
    2. Every receiver r is computed anew from its input in the corrupted run plus the sum of Δ(s)
       over the senders before r. All other parts keep their values of the corrupted run, so Δ(s)
       reaches r by the direct edge alone. With ``through="mlps"`` MLPs between them are computed
       anew as well, and only heads keep their values.
    3. The corrupted run is made once more with the receivers (a head's q, k or v, an MLP's output)
       set to what step 2 gave, and everything after them computed as usual. Where the logits are
       a receiver, step 2's change of the final residual stream is added to it.

Steps 1 to 3 are path patching as in Wang et al., 2022, arXiv:2211.00593 (appendix B), who freeze
heads and let MLPs be computed anew, ``through="mlps"``. Goldowsky-Dill et al., 2023,
arXiv:2304.05969, patch a set of paths of the network written out as a tree; a direct edge is such
a path, followed by all that leads from the receiver to the logits. For one receiver both agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.checks import check, one_of, several
from neox_lab.errors import InputError
from neox_lab.experiments import graph
from neox_lab.experiments.metrics import BoundMetric, Metric, metric_name
from neox_lab.experiments.patching.progress_report import ProgressReport, watched
from neox_lab.experiments.patching.prompts import Positions, PromptsLike
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.paths.path_runs import Path, PathRuns, Sender, Through
from neox_lab.experiments.prompt_pairs import pair

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

TOKENS_AT_ONCE = 2048
"""Tokens in one run, of all variants together."""


def path_patch(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    senders: str | Iterable[str | Sequence[str]] = "heads",
    receivers: str | Iterable[str] = "logits",
    *,
    through: Through = "nothing",
    positions: Positions | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
    progress: bool | ProgressReport = True,
) -> PatchResult:
    """Send each sender's clean output to the receivers, and to nobody else.

    Args:
        model: any class with a head.
        clean: where the senders' outputs come from; see ``nl.patching.sweep``.
        corrupted: the prompts that get patched; as many tokens, unless ``positions`` says what
            corresponds.
        metric: see ``neox_lab.experiments.metrics``.
        senders: ``"heads"``, ``"mlps"``, ``"all"``, or names such as ``["L0H1", "MLP2", "embed"]``,
            each patched by itself. A list of names inside the list is patched as one.
        receivers: ``"logits"`` (direct effects), or names such as ``["L9H6.q", "L9H9.q"]``, all
            patched at once; a head without a part stands for its q, k and v.
        through: ``"nothing"``: direct edges only. ``"mlps"``: also paths through MLPs.
        positions: send what is written at named positions only, one at a time; see
            ``nl.patching.sweep``.
        tokens_at_once: memory budget; the same numbers for any.
        progress: a bar with the time left, or who is told; see ``nl.patching.sweep``.

    Returns:
        The metric for each sender, over ``("layer", "head")`` for ``"heads"``, else over
        ``("sender",)``; in front of them ``"pos"`` if positions are named. If interrupted, what is
        done, as by ``nl.patching.sweep``.

    Raises:
        InputError: unknown names, senders none of which comes before a receiver, pairs of unequal
            length or without difference.
        HookError: a function is spliced in between heads and MLPs, see ``graph.check_whole``.
    """
    graph.check_whole(model)
    check("through", through, one_of("nothing", "mlps"), InputError)
    listed: list[Any] = [senders]
    if not isinstance(senders, str):
        listed = several("senders", senders, "names such as ['L0H1', 'MLP2']", InputError)
    single = [
        [node]
        for names in listed
        if isinstance(names, str)
        for node in graph.find_writers(model, names)
    ]
    groups = single + [
        graph.find_writers(model, names) for names in listed if not isinstance(names, str)
    ]
    reading = graph.find_readers(model, receivers)
    runs = PathRuns(pair(model, clean, corrupted, metric, positions), through, tokens_at_once)
    if not any(runs.precedes(w, r) for group in groups for w in group for r in reading):
        raise InputError(
            f"No sender comes before a receiver: {listed[:6]} and {[r.name for r in reading[:6]]}."
        )
    places = range(len(positions or [""]))
    sending = [Sender(tuple(nodes), place) for place in places for nodes in groups]
    runs.prepare([Path(sender, reading) for sender in sending])
    with watched(progress, "block") as watch:
        runs.run(watch)
    labels = {} if positions is None else {"pos": [str(name) for name in positions]}
    told = receivers if isinstance(receivers, str) else ", ".join(receivers)
    if listed == ["heads"]:
        labels["layer"] = _numbers(model.config.num_hidden_layers)
        labels["head"] = _numbers(model.config.num_attention_heads)
    else:
        labels["sender"] = [" + ".join(node.name for node in group) for group in groups]
    found = runs.values, runs.computed
    return _result(runs, metric, *found, labels, f"paths to {told}", watch.complete)


def edge_sweep(
    model: HookedModel,
    clean: PromptsLike,
    corrupted: PromptsLike,
    metric: Metric,
    senders: str | Iterable[str] = "all",
    receivers: str | Iterable[str] = "all",
    *,
    positions: Positions | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
    progress: bool | ProgressReport = True,
) -> PatchResult:
    """Patch every edge from a sender to a receiver by itself.

    Args:
        model: any class with a head.
        clean: see ``path_patch``.
        corrupted: see ``path_patch``.
        metric: see ``path_patch``.
        senders: names of writers, or ``"heads"``, ``"mlps"``, ``"all"``.
        receivers: names of readers, likewise; heads have one for each of q, k and v.
        positions: patch each edge at named positions only, one at a time; see
            ``nl.patching.sweep``. ``{str(pos): pos for pos in range(length)}`` is every one.
        tokens_at_once: memory budget; the same numbers for any.
        progress: a bar with the time left, or who is told; see ``nl.patching.sweep``.

    Returns:
        The metric over ``("writer", "reader")``; not computed where the reader does not come after
        the writer. In front of them ``"pos"`` if positions are named: where the writer writes. If
        interrupted, what is done, as by ``nl.patching.sweep``.

    Raises:
        InputError: see ``path_patch``.
        HookError: see ``path_patch``.
    """
    graph.check_whole(model)
    writers, readers = graph.find_writers(model, senders), graph.find_readers(model, receivers)
    runs = PathRuns(pair(model, clean, corrupted, metric, positions), "nothing", tokens_at_once)
    places = range(len(positions or [""]))
    sending = [Sender((node,), place) for place in places for node in writers]
    after = [[runs.precedes(sender.nodes[0], reader) for reader in readers] for sender in sending]
    there = torch.tensor(after)
    edges = [(sending[row], readers[column]) for row, column in there.nonzero().tolist()]
    if not edges:
        raise InputError("No sender comes before a receiver: there is no edge between them.")
    runs.prepare([Path(sender, (reader,)) for sender, reader in edges])
    with watched(progress, "block") as watch:
        runs.run(watch)
    samples = runs.values.new_full((*there.shape, runs.values.shape[1]), torch.nan)
    computed = torch.zeros_like(there)
    samples[there], computed[there] = runs.values, runs.computed
    labels = {} if positions is None else {"pos": [str(name) for name in positions]}
    labels |= {"writer": [w.name for w in writers], "reader": [r.name for r in readers]}
    return _result(runs, metric, samples, computed, labels, "edges", watch.complete)


def _result(
    runs: PathRuns,
    metric: Metric,
    samples: Tensor,
    computed: Tensor,
    labels: dict[str, list[str]],
    site: str,
    complete: bool,
) -> PatchResult:
    """Samples in the order of ``labels``, places first and pairs last, as a result."""
    samples = samples.reshape(*map(len, labels.values()), -1)
    knows_rows = isinstance(runs.corrupted.metric, BoundMetric)
    return PatchResult(
        values=samples.mean(dim=-1),
        computed=None if bool(computed.all()) else computed.reshape(samples.shape[:-1]),
        axes=tuple(labels),
        clean=runs.clean_value,
        corrupted=float(runs.samples.mean()),
        site=(site,),
        metric=metric_name(metric),
        direction="denoising",
        labels=labels,
        samples=samples.movedim(-1, 0) if knows_rows else None,
        base_samples=runs.samples if knows_rows else None,
        complete=complete,
    )


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]
