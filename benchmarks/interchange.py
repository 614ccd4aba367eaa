"""Training a DAS subspace beside pyvene: python benchmarks/interchange.py (pip install pyvene).

Random weights of the Pythia shapes, float32; pairs of random tokens; rank 16 at the residual stream
of the middle layer. Both take the same number of Adam steps on batches of the same size.
pyvene runs base and source whole in every step; ours runs both once and then only the layers above
the site, from its position on. What running them once takes counts as ours.

    theirs      seconds of pyvene's steps, medians of turns
    ours        seconds of nl.interchange.das without nulls, held-out pairs left out
    ratio       ours / theirs; the limit is 0.25
    differ      largest difference of the logits of one exchange along the same directions
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyvene
import torch
import transformers
from torch import Tensor

import neox_lab as nl
from neox_lab.interchange import Pairs, Site
from neox_lab.interchange.cached_runs import CachedRuns
from neox_lab.interchange.pairs import read_pairs
from neox_lab.interchange.subspaces import Rotation
from neox_lab.interchange.training import Settings, train

sys.path.insert(0, str(Path(__file__).parent))
from caching import SHAPES, VOCAB
from devices import add_device, header, seconds


class Pyvene:
    """Its low-rank rotation at one site, trained in a plain loop as its tutorials do."""

    def __init__(self, model: Any, layer: int, pos: int, rank: int) -> None:
        kind = pyvene.LowRankRotatedSpaceIntervention
        place = pyvene.RepresentationConfig(
            layer, "block_output", "pos", 1, low_rank_dimension=rank
        )
        self.run = pyvene.IntervenableModel(pyvene.IntervenableConfig([place], kind), model)
        self.run.set_device(model.device)
        self.run.disable_model_gradients()
        (self.rotation,) = self.run.interventions.values()
        self.pos = pos

    def logits(self, base: Tensor, source: Tensor) -> Tensor:
        """Of bases with the exchange, at their last token."""
        units = [[[self.pos]] * len(base)]
        where = {"sources->base": (units, units)}
        _, output = self.run({"input_ids": base}, [{"input_ids": source}], where)
        found: Tensor = output.logits[:, -1]
        return found

    def train(self, base: Tensor, source: Tensor, labels: Tensor, epochs: int, size: int) -> None:
        """Steps of Adam."""
        optimizer = torch.optim.Adam(self.rotation.parameters(), lr=1e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(base)).to(base.device).split(size):
                logits = self.logits(base[rows], source[rows])
                loss = torch.nn.functional.cross_entropy(logits, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def compare(options: argparse.Namespace, pos: int) -> None:
    """Print one line."""
    layers, width, heads = SHAPES[options.shape]
    config = transformers.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    theirs_model = transformers.GPTNeoXForCausalLM(config).eval().to(options.device)
    model = nl.from_transformers(theirs_model)
    base, source = torch.randint(0, VOCAB, (2, options.pairs, options.length)).to(options.device)
    labels = torch.randint(0, VOCAB, (2, options.pairs)).to(options.device)
    pairs = Pairs(base.tolist(), source.tolist(), labels[0].tolist(), labels[1].tolist())
    layer = layers // 2
    theirs = Pyvene(theirs_model, layer, pos, options.rank)
    read, site = read_pairs(model, pairs), Site(("resid_post", layer), pos)
    settings = Settings(options.epochs, options.batch_size, 1e-3, 0, False)

    def ours() -> None:
        runs = CachedRuns(model, read, site)
        subspace = Rotation(width, options.rank, torch.Generator().manual_seed(0))
        train(runs, read.labels, subspace, settings)

    differ = difference(theirs, model, read, site, base, source)
    times: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(options.turns):
        for name, work in (
            ("theirs", lambda: theirs.train(base, source, labels[1], *settings_of(options))),
            ("ours", ours),
        ):
            times[name].append(seconds(work, options.device, time.process_time))
    their, our = median(times["theirs"]), median(times["ours"])
    print(
        f"{options.shape:12} {pos:8} {their:8.2f} {our:8.2f} {our / their:7.3f} {differ:9.1e}",
        flush=True,
    )


def settings_of(options: argparse.Namespace) -> tuple[int, int]:
    """Epochs and pairs in a step."""
    return options.epochs, options.batch_size


@torch.no_grad()
def difference(
    theirs: Pyvene, model: Any, read: Any, site: Site, base: Tensor, source: Tensor
) -> float:
    """Between both libraries' logits of four pairs, exchanged along the same directions."""
    runs, rows = CachedRuns(model, read, site), torch.arange(4)
    subspace = Rotation(runs.width, theirs.rotation.rotate_layer.weight.shape[1], torch.Generator())
    subspace.free.copy_(theirs.rotation.rotate_layer.weight)
    differ = runs.logits(rows, subspace).to(base.device) - theirs.logits(base[:4], source[:4])
    return float(differ.abs().max())


def main() -> None:
    """Measure one shape at some positions."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="pythia-160m", choices=list(SHAPES))
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--positions", type=int, nargs="*", default=[15, 8, 0])
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device))
    torch.manual_seed(0)
    print(
        f"{options.pairs} pairs of {options.length} tokens, "
        f"{options.epochs} epochs, batches of {options.batch_size}, rank {options.rank}; medians "
        f"of {options.turns} turns in processor seconds\n"
    )
    print(f"{'shape':12} {'position':>8} {'theirs':>8} {'ours':>8} {'ratio':>7} {'differ':>9}")
    for pos in options.positions:
        compare(options, pos)


if __name__ == "__main__":
    main()
