"""Time and memory to load a checkpoint, neox_lab beside transformers.

Run: python benchmarks/loading.py [--shapes NAME ...] [--device cuda]

Checkpoints of the Pythia shapes with random weights are written once by transformers into a
temporary directory. Each load then runs in a process of its own, after its imports:

    load   seconds until from_pretrained returns, and on a GPU until the model is there
    read   the same plus reading every weight once (mapped files are only read when used)
    peak   largest memory after that, above what was in use after the imports; pages of mapped
           files count; on a GPU, of the GPU
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header, wait

SHAPES = {"pythia-70m": (6, 512, 8), "pythia-160m": (12, 768, 12)}  # layers, d_model, heads
CASES = (("float32", "float32"), ("float16", "float32"), ("float16", "float16"))  # file, model
LIBRARIES = ("transformers", "neox_lab")


def write(directory: str, layers: int, d_model: int, heads: int) -> None:
    """Write one shape under ``directory``, once in each dtype of a file."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * d_model,
    )
    model = GPTNeoXForCausalLM(config)
    for name in ("float32", "float16"):
        model.to(getattr(torch, name)).save_pretrained(Path(directory, name))


def measure(library: str, directory: str, dtype: str, device: str) -> dict[str, float]:
    """Load one checkpoint; ``{"load": s, "read": s, "peak": bytes, "weights": bytes}``."""
    import torch

    torch.set_num_threads(2)
    if library == "transformers":
        from transformers import GPTNeoXForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
    else:
        from neox_lab import GPTNeoXForCausalLM

    torch.zeros(1, device=device)  # a GPU is started
    memory = Peak(device)
    start = time.perf_counter()
    model = GPTNeoXForCausalLM.from_pretrained(directory, dtype=dtype).to(device)
    wait(device)
    load = time.perf_counter() - start
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1).max()
    wait(device)
    read = time.perf_counter() - start
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return {"load": load, "read": read, "peak": memory.nbytes(), "weights": weights}


def run(*arguments: str) -> str:
    """Run a function of this file in a process of its own; returns what it printed last."""
    command = [sys.executable, __file__, *arguments]
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout.strip().rpartition("\n")[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    add_device(parser)
    options = parser.parse_args()
    print(header(options.device))
    columns = "shape", "file -> model", "library", "load s", "read s", "peak MB", "peak/weights"
    print("{:12} {:19} {:13} {:>7} {:>7} {:>8} {:>13}".format(*columns))
    with tempfile.TemporaryDirectory() as directory:
        for shape in options.shapes:
            sizes, folder = SHAPES[shape], Path(directory, shape)
            run("write", str(folder), *map(str, sizes))
            for stored, wanted in CASES:
                results = {}
                for library in LIBRARIES:
                    stored_in = str(folder / stored)
                    answer = run("measure", library, stored_in, wanted, options.device)
                    results[library] = one = json.loads(answer)
                    print(
                        f"{shape:12} {stored + ' -> ' + wanted:19} {library:13} "
                        f"{one['load']:7.3f} {one['read']:7.3f} {one['peak'] / 1e6:8.0f} "
                        f"{one['peak'] / one['weights']:13.2f}"
                    )
                theirs, ours = (results[library] for library in LIBRARIES)
                faster = " and ".join(
                    f"{theirs[what] / ours[what]:.1f}x ({what})" for what in ("load", "read")
                )
                memory = ours["peak"] / theirs["peak"]
                print(f"{'':32} neox_lab is {faster} as fast, with {memory:.2f} of the memory")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", directory, *sizes]:
            write(directory, *map(int, sizes))
        case ["measure", library, directory, dtype, device]:
            print(json.dumps(measure(library, directory, dtype, device)))
        case _:
            main()
