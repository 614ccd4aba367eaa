"""Activation patching beside TransformerLens's bridge: python benchmarks/patching.py.

Random weights of the Pythia shapes, float32, the same checkpoint on both sides. Prompts of 14 and
of 64 random tokens; clean and corrupted differ in the token a quarter of the way in. The metric is
the difference of two logits at the last position.

    cells     numbers in the result
    theirs    seconds TransformerLens's own function takes. It runs the model once for each cell, so
              a sample of cells drawn at random is timed and scaled up, unless --full is given. Its
              clean run is not counted.
    ours      seconds of nl.patching.sweep, both plain runs included
    speed-up  theirs / ours
    differ    largest difference between both results, over the cells timed
    GFLOP     floating-point operations in the matrix products and attention of our sweep
    of rate   those per second, divided by the machine's: the best of torch.mm and of
              neox_lab.kernels.linear.linear on 2048 x 2048 matrices, measured beside it
    peak MB   memory above the loaded model at the highest point of our sweep, in a process of its
              own

Both sides take turns: four, or as few as take us a minute. ``--clock cpu`` counts the process's CPU
seconds instead of seconds, for machines that others use too; it needs ``--threads 1``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean as mean
from statistics import median
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # theirs shows a bar for every sweep

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count, shape_wrapper

import neox_lab as nl
from neox_lab.kernels.linear import linear

sys.path.insert(0, str(Path(__file__).parent))
from caching import SHAPES, VOCAB, fresh, load, write_checkpoint
from devices import Peak, add_device, header, timed

TARGETS = {14: (20, 8), 64: (6, 3)}  # tokens: geometric mean, and no site under
CORRECT, WRONG = 17, 4000
SITES = {  # ours, theirs
    "resid_pre": "resid_pre",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "z": "attn_head_out_by_pos",
    "z_all_pos": "attn_head_out_all_pos",
    "pattern_all_pos": "attn_head_pattern_all_pos",
}
METRIC = nl.patching.logit_difference(CORRECT, WRONG)


def their_metric(logits: Tensor) -> Tensor:
    """The same difference, from all logits."""
    return (logits[:, -1, CORRECT] - logits[:, -1, WRONG]).mean()


def prompts(length: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Clean and corrupted ids ``[1, pos]``."""
    clean = torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
    corrupted = clean.clone()
    corrupted[0, length // 4] = (clean[0, length // 4] + 1) % VOCAB
    return clean.to(device), corrupted.to(device)


class Theirs:
    """One of TransformerLens's sweeps, a sample of its cells at a time."""

    def __init__(
        self, bridge: Any, length: int, site: str, shape: tuple[int, ...], device: str
    ) -> None:
        import pandas as pd
        from transformer_lens import patching

        self.patching, self.bridge = patching, bridge
        clean, self.corrupted = prompts(length, device)
        with torch.no_grad():
            _, self.cache = bridge.run_with_cache(clean)
        self.function = getattr(patching, f"get_act_patch_{SITES[site]}")
        axes = ("layer", "pos", "head") if len(shape) == 3 else ("layer", "pos")
        axes = ("layer", "head") if site.endswith("all_pos") else axes
        every = torch.cartesian_prod(*(torch.arange(size) for size in shape))
        self.cells = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(1))]
        self.frame = lambda cells: pd.DataFrame(cells.numpy(), columns=list(axes))

    def run(self, cells: Tensor | None) -> Tensor:
        """The values of some cells ``[cell, axis]``; of all if None."""
        with torch.no_grad():
            arguments = (self.bridge, self.corrupted, self.cache, their_metric)
            if cells is None:
                return self.function(*arguments)
            found = self.patching.generic_activation_patch(
                *arguments,
                patch_setter=self.function.keywords["patch_setter"],
                activation_name=self.function.keywords["activation_name"],
                index_df=self.frame(cells),
            )
            return torch.as_tensor(found)


def rate(device: str, clock: Callable[[], float]) -> float:
    """Floating-point operations a second in a large matrix product, by the faster library."""
    x, w = torch.randn(2, 2048, 2048, device=device)
    with torch.no_grad():
        times = [timed(lambda by=by: by(x, w), device, clock)[0] for by in (torch.mm, linear) * 4]
    return 2 * x.numel() * len(w) / min(times)


def count_operations(run: Callable[[], Any]) -> tuple[int, Any]:
    """Floating-point operations in the products and the attention of a call, and its result."""

    def of_product(x: Any, weight: Any, *_: Any, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    def of_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(q, k, v)

    unknown = {
        torch.ops.mkldnn._linear_pointwise: of_product,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: of_attention,
    }
    with Operations(unknown) as counter:
        found = run()
    return counter.total, found


class Operations(TorchDispatchMode):
    """Adds up floating-point operations as ``FlopCounterMode`` does, but without hooks on modules.

    Those would be in the way of a sweep, which takes blocks apart.
    """

    def __init__(self, more: dict[Any, Callable[..., int]]) -> None:
        super().__init__()
        self.total = 0
        self.formulas = flop_registry | {kind: shape_wrapper(f) for kind, f in more.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and add what it takes."""
        kwargs = kwargs or {}
        formula = self.formulas.get(func._overloadpacket)
        if formula is None:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        found = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=found)
        return found


def peaks(shape: str, length: int, sites: list[str], device: str) -> dict[str, float]:
    """For each site, megabytes above what was there before at the highest point of a sweep."""
    model = fresh(*SHAPES[shape]).to(device)
    clean, corrupted = prompts(length, device)
    found = {}
    nl.patching.sweep(model, clean, corrupted, METRIC, progress=False)
    for site in sites:
        gc.collect()
        memory = Peak(device)
        nl.patching.sweep(model, clean, corrupted, METRIC, site, progress=False)
        found[site] = memory.nbytes() / 1e6
    return found


def peaks_elsewhere(shape: str, length: int, options: Any) -> dict[str, float]:
    """``peaks`` in a process of its own, in which freed memory goes back to the system."""
    command = [sys.executable, __file__, "peaks", shape, str(length)]
    command += [str(options.threads), options.device, *options.sites]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def compare(
    model: Any, bridge: Any, length: int, site: str, memory: float, options: Any
) -> tuple[float, float]:
    """Print one line; return the speed-up, NaN without TransformerLens, and our share of rate."""
    device = options.device
    clean, corrupted = prompts(length, device)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter

    def sweep() -> Any:
        return nl.patching.sweep(model, clean, corrupted, METRIC, site, progress=False)

    warming, (flops, result) = timed(lambda: count_operations(sweep), device)
    values = result.values
    theirs = None if bridge is None else Theirs(bridge, length, site, tuple(values.shape), device)
    turns = max(1, min(options.turns, int(60 / warming)))
    few = max(2, math.ceil(options.sample / turns))
    ours_seconds, their_seconds, rates, differ = [], [], [], 0.0
    for turn in range(turns):
        rates.append(rate(device, clock))
        ours_seconds.append(timed(sweep, device, clock)[0])
        cells = None if options.full or theirs is None else theirs.cells[turn * few :][:few]
        if theirs is None or (options.full and turn) or (cells is not None and not len(cells)):
            continue
        theirs.run(theirs.cells[:1])
        seconds, found = timed(lambda cells=cells: theirs.run(cells), device, clock)
        expected = values if cells is None else values[tuple(cells.unbind(1))]
        their_seconds.append(seconds / expected.numel() * values.numel())
        found = found.to(expected.device).reshape(expected.shape)
        differ = max(differ, float((found - expected).abs().max()))
    ours = median(ours_seconds)
    other = median(their_seconds) if their_seconds else math.nan
    share = flops / ours / median(rates)
    print(
        f"{site:16} {values.numel():6} {other:9.2f} {ours:8.3f} {other / ours:9.1f} {differ:9.1e} "
        f"{flops / 1e9:8.1f} {share:8.2f} {memory:8.0f}",
        flush=True,
    )
    return other / ours, share


def main() -> None:
    """Measure every shape, length and site."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--lengths", nargs="*", type=int, default=list(TARGETS))
    parser.add_argument("--sites", nargs="*", default=list(SITES), choices=list(SITES))
    parser.add_argument("--full", action="store_true", help="run all of their cells")
    parser.add_argument("--sample", type=int, default=24, help="their cells timed for each site")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--alone", action="store_true", help="without TransformerLens")
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds = "CPU seconds" if options.clock == "cpu" else "seconds"
    print(header(options.device, f"{seconds}; medians of turns"))
    torch.manual_seed(0)
    there = importlib.util.find_spec("transformer_lens") is not None and not options.alone
    sampled = f"a random sample of {options.sample} cells of each sweep, scaled up to all"
    sampled = "all cells" if options.full else sampled
    print(f"theirs: {sampled if there else 'transformer_lens is not used: not compared'}")
    results: dict[int, list[tuple[float, float]]] = {}
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as directory:
            model, bridge = fresh(*SHAPES[shape]).to(options.device), None
            if there:
                write_checkpoint(model, directory)
                bridge = load("TransformerLens", directory, options.device)
        for length in options.lengths:
            print(f"\n{shape}, {length} tokens")
            print(
                f"{'site':16} {'cells':>6} {'theirs':>9} {'ours':>8} {'speed-up':>9} "
                f"{'differ':>9} {'GFLOP':>8} {'of rate':>8} {'peak MB':>8}"
            )
            memory = peaks_elsewhere(shape, length, options)
            for site in options.sites:
                found = compare(model, bridge, length, site, memory[site], options)
                results.setdefault(length, []).append(found)
    print()
    for length, rows in results.items():
        ratios, shares = [row[0] for row in rows], [row[1] for row in rows]
        mark = TARGETS.get(length)
        wanted = "" if mark is None else f" (wanted: {mark[0]} and {mark[1]})"
        print(
            f"{length} tokens: speed-up, geometric mean {mean(ratios):.1f}, least "
            f"{min(ratios):.1f}{wanted}; share of rate, geometric mean {mean(shares):.2f}"
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["peaks", shape, length, threads, device, *sites]:
            torch.set_num_threads(int(threads))
            print(json.dumps(peaks(shape, int(length), sites, device)))
        case _:
            main()
