"""Training of a tuned lens: a plain loop over layers, as published code has it, and ours.

Run: python benchmarks/tuned_lens.py [--layers N] [--d-model N] [--vocab N] [--length N]
     [--batch N] [--steps N] [--turns N] [--threads N] [--precision float32]
     [--device cuda]

The model has random weights. Both sides begin with the same translators, read the same documents in
the same order, ``--batch`` of ``--length`` tokens in each step and in one forward pass, and use the
same optimiser. The plain loop keeps the logits of all tokens, and for one layer after another
translates, unembeds, takes the log softmax, and goes backwards by autograd. In bfloat16, as
lenses were published, its lens runs under autocast, and ours multiplies with the unembedding in
bfloat16; ``--precision float32`` is the other. Both take turns, each in a process of its own:

    time      processor seconds of all steps, which other work on the machine disturbs less, ours
              over the plain loop's, of the fastest turns
    memory    largest memory above what was in use before training, ours over the plain loop's
    loss      of the last step, in bits, a mean over tokens and layers
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from devices import Peak, add_device, header
from devices import timed as clocked

SIZES = {"layers": 6, "d-model": 512, "vocab": 50304, "length": 256, "batch": 16, "steps": 2}


def plain(model: Any, ids: Any, steps: list[list[int]], precision: str) -> float:
    """The loss of the last step of the plain loop."""
    import torch

    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    norm, unembed = model.gpt_neox.final_layer_norm, model.embed_out
    translators = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(layers))
    translators.to(ids.device)
    for parameter in translators.parameters():
        torch.nn.init.zeros_(parameter)
    model.requires_grad_(False)
    parameters = list(translators.parameters())
    optimiser = torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / len(steps))
    total = 0.0
    for chosen in steps:
        with torch.no_grad():
            output = model(ids[chosen], output_hidden_states=True)
        final = output.logits.log_softmax(-1)
        total = 0.0
        for translator, stream in zip(translators, output.hidden_states[:-1], strict=True):
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                read = unembed(norm(stream + translator(stream))).log_softmax(-1)
                loss = (final.exp() * (final - read)).sum(-1).mean()
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return total / layers / math.log(2)


def timed(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds, peak memory and the last loss of one way."""
    import torch

    import neox_lab as nl
    from neox_lab.experiments.lens.tuned_training import Recipe, _parts, _plan, train

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        vocab_size=options.vocab,
        hidden_size=options.d_model,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        intermediate_size=4 * options.d_model,
    )
    model = nl.GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn_like(weight) * 0.05)
    model.to(options.device)
    ids = torch.randint(options.vocab, (3 * options.batch, options.length)).to(options.device)
    amount = options.batch * options.length
    recipe = Recipe(
        options.steps, amount, None, 0.1, 1e-3, 0.04, options.batch, 0, options.precision
    )
    kept, _ = _parts(len(ids), recipe)
    order = list(_plan([options.length] * len(kept), recipe))
    model(ids[:1, :8])  # what the first call makes
    sides = {
        "plain": lambda: plain(model, ids[kept], order, options.precision),
        "ours": lambda: train(model, ids.tolist(), recipe, None, False).losses[-1],
    }
    memory = Peak(options.device)
    seconds, loss = clocked(sides[way], options.device, time.process_time)
    return {"seconds": seconds, "peak": memory.nbytes(), "loss": loss}


def main() -> None:
    """Print a line for each way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {**SIZES, "turns": 2, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    add_device(parser)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(timed(options.only, options)))
        return
    print(header(options.device))
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(options.turns):
        for way, turns in found.items():
            command = [sys.executable, __file__, "--only", way, *sys.argv[1:]]
            turns.append(json.loads(subprocess.check_output(command)))
    best = {way: {n: min(t[n] for t in turns) for n in turns[0]} for way, turns in found.items()}
    for way, numbers in best.items():
        print(
            f"{way:5} {numbers['seconds']:7.2f} s   peak {numbers['peak'] / 1e6:7.0f} MB   "
            f"loss {numbers['loss']:.5f} bits"
        )
    time_ratio, memory_ratio = (best["ours"][n] / best["plain"][n] for n in ("seconds", "peak"))
    print(f"time {time_ratio:.3f} ({1 / time_ratio:.2f} times as fast)   memory {memory_ratio:.3f}")


if __name__ == "__main__":
    main()
