"""Edge sweeps beside one forward pass for each edge: python benchmarks/paths.py [--device cuda].

Random weights of the Pythia shapes, float32, a pair of prompts of 14 random tokens that differ
in one. An edge goes from a writer (embedding, head, MLP) to a later reader (a head's queries, keys
or values, an MLP, the logits); patching it adds what the writer changes to that reader's input.

    edges       in the whole network
    one by one  seconds by the definition: the model runs once for each edge, with a hook at the
                reader's input. A sample of edges drawn at random is timed and scaled up
    ours        seconds of nl.patching.edge_sweep, both plain runs included (of Pythia-160m's many
                edges, which are not the default, some minutes)
    ratio       one by one / ours
    differ      largest difference between both results, over the edges timed
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import neox_lab as nl
from neox_lab.experiments import graph

sys.path.insert(0, str(Path(__file__).parent))
from caching import SHAPES, fresh
from devices import add_device, header, timed
from patching import METRIC, prompts


class OneByOne:
    """The definition, an edge at a time."""

    def __init__(self, model: Any, clean: Tensor, corrupted: Tensor) -> None:
        self.model, self.corrupted = model, corrupted
        self.writers = {node.name: node for node in graph.writers(model)}
        self.readers = {node.name: node for node in graph.readers(model)}
        hooks = list(dict.fromkeys(node.writing_hook for node in self.writers.values()))
        self.there = model.run_with_cache(clean, hooks)[1]
        self.here = model.run_with_cache(corrupted, hooks)[1]

    def run(self, edges: list[tuple[str, str]]) -> Tensor:
        """The metric with each edge patched, ``[edge]``."""
        return torch.stack([self.edge(*edge) for edge in edges])

    @torch.no_grad()
    def edge(self, writer: str, reader: str) -> Tensor:
        """The metric with one edge patched."""
        node, end = self.writers[writer], self.readers[reader]
        hook = node.writing_hook
        change = node.part_of(self.there[hook]) - node.part_of(self.here[hook])

        def add(tensor: Tensor, _: Any) -> None:
            end.part_of(tensor).add_(change)

        output = self.model.run_with_hooks(self.corrupted, [(end.reading_hook, add)])
        return METRIC(output.logits)


def compare(shape: str, options: argparse.Namespace) -> None:
    """Print one line."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    device = options.device
    model = fresh(*SHAPES[shape]).to(device)
    clean, corrupted = prompts(options.length, device)

    def sweep(senders: Any = "all") -> Any:
        return nl.patching.edge_sweep(model, clean, corrupted, METRIC, senders)

    sweep(["L0H0"])  # warms up
    one_by_one, few = OneByOne(model, clean, corrupted), options.sample // options.turns
    ours, theirs, differ, count = [], [], 0.0, 0
    for _ in range(options.turns):
        seconds, swept = timed(sweep, device, clock)
        ours.append(seconds)
        every = swept.values.isfinite().nonzero()
        count = len(every)
        some = every[torch.randperm(count)[:few]]
        writers, readers = swept.labels["writer"], swept.labels["reader"]
        names = [(writers[row], readers[column]) for row, column in some.tolist()]
        seconds, found = timed(lambda names=names: one_by_one.run(names), device, clock)
        theirs.append(seconds / len(names) * count)
        expected = swept.values[tuple(some.T)]
        differ = max(differ, float((found.to(expected.device) - expected).abs().max()))
    print(
        f"{shape:12} {count:6} {median(theirs):11.1f} {median(ours):8.2f} "
        f"{median(theirs) / median(ours):7.1f} {differ:9.1e}",
        flush=True,
    )


def main() -> None:
    """Measure some shapes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="*", default=["pythia-70m"], choices=list(SHAPES))
    parser.add_argument("--length", type=int, default=14)
    parser.add_argument("--sample", type=int, default=96, help="edges run one by one")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = "CPU seconds" if options.clock == "cpu" else "seconds"
    print(
        f"{header(options.device)}\n{options.length} tokens; medians of {seconds}\n"
        f"one by one: a random sample of {options.sample} edges, scaled up to all\n"
    )
    torch.manual_seed(0)
    print(f"{'shape':12} {'edges':>6} {'one by one':>11} {'ours':>8} {'ratio':>7} {'differ':>9}")
    for shape in options.shapes:
        compare(shape, options)


if __name__ == "__main__":
    main()
