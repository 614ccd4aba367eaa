"""Copies of weights, laid out for reading them fast one token at a time.

Writing one token multiplies every weight matrix with one row, so the time goes into reading the
weights. ``nn.Linear`` keeps ``weight [out, in]`` with the numbers of one output side by side. On a
CPU two other layouts are read faster:

    Packed     the blocks that oneDNN takes; it would otherwise make them anew for every product.
               For bfloat16, and for float32 on processors where ``onednn_pays``.
    Columns    the numbers of one *input* side by side. The product is then a sum of stretches that
               are read from front to back. For float32 on all other processors.

Products with many rows lose nothing by either. Both are copies beside the weight: the parameter
itself, its strides, its storage and its flags stay what they are, and whoever saves, trains or
flattens the model after generating finds it as it was. The copies cost the memory of the weights
once more, and are left out where less than twice that is free; decoding then reads the weights as
they are, as it does on other devices and in other dtypes.

A copy must never say something else than its weight. ``Linear`` asks before every product whether
the weight has changed by what PyTorch counts (``is_current``), and before every text
``prepare_for_decoding`` compares the numbers themselves (``equals``), because writing through
``.data`` is not counted. (Between two tokens nobody looks at the numbers: what is written through
``.data`` then is seen by the next text.) That look takes the time of a token or two, so texts of a
few tokens do without copies where these gain little (``copies_pay``).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neox_lab.kernels.linear import Linear, onednn_pays


class DecodingCopy:
    """A weight ``[out, in]`` once more, and how to tell that it changed since.

    Attributes:
        pays_from: how many tokens have to be written before reading the copy saves more time than
            comparing it with the weight costs, which is that of one token or two.
    """

    pays_from: ClassVar[int] = 1

    def __init__(self, weight: Tensor) -> None:
        """Copy ``weight``, for which ``_can_be_copied`` holds."""
        self._matrix = self._laid_out(weight.detach())
        self._weight, self._version, self._place = weight, weight._version, weight.data_ptr()
        self._fingerprint = _fingerprint(weight)

    def _laid_out(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""
        raise NotImplementedError

    def is_current(self, weight: Tensor) -> bool:
        """Whether this is a copy of ``weight`` as it is now, by what PyTorch counts of changes."""
        return (
            weight is self._weight
            and weight._version == self._version
            and weight.data_ptr() == self._place
        )

    def equals(self, weight: Tensor) -> bool:
        """The same from the numbers themselves, which sees changes through ``.data`` too."""
        return self.is_current(weight) and torch.equal(_fingerprint(weight), self._fingerprint)


class Columns(DecodingCopy):
    """The numbers of one input side by side: a tenth faster, measured on an Intel Xeon."""

    pays_from = 16

    def _laid_out(self, weight: Tensor) -> Tensor:
        return weight.t().contiguous().t()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""
        return F.linear(x, self._matrix, bias)


class Packed(DecodingCopy):
    """oneDNN's blocks."""

    def _laid_out(self, weight: Tensor) -> Tensor:
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        # oneDNN chooses the blocks for a number of rows; those for 16 serve one row as well.
        blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
        return blocks

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product x Wᵀ + b, from ``[.., in]`` to ``[.., out]``."""
        product: Tensor = self._multiply(x, self._matrix, bias, "none", [], "")
        return product


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


def copies_pay(dtype: torch.dtype, new_tokens: int) -> bool:
    """Whether a text of so many new tokens is worth ``prepare_for_decoding`` and ``decoding``."""
    kind = fastest_layout(dtype)
    return kind is not None and new_tokens >= kind.pays_from


@torch.no_grad()
def prepare_for_decoding(modules: Iterable[nn.Module], free_bytes: int | None = None) -> None:
    """Give every ``Linear`` a copy of its weight, as the product with one row likes it here.

    The first time costs one copy of the weights, later calls a look at them. What is in training
    gets none, nor do linear maps of other classes, and nothing is kept where the copies that are
    missing would take more than half of the memory that is free.

    Args:
        modules: all modules of a model.
        free_bytes: memory that can still be had; None for no limit.
    """
    stale = []
    for module in modules:
        # Kinds of linear maps that others derived know best how their weights lie.
        if type(module) is not Linear:
            continue
        copy, kind = module.decoding_copy, _kind_of_copy(module)
        if kind is None or type(copy) is not kind or not copy.equals(module.weight):
            module.decoding_copy = None
            if kind is not None:
                stale.append((module, kind))
    if free_bytes is None or 2 * sum(module.weight.nbytes for module, _ in stale) <= free_bytes:
        for module, kind in stale:
            module.decoding_copy = kind(module.weight)


def _kind_of_copy(module: Linear) -> type[DecodingCopy] | None:
    """The layout for this module's weight; None if it is to be read as it is."""
    return (
        None
        if module.training or not _can_be_copied(module.weight)
        else fastest_layout(module.weight.dtype)
    )


def _can_be_copied(weight: Tensor) -> bool:
    """Whether changes of ``weight`` can be told: inference tensors do not count theirs.

    Its numbers are compared eight bytes at a time, so it must begin where eight bytes do; a slice
    of a flat vector of all parameters need not.
    """
    return (
        weight.device.type == "cpu"
        and weight.is_contiguous()
        and weight.shape[1] % 4 == 0
        and weight.storage_offset() * weight.itemsize % 8 == 0
        and not weight.is_inference()
    )


def fastest_layout(dtype: torch.dtype) -> type[DecodingCopy] | None:
    """The layout in which this processor reads weights of ``dtype`` fastest; None as they are.

    float16 products from columns are many times slower, bfloat16 ones somewhat.
    """
    if dtype == torch.float32:
        return Packed if onednn_pays() else Columns
    return Packed if dtype == torch.bfloat16 and _bfloat16_works() else None


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
