"""Products with sparse codes that have gradients, without a dense matrix of codes' gradients.

    values = selected(pre, read, encoder, b_enc, chosen)       the pre-activations that were chosen
    written = summed(values, W_dec, chosen)                    values * W_dec[latent], summed by row

Dense autograd would multiply ``[row, latent]`` matrices five times a step, of which all but k of
each row are zeros; here two of the five are left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """The active places of a matrix ``[row, latent]``, in the order of its rows.

    Attributes:
        rows: ``[active]``, ascending.
        latents: ``[active]``.
        shape: of the matrix.
    """

    rows: Tensor
    latents: Tensor
    shape: tuple[int, int]

    @property
    def flat(self) -> Tensor:
        """Places in the flattened matrix ``[active]``."""
        return self.rows * self.shape[1] + self.latents


def top_k(pre: Tensor, k: int) -> Chosen:
    """The k largest of each row, negative ones included, as all rows have k."""
    k = min(k, pre.shape[1])
    latents = pre.topk(k, dim=1).indices
    rows = torch.arange(len(pre), device=pre.device).repeat_interleave(k)
    return Chosen(rows, latents.flatten(), (pre.shape[0], pre.shape[1]))


def batch_top_k(pre: Tensor, k: int) -> Chosen:
    """The largest of the whole batch, k for each row on average; only positive ones.

    A place among them is among the 8 k largest of its row, or else its row alone is looked through.
    """
    wanted = min(k * len(pre), pre.numel())
    width = min(8 * k, pre.shape[1])
    values, latents = pre.topk(width, dim=1)
    least = values.flatten().topk(min(wanted, values.numel())).values[-1]
    if bool((values[:, -1] > least).any()):  # a row may have more than were looked at
        flat = pre.flatten().topk(wanted).indices
        flat = flat[pre.flatten()[flat] > 0]
    else:
        kept = values.flatten().topk(min(wanted, values.numel())).indices
        kept = kept[values.flatten()[kept] > 0]
        flat = (kept // width) * pre.shape[1] + latents.flatten()[kept]
    flat = flat.sort().values
    return Chosen(flat // pre.shape[1], flat % pre.shape[1], (pre.shape[0], pre.shape[1]))


def selected(pre: Tensor, read: Tensor, encoder: Tensor, b_enc: Tensor, chosen: Chosen) -> Tensor:
    """The chosen entries ``[active]`` of ``read @ encoder.T + b_enc``.

    Args:
        pre: that product, computed without gradient, ``[row, latent]``.
        read: ``[row, d_in]``.
        encoder: ``[latent, d_in]``.
        b_enc: ``[latent]``.
        chosen: which.
    """
    return _Selected.apply(pre, read, encoder, b_enc, chosen)  # type: ignore[no-untyped-call]


def summed(values: Tensor, W_dec: Tensor, chosen: Chosen) -> Tensor:  # noqa: N803
    """Rows of ``W_dec`` times their values, summed for each row, ``[row, d_out]``."""
    return _Summed.apply(values, W_dec, chosen)  # type: ignore[no-untyped-call]


class _Selected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pre: Tensor,
        read: Tensor,
        encoder: Tensor,
        b_enc: Tensor,
        chosen: Chosen,
    ) -> Tensor:
        ctx.save_for_backward(read, encoder)
        ctx.chosen = chosen
        return pre.flatten()[chosen.flat]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        read, encoder = ctx.saved_tensors
        chosen: Chosen = ctx.chosen
        to_read = _by_row(gradient, encoder, chosen) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(encoder[:, 0]).index_add_(0, chosen.latents, gradient)
        return None, to_read, _by_latent(gradient, read, chosen), to_bias, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, chosen: Chosen) -> Tensor:  # noqa: N803
        ctx.save_for_backward(values, W_dec)
        ctx.chosen = chosen
        return _by_row(values, W_dec, chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        values, W_dec = ctx.saved_tensors  # noqa: N806
        chosen: Chosen = ctx.chosen
        to_values = (gradient @ W_dec.T).flatten()[chosen.flat]
        return to_values, _by_latent(values, gradient, chosen), None


def _by_row(values: Tensor, matrix: Tensor, chosen: Chosen) -> Tensor:
    """``[row, d]``: for each row the sum of ``values`` times rows ``latents`` of the matrix."""
    return _bags(chosen.rows, chosen.latents, values, matrix, chosen.shape[0])


def _by_latent(values: Tensor, matrix: Tensor, chosen: Chosen) -> Tensor:
    """``[latent, d]``: for each latent the sum of ``values`` times rows ``rows`` of the matrix."""
    order = chosen.latents.argsort(stable=True)
    bags, entries = chosen.latents[order], chosen.rows[order]
    return _bags(bags, entries, values[order], matrix, chosen.shape[1])


def _bags(bags: Tensor, entries: Tensor, weights: Tensor, matrix: Tensor, count: int) -> Tensor:
    """For each of ``count`` bags the weighted sum of its entries, which are rows of the matrix.

    Args:
        bags: of each entry, ascending.
        entries: which row.
        weights: of each entry.
        matrix: ``[row, d]``.
        count: how many bags there are.
    """
    ends = torch.zeros(count + 1, dtype=torch.long, device=bags.device)
    ends[1:] = torch.bincount(bags, minlength=count).cumsum(0)
    return torch.nn.functional.embedding_bag(
        entries, matrix, ends, per_sample_weights=weights, mode="sum", include_last_offset=True
    )
