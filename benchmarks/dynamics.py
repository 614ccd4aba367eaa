"""Time and memory of one measure at every revision, a plain loop and nl.dynamics.run.

Run: python benchmarks/dynamics.py [--layers N] [--d-model N] [--revisions N] [--turns N]
     [--device cuda]

Checkpoints with random weights are written once into a temporary directory. The loop loads one
after another and measures it; the run does the same and hashes files for the audit, writes a record
of each answer and reads ahead. Both take turns, each in a process of its own, after its imports:

    loop    seconds of loading and measuring, one after another
    run     seconds of nl.dynamics.run with a folder
    ratio   run / loop, of the fastest turns
    peak    largest memory above what was in use after the imports, beside one model's weights
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header, seconds

VOCAB, TOKENS = 8192, 256


def write(folder: Path, layers: int, d_model: int, count: int) -> None:
    """Write the checkpoints ``step0``, ``step1``, ..., with the built-in model's tokenizer."""
    import torch

    import neox_lab as nl

    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=8,
        intermediate_size=4 * d_model,
    )
    model, tokenizer = nl.GPTNeoXForCausalLM(config), nl.load().tokenizer
    for step in range(count):
        with torch.no_grad():
            model.gpt_neox.embed_in.weight += 0.1
        model.save_pretrained(folder / f"step{step}")
        tokenizer.save_pretrained(folder / f"step{step}")


def timed(way: str, folder: Path, device: str) -> dict[str, float]:
    """Seconds and peak memory of one way."""
    import torch

    import neox_lab as nl

    torch.set_num_threads(1)
    ids = torch.arange(TOKENS * 4).reshape(4, TOKENS).to(device)

    @torch.inference_mode()
    def measure(model: nl.GPTNeoXForCausalLM) -> float:
        return float(model(ids, labels=ids).loss)

    def loop() -> None:
        for path in sorted(folder.iterdir()):
            measure(nl.load(path, device=device))

    def run() -> None:
        with tempfile.TemporaryDirectory() as to:
            nl.dynamics.run(measure, folder, "all", to=to, device=device, progress=False)

    nl.dynamics.run(measure, steps=[0], device=device, progress=False)  # imports
    memory = Peak(device)
    taken = seconds(loop if way == "loop" else run, device)
    return {"seconds": taken, "peak": memory.nbytes()}


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 6), ("d-model", 512), ("revisions", 8), ("turns", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    add_device(parser)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(timed(options.only[0], Path(options.only[1]), options.device)))
        return
    print(header(options.device))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, options.layers, options.d_model, options.revisions)
        weights = next(folder.iterdir()).joinpath("model.safetensors").stat().st_size
        found: dict[str, list[dict[str, float]]] = {"loop": [], "run": []}
        for _ in range(options.turns):
            for way, turns in found.items():
                command = [sys.executable, __file__, "--only", way, place]
                command += ["--device", options.device]
                turns.append(json.loads(subprocess.check_output(command)))
    best = {way: min(turn["seconds"] for turn in turns) for way, turns in found.items()}
    for way, turns in found.items():
        peak = min(turn["peak"] for turn in turns)
        print(f"{way:5} {best[way]:7.2f} s   peak {peak / 1e6:6.0f} MB", flush=True)
    print(f"ratio {best['run'] / best['loop']:.3f}   one model's weights {weights / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
