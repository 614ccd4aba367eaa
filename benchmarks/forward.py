"""Time of a forward pass without hooks, neox_lab beside transformers.

    python benchmarks/forward.py [--quick] [--threads N] [--device cuda]

Both run the same random weights of the Pythia shapes in float32, transformers by its fastest path
(``sdpa``). The two take turns, so that whatever else the machine does hits both:

    4 x 128   logits of 4 texts of 128 tokens
    1 x 14    logits of one short prompt
    1 + 128   logits of one token after 128 tokens in the key-value cache

``ratio`` is the median, over turns, of our time divided by theirs; below 1 neox_lab is faster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

import neox_lab as nl

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, seconds

SHAPES = {"pythia-70m": (6, 512, 8), "pythia-160m": (12, 768, 12)}  # layers, d_model, heads
VOCAB = 50304
Runs = Iterator[float]
"""Seconds of one forward pass after another."""


def models(layers: int, d_model: int, heads: int) -> tuple[Any, Any]:
    """Transformers' model and ours, holding the same tensors."""
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
    weights = {k.replace("lm_head.", "embed_out."): v for k, v in theirs.state_dict().items()}
    with torch.device("meta"):
        ours = nl.GPTNeoXForCausalLM(nl.GPTNeoXConfig(**sizes)).eval()
    ours.load_state_dict(weights, assign=True)
    return theirs, ours


def texts(model: Any, ids: torch.Tensor) -> Runs:
    """Four texts at once, all logits."""
    while True:
        yield seconds(lambda: model(ids), str(ids.device))


def one_prompt(model: Any, ids: torch.Tensor) -> Runs:
    """A prompt of 14 tokens, all logits."""
    return texts(model, ids[:1, :14])


def one_token(model: Any, ids: torch.Tensor) -> Runs:
    """One token after a cache of 128, which is cut back to 128 between the runs."""
    cache = model(ids[:1]).past_key_values
    step = ids[1:2, :1]
    while True:
        yield seconds(lambda: model(step, past_key_values=cache), str(ids.device))
        cache.crop(-1)


def compare(theirs: Runs, ours: Runs, turns: int) -> tuple[float, float, float]:
    """Median seconds of theirs and of ours, and the median ratio of neighbouring runs."""
    for _ in range(3):
        next(theirs), next(ours)
    times = []
    for turn in range(turns):
        if turn % 2:
            first, second = next(theirs), next(ours)
        else:
            second, first = next(ours), next(theirs)
        times.append((first, second))
    return (
        median(first for first, _ in times),
        median(second for _, second in times),
        median(second / first for first, second in times),
    )


@torch.inference_mode()
def main() -> None:
    """Measure every shape and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller shape, a few turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device, f"transformers {transformers.__version__}", "float32; medians"))
    torch.manual_seed(0)
    ids = torch.randint(VOCAB, (4, 128)).to(options.device)
    print()
    print(f"{'shape':12} {'work':8} {'transformers':>13} {'neox_lab':>10} {'ratio':>6}")
    for name, shape in list(SHAPES.items())[: 1 if options.quick else None]:
        theirs, ours = (model.to(options.device) for model in models(*shape))
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)
        works = (("4 x 128", texts, 30), ("1 x 14", one_prompt, 100), ("1 + 128", one_token, 300))
        for work, runs, turns in works:
            turns = turns // 5 if options.quick else turns
            first, second, ratio = compare(runs(theirs, ids), runs(ours, ids), turns)
            print(f"{name:12} {work:8} {first * 1e3:10.1f} ms {second * 1e3:7.1f} ms {ratio:6.2f}")


if __name__ == "__main__":
    main()
