"""What collecting costs beside a bare forward pass: python benchmarks/collecting.py [--device D].

    collect  texts of 16 to 128 tokens run through the network in batches of 32, as far as the last
             site, without a hook; beside the same batches with their activations written to files
    random   4096 rows of one site from all over these files, in a shuffled order

Random weights of Pythia-70m's shape, float32, one site or all layers. The two sides take
turns, so that whatever else the machine does hits both; ``ratio`` is the median, over turns, of
tokens per second of collecting divided by those of the bare pass: by the clock, which includes
waiting for the disk, and by processor time, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

import neox_lab as nl
from neox_lab.activations.documents import chunks, windows
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, wait

BATCH = 32
SITES = {"one site": ["blocks.5.hook_resid_post"], "resid_post of 6 layers": ["resid_post"]}


def build(device: str) -> nl.GPTNeoXForCausalLM:
    """Pythia-70m with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8}
    config = nl.GPTNeoXConfig(vocab_size=50304, intermediate_size=2048, **sizes)
    return nl.GPTNeoXForCausalLM(config).eval().to(device)


def documents(tokens: int) -> list[list[int]]:
    """Texts of unequal length."""
    generator = torch.Generator().manual_seed(0)
    rows: list[list[int]] = []
    while sum(map(len, rows)) < tokens:
        length = int(torch.randint(16, 129, (), generator=generator))
        rows.append(torch.randint(0, 50304, (length,), generator=generator).tolist())
    return rows


@torch.inference_mode()
def bare(model: nl.GPTNeoXForCausalLM, rows: list[list[int]], shard_tokens: int) -> None:
    """The same batches through the blocks alone, without hooks."""
    for window in windows(chunks(rows, 2048, None), shard_tokens):
        ids = [chunk.ids for chunk in window]
        for chosen in by_length(model, [len(row) for row in ids], BATCH):
            batch, _ = pad_rows([ids[row] for row in chosen], 0)
            model(batch.to(model.device), stop_at_layer=6)


def seconds(function: Callable[[], object], device: str) -> tuple[float, float]:
    """How long a call takes, by the clock and in processor time."""
    wait(device)
    start, used = time.perf_counter(), time.process_time()
    function()
    wait(device)
    return time.perf_counter() - start, time.process_time() - used


def measure(sites: list[str], dtype: str, options: argparse.Namespace) -> None:
    """One line of the report."""
    device = options.device
    model, rows = build(device), documents(options.tokens)
    read = sum(map(len, rows))
    with tempfile.TemporaryDirectory() as where:

        def collected(number: int) -> nl.activations.Stored:
            folder = Path(where) / str(number)
            return nl.activations.collect(
                model, rows, sites, folder, dtype=dtype, batch_size=BATCH, progress=False
            )

        stored = collected(-1)
        limit = stored.manifest.shard_tokens
        bare(model, rows, limit)
        ratios, rates = [], []
        for number in range(options.turns):
            plain = seconds(lambda: bare(model, rows, limit), device)
            ours = seconds(lambda n=number: collected(n), device)  # type: ignore[misc]
            ratios.append((plain[0] / ours[0], plain[1] / ours[1]))
            rates.append(read / ours[0])
        reads = [
            seconds(lambda b=batches: next(b), device)[0]  # type: ignore[misc]
            for batches in [stored.batches(stored.sites[0], 4096)]
            for _ in range(max(1, len(stored) // 4096))
        ]
    clock, processor = (median(side) for side in zip(*ratios, strict=True))
    print(
        f"  {dtype}: {median(rates):,.0f} tokens/s, ratio {clock:.3f}, in processor time "
        f"{processor:.3f}; 4096 random rows of {len(stored):,}: {1000 * median(reads):.1f} ms",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--turns", type=int, default=5)
    add_device(parser)
    options = parser.parse_args()
    print(header(options.device))
    for name, sites in SITES.items():
        print(name)
        for dtype in ("float32", "float16"):
            measure(sites, dtype, options)


if __name__ == "__main__":
    main()
