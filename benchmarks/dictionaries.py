"""Seconds of encoding with a TopK dictionary, ours beside the eager paths of sparsify and SAELens.

    python benchmarks/dictionaries.py [--quick] [--threads N] [--dictionary DIRECTORY_OR_HUB_ID]
                                      [--device cuda]

32,768 latents, d = 512, k = 32. The others' steps are written out here as they publish them:

    sparsify    linear, ReLU, topk(sorted=False)
    SAELens     linear, topk(sorted=False), ReLU, scattered into a dense matrix of zeros

Random weights are the least favourable: no feature stands out, so that many must be told apart. A
trained dictionary is read with --dictionary, and then gets activations of random directions. All
are timed in turns, in seconds of the processor, which other work on the machine changes less than
the clock; `in full` is the share of rows that screening could not decide.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import neox_lab as nl
from neox_lab.sae import screening
from neox_lab.sae.activations import TopK

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, seconds

D, LATENTS, K = 512, 32_768, 32


def sparsify(dictionary: nl.sae.Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """As in sparsify's ``fused_encoder`` without its kernel."""
    read = x - dictionary.b_dec if dictionary.subtracts_b_dec else x
    pre = F.linear(read, dictionary.encoder, dictionary.b_enc).relu()
    found = pre.topk(dictionary.activation.k, dim=-1, sorted=False)
    return found.values, found.indices


def sae_lens(dictionary: nl.sae.Dictionary, x: Tensor) -> Tensor:
    """As in SAELens's ``TopK``, whose codes are dense."""
    read = x - dictionary.b_dec if dictionary.subtracts_b_dec else x
    pre = F.linear(read, dictionary.encoder, dictionary.b_enc)
    found = pre.topk(dictionary.activation.k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter_(-1, found.indices, found.values.relu())


def random_dictionary() -> nl.sae.Dictionary:
    """Rows of norm 1 in random directions."""
    rows = F.normalize(torch.randn(LATENTS, D), dim=1)
    weights = nl.sae.Weights(rows.T, 0.1 * torch.randn(LATENTS), rows, 0.1 * torch.randn(D))
    return nl.sae.Dictionary(weights, TopK(K), site_in="x", subtracts_b_dec=True, kind="TopK")


@torch.no_grad()
def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows and turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dictionary", help="a trained one, as nl.sae.load takes it")
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device))
    torch.manual_seed(0)
    made = nl.sae.load(options.dictionary) if options.dictionary else random_dictionary()
    made = made.to(options.device)
    print(f"{made!r}; fast bfloat16 products: {screening.is_fast()}\n")
    print(f"{'rows':>6} {'sparsify s':>11} {'SAELens s':>10} {'ours s':>8} "
          f"{'by sparsify':>12} {'by SAELens':>11} {'error':>8} {'in full':>8}")  # fmt: skip
    for rows in (256, 512) if options.quick else (256, 1024, 4096):
        x = torch.randn(rows, made.d_in).to(options.device)
        runs = [
            lambda x=x: sparsify(made, x),
            lambda x=x: sae_lens(made, x),
            lambda x=x: made.encode(x),
        ]
        full, linear = [0], screening.linear

        def counted(read: Tensor, *rest: Tensor, full: list[int] = full) -> Tensor:
            full[0] += len(read)
            return linear(read, *rest)  # noqa: B023

        screening.linear = counted
        codes = made.encode(x)
        screening.linear = linear
        best = sparsify(made, x)[0].sort(dim=1, descending=True).values
        error = float((codes.values - best).abs().max() / best.max())
        for run in runs:
            run()
        turns = range(5 if options.quick else 9)
        clock = time.process_time
        times = [[seconds(run, options.device, clock) for run in runs] for _ in turns]
        theirs, lens, ours = (median(column) for column in zip(*times, strict=True))
        print(f"{rows:6} {theirs:11.3f} {lens:10.3f} {ours:8.3f} {theirs / ours:12.2f} "
              f"{lens / ours:11.2f} {error:8.0e} {full[0] / rows:8.1%}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
