"""Seconds of one product x Wᵀ + b, ours beside PyTorch's, at the sizes of the Pythia models.

    python benchmarks/products.py [--quick] [--threads N] [--device cuda]

``neox_lab.kernels.linear.linear`` chooses between ``F.linear`` and oneDNN. Both are timed in turns
with the same numbers; the columns give the median time of ours divided by that of ``F.linear``:

    forward     without gradients
    training    forwards and backwards, to x, W and b
    error       largest difference from the product in float64, divided by the largest value,
                ours and PyTorch's

Where ``linear`` takes ``F.linear`` itself, the ratio is 1 and the last line says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from neox_lab.kernels import linear as products

sys.path.insert(0, str(Path(__file__).parent))
from devices import add_device, header, seconds

SIZES = ((512, 512), (2048, 512), (512, 2048), (2304, 768), (3072, 768), (768, 3072), (50304, 768))
ROWS = (1, 14, 64, 512)
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def ratio(one: Callable[[], object], other: Callable[[], object], turns: int, device: str) -> float:
    """Median, over turns, of the time of ``one`` divided by that of ``other``."""
    one(), other()
    return median(seconds(one, device) / seconds(other, device) for _ in range(turns))


def training(product: Product, x: Tensor, weight: Tensor, bias: Tensor, above: Tensor) -> None:
    """Forwards and backwards, from a gradient ``above`` of the product."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    product(*leaves).backward(above)


def main() -> None:
    """Measure and print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    add_device(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.device) + "\n")
    torch.manual_seed(0)
    random = partial(torch.randn, device=options.device)
    print(f"{'rows':>5} {'out x in':>12} {'forward':>9} {'training':>9}   error")
    turns = 5 if options.quick else 31
    for rows in ROWS:
        for out, read in SIZES[: 3 if options.quick else None]:
            x, weight, bias = random(rows, read), random(out, read), random(out)
            above = random(rows, out)
            with torch.no_grad():
                forward = ratio(
                    lambda: products.linear(x, weight, bias),  # noqa: B023
                    lambda: F.linear(x, weight, bias),  # noqa: B023
                    turns,
                    options.device,
                )
                exact = F.linear(x.double(), weight.double(), bias.double())
                errors = [
                    float((product(x, weight, bias) - exact).abs().max() / exact.abs().max())
                    for product in (products.linear, F.linear)
                ]
            both = ratio(
                lambda: training(products.linear, x, weight, bias, above),  # noqa: B023
                lambda: training(F.linear, x, weight, bias, above),  # noqa: B023
                1 + turns // 4,
                options.device,
            )
            print(
                f"{rows:5} {f'{out} x {read}':>12} {forward:9.2f} {both:9.2f}"
                f"   {errors[0]:.0e} {errors[1]:.0e}",
                flush=True,
            )
    if options.device != "cpu" or not (products.onednn_pays() or products.few_rows_are_slow()):
        print("\noneDNN is not used for float32 here: both are the same product.")


if __name__ == "__main__":
    main()
