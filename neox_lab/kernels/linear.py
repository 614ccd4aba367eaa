"""The product x Wᵀ + b, by whichever library of PyTorch's is faster on this processor.

``linear`` is the product, ``Linear`` the module with the weights.

On a CPU ``F.linear`` calls a BLAS, and PyTorch's own builds for x86 bring Intel's MKL. On AMD
processors MKL leaves half of the vector width unused. oneDNN, which the same builds bring for
bfloat16, uses all of it: float32 products of 14 rows and more take 0.45 to 0.6 of the time on one
such processor and 0.6 to 1 of it on a later one (the measurement is ``benchmarks/products.py``). So
``linear`` gives float32 products of some size to oneDNN there, forwards and backwards, and
everything else to ``F.linear``.

On Intel processors with AMX the two are alike, but for the length of one short prompt: from 7 to 15
rows MKL reads a large weight several times, so that 15 rows take longer than 16. These products go
to oneDNN, which takes 0.5 to 1 of the time (unembedding 0.3 to 0.5).

Both round in float32 and differ in the order in which they add: at 3072 terms by about 1e-6 of the
largest value. Which of the two is taken depends on shapes and the processor only, never on a
timing, so equal runs stay equal.

Inside ``decoding()`` a ``Linear`` may multiply with a second copy of its weight, which lies in
memory as products with one row like it. ``decoding_layout`` makes these copies; this module only
asks whether the one it was given still holds what the weight holds.
"""

from __future__ import annotations

import functools
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

# Below this many multiplications the call into oneDNN costs more than it saves.
SMALLEST = 2**20

# Where MKL reads weights several times: so many rows, and weights of so many numbers at least.
FEW_ROWS = range(7, 16)
LARGE_WEIGHT = 3 * 2**18


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product x Wᵀ + b, as ``F.linear`` computes it, gradients included.

    Args:
        x: rows ``[.., in]``.
        weight: ``[out, in]``, lying in memory in either order.
        bias: ``[out]`` or None.

    Returns:
        ``[.., out]``.
    """
    if not _suits(x, weight) or not _reads(bias, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        product: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _multiply(x, weight, bias)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return product


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes this product and gains by it."""
    return (
        # What torch.export records is no plain tensor, and its sizes must decide nothing.
        type(x) is Tensor
        and x.dtype == weight.dtype == torch.float32
        and weight.dim() == 2
        and x.numel() * weight.shape[0] >= SMALLEST
        # A slice, as one head's part of a weight, takes oneDNN a thousand times longer:
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        # Transformations that know F.linear but not our product:
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and (onednn_pays() or _is_read_several_times(x, weight))
    )


def _reads(bias: Tensor | None, weight: Tensor) -> bool:
    """Whether oneDNN adds this bias as it lies.

    It takes ``[out]`` numbers side by side, whatever the strides say: of a slice, or of one number
    expanded, it would add others that lie there, without an error.
    """
    return bias is None or (
        bias.shape == weight.shape[:1] and bias.dtype == weight.dtype and bias.is_contiguous()
    )


def _is_read_several_times(x: Tensor, weight: Tensor) -> bool:
    """Whether MKL would read the weight again for every few rows of x, and oneDNN does not."""
    return (
        few_rows_are_slow()
        and weight.numel() >= LARGE_WEIGHT
        and x.numel() // weight.shape[1] in FEW_ROWS
        and weight.is_contiguous()
    )


class WeightCopy(Protocol):
    """A weight ``[out, in]`` once more, in another layout."""

    def is_current(self, weight: Tensor) -> bool:
        """Whether ``weight`` was not changed since, by what PyTorch counts of changes."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""


class _Decoding(threading.local):
    """Whether this thread is inside ``decoding()``."""

    active = False


_DECODING = _Decoding()


@contextmanager
def decoding() -> Iterator[None]:
    """Let this thread multiply with the copies of weights, which somebody has just looked at.

    Outside, whoever writes into a weight, in whatever way, sees the effect at once.
    """
    before, _DECODING.active = _DECODING.active, True
    try:
        yield
    finally:
        _DECODING.active = before


class Linear(nn.Linear):
    """``nn.Linear`` by the faster product, and inside ``decoding()`` by a copy of its weight.

    Attributes:
        decoding_copy: the weight once more, in the layout that decoding likes; None without one.
            It is no part of the model: it is in no state dictionary, pickle or copy, and training,
            moving or converting the module drops it.
    """

    decoding_copy: WeightCopy | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""
        weight = self.weight
        copy = self.decoding_copy if _DECODING.active else None
        if copy is None or x.dtype != weight.dtype or torch.is_grad_enabled():
            return linear(x, weight, self.bias)
        if not copy.is_current(weight):
            self.decoding_copy = copy = None
        if copy is None or not _reads(self.bias, weight):
            return linear(x, weight, self.bias)
        return copy.linear(x, self.bias)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which the weight will change."""
        if mode:
            self.decoding_copy = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # What .to(), .half(), .cuda() and the like come down to.
        self.decoding_copy = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of the module go without the copy of the weight."""
        return {name: value for name, value in self.__dict__.items() if name != "decoding_copy"}


class _Product(torch.autograd.Function):
    """oneDNN's product with its gradients, which are products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The product, and what its gradients need."""
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """From ∂L/∂out ``[.., out]`` to those of x, W and b."""
        x, weight = ctx.saved_tensors
        above = gradients[0]
        for_x = for_weight = for_bias = None
        if weight is not None:
            for_x = linear(above, weight.t())
        rows = above.reshape(-1, above.shape[-1])
        if x is not None:
            read = x.reshape(-1, x.shape[-1])
            # oneDNN lays its second factor out anew, and does that best with the larger one. But
            # PyTorch copies a gradient that lies otherwise than its weight: many rows are worth it.
            if rows.shape[1] > read.shape[1] < read.shape[0]:
                for_weight = linear(read.t(), rows.t()).t()
            else:
                for_weight = linear(rows.t(), read.t())
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(dim=0)
        return for_x, for_weight, for_bias


@functools.cache
def onednn_pays() -> bool:
    """Whether float32 products are worth giving to oneDNN here: AMD with 512-bit vectors."""
    return "AMD" in _processor() and _has_onednn()


@functools.cache
def few_rows_are_slow() -> bool:
    """Whether float32 products of a few rows are worth giving to oneDNN here: Intel with AMX."""
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return has_amx is not None and has_amx() and "Intel" in _processor() and _has_onednn()


def _has_onednn() -> bool:
    """Whether PyTorch runs with 512-bit vectors, and oneDNN multiplies as it should."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    # No random numbers: this runs in the middle of somebody's seeded computation.
    numbers = torch.linspace(-1, 1, 66 * 33, dtype=torch.float32, device="cpu").sin()
    weight, x, bias = numbers[: 65 * 33].view(65, 33), numbers[-33:].view(1, 33), numbers[:65]
    try:
        return torch.allclose(_multiply(x, weight, bias), F.linear(x, weight, bias), atol=1e-4)
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN, or with another call
        return False


def _processor() -> str:
    """What the operating system calls the processor, with its maker."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return platform.processor()
