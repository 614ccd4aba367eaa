"""KL divergence of predictions from two streams, without a tensor over the vocabulary for each.

With ``x`` the stream after the final layer norm, ``U`` the unembedding (``[vocab, d_model]``) and
``A(x) = log sum exp(x U^T + b)``, what the model says is ``exp(x U^T + b - A(x))``, and

    KL(p || q) = A(x_q) - A(x_p) - (x_q - x_p) · m,    m = p U

so of ``p`` only ``A(x_p)`` and the mean unembedding vector ``m`` are needed, for all layers once;
and the derivative with respect to ``x_q`` is ``q U - m``. Logits are made for some tokens at a
time, in one piece of memory that is used again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE, LEAST = 2**22, 128
"""Logits that exist at one time (16 MiB), but so many rows at least."""


@dataclass(frozen=True)
class Said:
    """What is said after some tokens, as far as a divergence needs it.

    Attributes:
        x: the streams after the final layer norm ``[token, d_model]``.
        total: log of the sum of exponentials of the logits ``[token]``.
        mean: mean of the rows of the unembedding under the prediction ``[token, d_model]``.
    """

    x: Tensor
    total: Tensor
    mean: Tensor


@torch.no_grad()
def said(x: Tensor, unembed: Tensor, bias: Tensor | None) -> Said:
    """What the unembedding says of streams, a piece of the tokens at a time.

    Args:
        x: after the final layer norm, ``[token, d_model]``, float32 or float64.
        unembed: ``[vocab, d_model]``, in the dtype in which to multiply.
        bias: ``[vocab]``, or None.
    """
    x = x.detach()
    narrow = x.to(unembed.dtype)
    rows = max(1, min(len(x), max(LEAST, PIECE // len(unembed))))
    logits = narrow.new_empty(rows, len(unembed))
    total, mean = x.new_empty(len(x)), torch.empty_like(x)
    for first in range(0, len(x), rows):
        part = slice(first, min(first + rows, len(x)))
        piece = torch.mm(narrow[part], unembed.T, out=logits[: part.stop - first])
        if bias is not None:
            piece += bias
        most = piece.amax(dim=-1, keepdim=True)
        piece.sub_(most).exp_()
        sums = piece.sum(dim=-1, keepdim=True).to(x.dtype)
        total[part] = (most + sums.log())[:, 0]
        mean[part] = (piece @ unembed) / sums
    return Said(x, total, mean)


def divergence(final: Said, other: Said) -> Tensor:
    """KL(final || other) in nats, ``[token]``."""
    away = ((other.x - final.x) * final.mean).sum(dim=-1)
    return other.total - final.total - away


def slope(final: Said, other: Said) -> Tensor:
    """The derivative of ``divergence`` with respect to ``other.x``, ``[token, d_model]``."""
    return other.mean - final.mean
