"""Training speed and memory: python benchmarks/training.py [--quick] [--device D].

Language-model training steps (forward, backward, clipping, AdamW) on random tokens, neox_lab's
``tasks.training.fit`` beside a plain torch loop around transformers' model (``sdpa``), equal
weights, float32, taking turns. ``ratio`` is the median, over turns, of our tokens a second divided
by theirs (above 1 we are faster); for memory it is our peak over theirs, each in a process of its
own, above what was in use when the model had been made and a tiny one had been trained (so that
modules imported on the way do not count).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

import neox_lab as nl
from neox_lab.data.batches import padded
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import fit

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header, seconds

# layers, d_model, heads, vocabulary, batch, pos
SHAPES = {"1m": (4, 128, 4, 2048, 16, 128), "pythia-70m": (6, 512, 8, 50304, 4, 128)}
STEPS = 4


def make(side: str, shape: tuple[int, ...]) -> Any:
    """A model with weights of the shape."""
    layers, d_model, heads, vocab, _, _ = shape
    sizes = {
        "vocab_size": vocab,
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * d_model,
        "pad_token_id": 1,
    }
    torch.manual_seed(0)
    if side == "neox_lab":
        return nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes))
    import transformers

    return transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(**sizes, attn_implementation="sdpa")
    )


def examples(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Random rows for one step's batches."""
    *_, vocab, batch, pos = shape
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocab, (batch * STEPS, pos), generator=generator).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def run(side: str, model: Any, rows: list[dict[str, Any]], shape: tuple[int, ...]) -> None:
    """Take ``STEPS`` steps."""
    batch = shape[4]
    if side == "neox_lab":
        settings = TrainingSettings(steps=STEPS, batch_size=batch, warm_up=0.0)
        fit(model, rows, lambda part: padded(part, 1), settings)
        return
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=5e-4)
    for step in range(STEPS):
        optimizer.zero_grad()  # before the forward pass, as Trainer does: the lower peak
        given = padded(rows[step * batch : step * batch + batch], 1)
        loss = model(**{name: tensor.to(model.device) for name, tensor in given.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def peak(side: str, name: str, threads: str, device: str) -> float:
    """Bytes above the model at the peak of a run."""
    torch.set_num_threads(int(threads))
    shape = SHAPES[name]
    tiny = (1, 128, 2, 512, 2, 64)  # large enough for every library that the whole one calls
    # What training imports is no one's memory.
    run(side, make(side, tiny).to(device), examples(tiny), tiny)
    model, rows = make(side, shape).to(device), examples(shape)
    memory = Peak(device)
    run(side, model, rows, shape)
    return float(memory.nbytes())


def compare(name: str, turns: int, options: argparse.Namespace) -> None:
    """Print one shape's rows."""
    shape = SHAPES[name]
    rows, sides = examples(shape), ("transformers", "neox_lab")
    device = options.device
    models = {side: make(side, shape).to(device) for side in sides}
    tokens = STEPS * shape[4] * shape[5]
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side in sides if turn % 2 else sides[::-1]:
            taken = seconds(lambda side=side: run(side, models[side], rows, shape), device)
            if turn:
                speeds[side].append(tokens / taken)
    theirs, ours = (median(speeds[side]) for side in sides)
    pairs = zip(speeds["transformers"], speeds["neox_lab"], strict=True)
    ratio = median(b / a for a, b in pairs)
    print(f"{name:12} {'tokens a second':18} {theirs:12.0f} {ours:12.0f} {ratio:7.2f}", flush=True)
    found = []
    for side in sides:
        command = [sys.executable, __file__, "peak", side, name, str(options.threads), device]
        # Large blocks go back to the system when freed, so that the peak is what was needed.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        found.append(json.loads(done.stdout.strip().rpartition("\n")[2]) / 1e6)
    print(
        f"{name:12} {'peak memory, MB':18} {found[0]:12.0f} {found[1]:12.0f} "
        f"{found[1] / found[0]:7.2f}",
        flush=True,
    )


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small shape, a few turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device, "float32; medians") + "\n")
    print(f"{'shape':12} {'':18} {'transformers':>12} {'neox_lab':>12} {'ratio':>7}")
    for name in list(SHAPES)[: 1 if options.quick else None]:
        compare(name, 4 if options.quick else 12, options)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    match sys.argv[1:]:
        case ["peak", side, name, threads, device]:
            print(json.dumps(peak(side, name, threads, device)))
        case _:
            main()
