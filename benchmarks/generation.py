"""Tokens per second of greedy generation, neox_lab beside transformers.

    python benchmarks/generation.py [--quick] [--threads N] [--device cuda]

Both continue the same random tokens with the same random weights of the Pythia shapes, through
their own ``generate``, taking turns. On a CPU transformers runs in float32 and neox_lab in
float32 and bfloat16; on a GPU both run in float16 and bfloat16. The columns:

    speed-up    median, over turns, of transformers' time divided by ours
    bandwidth   bytes of weights read per second, as a share of what this machine can read when it
                does nothing else (adding up a large tensor, measured before every table)
    memory      on a GPU: peak of ours beside peak of transformers

The first turn of each side does not count: it warms up, and lays our weights out for decoding.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

import neox_lab as nl

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, is_gpu, seconds

SHAPES = {"pythia-70m": (6, 512, 8), "pythia-160m": (12, 768, 12)}  # layers, d_model, heads
VOCAB, PROMPT = 50304, 16


class Side(NamedTuple):
    """One of those that are compared."""

    name: str
    model: Any


def models(layers: int, d_model: int, heads: int) -> tuple[Any, Any]:
    """Transformers' model and ours, with equal weights."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * d_model,
    }
    config = transformers.GPTNeoXConfig(**sizes)
    config._attn_implementation = "sdpa"
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    ours = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes)).eval()
    weights = {k.replace("lm_head.", "embed_out."): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    return theirs, ours


def bytes_per_second(device: str) -> float:
    """How fast this machine reads memory: the best of several sums over 512 MB."""
    large = torch.ones(128 * 2**20, device=device)
    return large.nbytes / min(seconds(large.sum, device) for _ in range(10))


def bytes_per_token(model: Any) -> int:
    """What one step reads: every matrix once; of the embedding only a row."""
    linears = (m for m in model.modules() if isinstance(m, torch.nn.Linear))
    return sum(m.weight.nbytes for m in linears)


def continued(side: Side, ids: Tensor, new: int) -> Tensor:
    """``ids`` and ``new`` more tokens."""
    result: Tensor = side.model.generate(
        ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return result


def compare(sides: list[Side], ids: Tensor, new: int, turns: int) -> dict[str, list[float]]:
    """Seconds of each side in each turn, after one turn that does not count."""
    device = str(ids.device)
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for turn in range(turns + 1):
        for side in sides if turn % 2 else sides[::-1]:
            taken = seconds(lambda side=side: continued(side, ids, new), device)  # type: ignore[misc]
            if turn:
                times[side.name].append(taken)
    return times


def peak(side: Side, ids: Tensor, new: int) -> float:
    """Peak GPU memory of one run in GB, weights included."""
    if ids.device.type == "cpu":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    continued(side, ids, new)
    return torch.cuda.max_memory_allocated() / 1e9


def table(shape: str, sides: list[Side], batch: int, options: Any) -> None:
    """Measure one shape and batch size, and print its rows."""
    device = options.device
    bandwidth = bytes_per_second(device)
    ids = torch.randint(VOCAB, (batch, PROMPT), device=device)
    new = 8 if options.quick else 64
    times = compare(sides, ids, new, 3 if options.quick else 9)
    for side in sides:
        taken, first = times[side.name], times[sides[0].name]
        speed = new * batch / median(taken)
        gain = median(a / b for a, b in zip(first, taken, strict=True))
        share = bytes_per_token(side.model) * speed / batch / bandwidth
        print(
            f"{shape:12} {batch:5} {side.name:22} {speed:10.1f} {gain:8.2f}x {share:9.2f}"
            + (f" {peak(side, ids, new):8.2f} GB" if is_gpu(device) else ""),
            flush=True,
        )


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller shape, few turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device, f"transformers {transformers.__version__}"))
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    bandwidth = bytes_per_second(options.device)
    print(f"reads {bandwidth / 1e9:.1f} GB/s; greedy, {PROMPT} tokens of prompt; medians\n")
    print(f"{'shape':12} {'batch':>5} {'':22} {'tokens/s':>10} {'speed-up':>9} {'bandwidth':>9}")
    for name, shape in list(SHAPES.items())[: 1 if options.quick else None]:
        theirs, ours = models(*shape)
        if not is_gpu(options.device):
            half = copy.deepcopy(ours).bfloat16()
            sides = [
                Side("transformers float32", theirs),
                Side("neox_lab float32", ours),
                Side("neox_lab bfloat16", half),
            ]
            for batch in (1, 8):
                table(name, sides, batch, options)
            continue
        for dtype in (torch.float16, torch.bfloat16):
            word = str(dtype).removeprefix("torch.")
            pair = (("transformers", theirs), ("neox_lab", ours))
            sides = [Side(f"{n} {word}", m.to(options.device, dtype)) for n, m in pair]
            for batch in (1, 32):
                table(name, sides, batch, options)


if __name__ == "__main__":
    main()
