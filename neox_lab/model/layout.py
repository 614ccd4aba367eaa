"""How weights lie in memory, for reading them fast one token at a time.

Writing one token multiplies every weight matrix with one row, so the time goes into reading the
weights. ``nn.Linear`` keeps ``weight [out, in]`` with the numbers of one output side by side. A
CPU multiplies one row faster if those of one *input* lie side by side (column-major): the product
is then a sum of stretches that are read from front to back. Shape, values, names and the
parameter objects stay what they are; only strides change. Products with many rows do not care.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FASTER_IN_COLUMNS = (torch.float32, torch.bfloat16)
"""Dtypes with such a kernel; float16 products from columns are many times slower."""


@torch.no_grad()
def for_decoding(model: nn.Module) -> None:
    """Lay the weights of all ``nn.Linear`` in ``model`` out as one-row products like them.

    Costs one copy of a weight at a time the first time, and a look at the strides after that.
    Weights that are also embeddings (tied), are shared between processes, or belong to a model in
    training stay as they are; on other devices than the CPU, and in float16, all end up row by row.
    """
    if model.training:
        return
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if type(module) is nn.Linear and id(module.weight) not in tied:
            _lay_out(module.weight)


def _lay_out(weight: Tensor) -> None:
    if weight.is_meta:
        return
    in_columns = weight.device.type == "cpu" and weight.dtype in _FASTER_IN_COLUMNS
    transposed = weight.t()
    if in_columns and not transposed.is_contiguous():
        weight.data = transposed.contiguous().t()
    elif not in_columns and not weight.is_contiguous():
        weight.data = weight.contiguous()
