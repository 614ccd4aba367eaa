"""How weights lie in memory, for reading them fast one token at a time.

Writing one token multiplies every weight matrix with one row, so the time goes into reading the
weights. ``nn.Linear`` keeps ``weight [out, in]`` with the numbers of one output side by side. On a
CPU two other layouts are read faster:

    packed     a second copy in the blocks that oneDNN takes; it would otherwise make them anew for
               every product. For bfloat16, and for float32 where ``products.onednn_pays``. It
               costs the memory of the weights once more, and is left out where less than twice
               that is free.
    columns    float32 that is not packed: the numbers of one *input* side by side. The product is
               then a sum of stretches that are read from front to back. Shape, values, names and
               the parameter objects stay what they are; only strides change. No extra memory.

Products with many rows lose nothing by either. The copy serves only inside ``decoding()``, so that
whoever writes into weights sees the effect at once everywhere else.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neox_lab.kernels import linear as products
from neox_lab.kernels.linear import onednn_pays


class _Decoding(threading.local):
    """Whether this thread is inside ``decoding()``."""

    active = False


_DECODING = _Decoding()


@contextmanager
def decoding() -> Iterator[None]:
    """Let this thread multiply with packed weights, which ``for_decoding`` has just looked at."""
    before, _DECODING.active = _DECODING.active, True
    try:
        yield
    finally:
        _DECODING.active = before


class Linear(nn.Linear):
    """``nn.Linear`` by the faster product, and inside ``decoding()`` by a packed weight."""

    packed: Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""
        packed = self.packed if _DECODING.active else None
        if packed is None or x.dtype != self.weight.dtype or torch.is_grad_enabled():
            return products.linear(x, self.weight, self.bias)
        if not packed.is_of(self.weight):
            self.packed = None
            return products.linear(x, self.weight, self.bias)
        return packed.linear(x, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles of the module go without the packed weight."""
        return {name: value for name, value in self.__dict__.items() if name != "packed"}


class Packed:
    """The blocks of one weight ``[out, in]``, and how to tell that it changed since."""

    def __init__(self, weight: Tensor) -> None:
        """Pack ``weight``, which must lie row by row."""
        # oneDNN chooses the blocks for a number of rows; those for 16 serve one row as well.
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._weight, self._version, self._place = weight, weight._version, weight.data_ptr()
        self._fingerprint = _fingerprint(weight)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""
        product: Tensor = self._multiply(x, self._blocks, bias, "none", [], "")
        return product

    def is_of(self, weight: Tensor) -> bool:
        """Whether this is a copy of ``weight`` as it is now, by what PyTorch counts of changes."""
        return (
            weight is self._weight
            and weight._version == self._version
            and weight.data_ptr() == self._place
        )

    def equals(self, weight: Tensor) -> bool:
        """The same from the numbers themselves, which sees changes through ``.data`` too."""
        return self.is_of(weight) and torch.equal(_fingerprint(weight), self._fingerprint)


def _fingerprint(weight: Tensor) -> Tensor:
    """Sums of the bits of ``weight``, in one pass; two and four numbers are taken as one.

    They are counted into bins in turn, one by one. There are more bins than rows, and they have no
    divisor in common with the length of a row, so that no two rows fall into the same bins: what
    changes one place, or exchanges rows or columns, changes the sums.
    """
    bits = weight.detach().view(torch.int64)
    rows, columns = bits.shape
    bins = next(n for n in itertools.count(rows + 1) if math.gcd(n, columns) == 1)
    flat = bits.view(-1)
    whole = len(flat) // bins * bins
    return torch.cat((flat[:whole].view(-1, bins).sum(dim=0), flat[whole:]))


@torch.no_grad()
def for_decoding(model: nn.Module, free_bytes: int | None = None) -> None:
    """Lay the weights of all linear maps in ``model`` out as one-row products like them.

    The first time costs one copy of the weights, later calls a look at them. Weights that are
    also embeddings (tied) or belong to a model in training stay as they are; on other devices
    than the CPU, and in float16, all end up row by row.

    Args:
        model: whose modules to go through.
        free_bytes: memory that packed copies may take half of; None for no limit.
    """
    # Kinds of linear maps that others derived know best how their weights lie.
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.is_meta]
    ours = [m for m in linears if type(m) is Linear]
    if model.training:
        for module in ours:
            module.packed = None
        return
    _pack(ours, free_bytes)
    packed = {id(m.weight) for m in ours if m.packed is not None}
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for linear in linears:
        if type(linear) in (nn.Linear, Linear) and id(linear.weight) not in tied:
            _lay_out(linear.weight, packed=id(linear.weight) in packed)


def _pack(linears: list[Linear], free_bytes: int | None) -> None:
    """Renew the packed copies that are out of date, if there is memory for all of them."""
    stale = []
    for module in linears:
        if not _can_be_packed(module.weight):
            module.packed = None
        elif module.packed is None or not module.packed.equals(module.weight):
            module.packed = None
            stale.append(module)
    if free_bytes is None or 2 * sum(m.weight.nbytes for m in stale) <= free_bytes:
        for module in stale:
            _lay_out(module.weight, packed=True)
            module.packed = Packed(module.weight)


def _lay_out(weight: Tensor, packed: bool) -> None:
    # float16 products from columns are many times slower, bfloat16 ones somewhat.
    in_columns = weight.device.type == "cpu" and weight.dtype == torch.float32 and not packed
    transposed = weight.t()
    if in_columns and not transposed.is_contiguous():
        weight.data = transposed.contiguous().t()
    elif not in_columns and not weight.is_contiguous():
        weight.data = weight.contiguous()


def _can_be_packed(weight: Tensor) -> bool:
    fits = weight.device.type == "cpu" and weight.shape[1] % 4 == 0 and not weight.is_inference()
    if weight.dtype == torch.float32:
        return fits and onednn_pays()
    return fits and weight.dtype == torch.bfloat16 and _bfloat16_works()


@functools.cache
def _bfloat16_works() -> bool:
    """Whether this PyTorch and this processor have products with packed bfloat16 weights."""
    # No random numbers: this runs in the middle of somebody's seeded computation.
    numbers = torch.linspace(-1, 1, 33 * 64, dtype=torch.bfloat16, device="cpu")
    weight, x = numbers[: 32 * 64].view(32, 64).clone(), numbers[-64:].view(1, 64)
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        return torch.allclose(
            Packed(weight).linear(x, None), F.linear(x, weight), rtol=0.02, atol=0.1
        )
    except (AttributeError, RuntimeError):
        return False
