"""Scores of every edge, and runs of circuits, beside the published algorithms.

Run: python benchmarks/circuits.py [--shape NAME] [--batch N] [--length N] [--steps N]
     [--circuits N] [--turns N] [--threads N] [--device cuda] [--peer transformer-lens]

Random weights of the Pythia shapes, float32; pairs of random tokens that differ at the second and
at the middle token; the metric is the difference of two logits at the last position.

    EAP-IG      every edge by so many steps: ``nl.circuits.scores(.., "eap-ig")``, and the algorithm
                as it is published (``eap_ig.py``): on plain PyTorch, or with ``--peer
                transformer-lens`` on a HookedTransformer, which the authors' code is written for
                and TransformerLens has below version 4
    no weights  the same peer with weights frozen, which spares it gradients that the published
                code computes and does not use
    circuits    runs of random circuits: ours side by side, theirs one after another, each with its
                run of the corrupted prompts

Sides take turns. ``ratio`` is the median, over turns, of our time divided by the peer's, by the
clock and in processor time, which other work on the machine disturbs less; below 1 ours is the
faster. ``differ`` is the largest difference between both results, with the peer's places on the
path, over the largest score.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import neox_lab as nl
from neox_lab.circuits.edges import edge_table
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.experiments import graph
from neox_lab.experiments.attribution import gradients
from neox_lab.experiments.prompt_pairs import pair

sys.path.insert(0, str(Path(__file__).parent))
from caching import SHAPES, VOCAB, fresh
from devices import add_device, header, wait
from eap_ig import OnTransformerLens, PlainEdges

RIGHT, WRONG = 17, 4000
METRIC = nl.patching.logit_difference(RIGHT, WRONG)


def their_metric(logits: Tensor) -> Tensor:
    """The same of each row."""
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


def prompts(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids ``[batch, pos]``."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(VOCAB, (options.batch, options.length), generator=generator)
    corrupted = clean.clone()
    for place in (1, options.length // 2):
        corrupted[:, place] = (clean[:, place] + 1) % VOCAB
    return clean.to(options.device), corrupted.to(options.device)


def clocked(run: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    wait(device)
    start = time.perf_counter(), time.process_time()
    run()
    wait(device)
    return time.perf_counter() - start[0], time.process_time() - start[1]


def compare(work: str, sides: dict[str, Callable[[], Any]], differ: float, options: Any) -> None:
    """Print a line for each peer of ``ours``, the first of ``sides``."""
    for run in sides.values():
        run()  # warms up
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for turn in range(options.turns):
        for name in sorted(sides, reverse=turn % 2 == 1):
            turns[name].append(clocked(sides[name], options.device))
    ours = turns.pop("ours")
    for name, theirs in turns.items():
        told = f"{work:20} {name:17}"
        for kind in (0, 1):
            mine, others = ([seconds[kind] for seconds in side] for side in (ours, theirs))
            ratio = median(m / other for m, other in zip(mine, others, strict=True))
            told += f" {median(others):8.2f} {median(mine):8.2f} {ratio:7.3f}"
        print(f"{told} {differ:9.1e}", flush=True)


def compare_scores(model: Any, peer: Any, weights: Any, options: argparse.Namespace) -> None:
    """EAP-IG over all edges."""
    clean, corrupted = prompts(options)
    steps = options.steps

    def ours() -> Tensor:
        return nl.circuits.scores(model, clean, corrupted, METRIC, "eap-ig", steps=steps).values

    def theirs() -> Tensor:
        found = peer.eap_ig(clean, corrupted, steps)
        weights.zero_grad(set_to_none=True)
        return found

    def without_weights() -> Tensor:
        weights.requires_grad_(False)
        found = peer.eap_ig(clean, corrupted, steps)
        weights.requires_grad_(True)
        return found

    left = [1 - k / steps for k in range(steps)], [1 / steps] * steps
    with patch.object(gradients, "quadrature", lambda _: left):
        found, expected = ours().nan_to_num(), theirs().cpu()
    differ = float((found - expected).abs().max() / expected.abs().max())
    sides = {"ours": ours, options.peer: theirs, "no weights": without_weights}
    compare(f"EAP-IG, {steps} steps", sides, differ, options)


def compare_circuits(model: Any, peer: Any, options: argparse.Namespace) -> None:
    """Runs of circuits, each of 1 to 50 % of the edges."""
    clean, corrupted = prompts(options)

    def runs() -> CircuitRuns:
        return CircuitRuns(pair(model, corrupted, clean, METRIC), "resample")

    writers, readers = runs().writers, runs().readers
    table = edge_table(writers, readers, model.config.use_parallel_residual)
    generator = torch.Generator().manual_seed(1)
    shares = torch.logspace(-2, -0.3, options.circuits)[:, None, None]
    kept = (torch.rand(options.circuits, *table.shape, generator=generator) < shares) & table

    def ours() -> Tensor:
        return runs().measure(kept)

    def theirs() -> Tensor:
        each = [peer.faithful(clean, corrupted, one.to(options.device)) for one in kept]
        return torch.stack(each).cpu()

    found, expected = ours(), theirs()
    differ = float((found - expected).abs().max() / expected.abs().max())
    sides = {"ours": ours, "plain": theirs}
    compare(f"{options.circuits} circuits", sides, differ, options)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="pythia-160m", choices=list(SHAPES))
    for name, value in {"batch": 8, "length": 16, "steps": 5, "circuits": 12, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    parser.add_argument("--peer", choices=("plain", "transformer-lens"), default="plain")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device))
    torch.manual_seed(0)
    model = fresh(*SHAPES[options.shape]).to(options.device)
    plain = peer = PlainEdges(model, their_metric)
    weights = model
    if options.peer == "transformer-lens":
        peer = OnTransformerLens(model, their_metric)
        weights = peer.model
    edges = int(edge_table(graph.writers(model), graph.readers(model), True).sum())
    print(
        f"{options.shape}, {edges:,} edges, {options.batch} pairs of {options.length} tokens; "
        f"medians of {options.turns} turns, in seconds\n"
    )
    print(f"{'':33} {'by the clock':^25} {'processor time':^25}")
    print(
        f"{'work':20} {'peer':12}" + 2 * f" {'theirs':>8} {'ours':>8} {'ratio':>7}" + "    differ"
    )
    compare_scores(model, peer, weights, options)
    compare_circuits(model, plain, options)


if __name__ == "__main__":
    main()
