"""The k largest pre-activations of each row, without all of them in full precision; exact.

    s = bfloat16(x) @ bfloat16(W)              every latent, with processors that have units for it
    candidates                                 those that may be among the k largest
    x @ W[candidates]                          in float32, and of these the k largest

Bounds say how far ``s`` may be from the truth: with ``x = x' + dx`` and ``w = w' + dw`` it is off
by at most ``|dx| |w'| + |x| |dw|`` (Cauchy and Schwarz), the rounding of its own 8 bits, and that
of sums of d float32 numbers. What is looked through is divided into blocks. The kth largest of
their maxima, less what it may be off, is no more than the kth largest of all; candidates are those
that may reach it. A row with candidates in too many blocks is computed in full.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

LEAST = 4096  # latents below which nothing is gained
TOKENS = 32  # rows below which seeing that the encoder is the same costs what is saved
_ROWS = 256  # at a time, so that what was just written is still near; a multiple of 32 is fastest
_BLOCK = 16  # latents of a block, which stand side by side
_FEW = 4  # a share of the blocks; a row with more to look at is computed in full
_FEW_THREADS = 4  # up to which NumPy, with one, finds the largest faster than PyTorch
_UNIT = 2.0**-8  # rounding to bfloat16, relative


class Screen(NamedTuple):
    """An encoder in bfloat16, with its bias as two more columns, and how far it is off.

    Attributes:
        weights: ``[latent, d_in + 2, filled up to a multiple of 32]``.
        norm: of its longest row.
        error: norm of the largest difference of a row from the encoder.
        probe: the encoder times a fixed vector ``[latent]``, by which a change is noticed.
        bias: as it was, ``[latent]``.
    """

    weights: Tensor
    norm: float
    error: float
    probe: Tensor
    bias: Tensor


@cache
def is_fast() -> bool:
    """Whether this processor multiplies bfloat16 matrices much faster than float32 ones."""
    known = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known and known())


def helps(tokens: Tensor, latents: int, k: int) -> bool:
    """Whether screening is faster for these tokens ``[token, d_in]``, and possible."""
    fits = latents >= LEAST and latents % _BLOCK == 0 and latents >= 2 * _FEW * _BLOCK * k
    on_cpu = tokens.device.type == "cpu" and tokens.dtype == torch.float32
    return fits and on_cpu and len(tokens) >= TOKENS and is_fast()


def screen(encoder: Tensor, b_enc: Tensor) -> Screen:
    """Prepare an encoder ``[latent, d_in]`` and its bias ``[latent]``."""
    high = b_enc.bfloat16().float()
    whole = torch.cat((encoder, high[:, None], (b_enc - high)[:, None]), dim=1)
    weights = pad(whole, (0, -whole.shape[1] % 32)).bfloat16()
    back = weights[:, : whole.shape[1]].float()
    return Screen(
        weights,
        float(back.norm(dim=1).max()),
        float((whole - back).norm(dim=1).max()),
        _probe(encoder),
        b_enc.clone(),
    )


@torch.no_grad()
def is_of(by: Screen, encoder: Tensor, b_enc: Tensor) -> bool:
    """Whether this encoder was prepared, by its numbers: PyTorch does not count all changes."""
    return torch.equal(_probe(encoder), by.probe) and torch.equal(b_enc, by.bias)


def _probe(encoder: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(encoder.shape[1], generator=generator, dtype=torch.float32)
    return encoder @ direction.to(encoder)


def top_k(
    read: Tensor, encoder: Tensor, b_enc: Tensor, k: int, by: Screen
) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row of ``read @ encoder.T + b_enc``.

    Args:
        read: ``[row, d_in]``, float32.
        encoder: ``[latent, d_in]``.
        b_enc: ``[latent]``.
        k: how many.
        by: the encoder, prepared.

    Returns:
        Values and latents ``[row, k]``, the largest first.
    """
    parts = [_some(part, encoder, b_enc, k, by) for part in torch.split(read, _ROWS)]
    return torch.cat([values for values, _ in parts]), torch.cat([at for _, at in parts])


def _some(
    read: Tensor, encoder: Tensor, b_enc: Tensor, k: int, by: Screen
) -> tuple[Tensor, Tensor]:
    rows, d_in = read.shape
    low = pad(read, (0, by.weights.shape[1] - d_in, 0, -rows % 32))
    low[:, d_in : d_in + 2] = 1
    low = low.bfloat16()
    # The encoder stands on the left: on the right it would be rearranged each time, all of it.
    screened = (by.weights @ low.T)[:, :rows].view(-1, _BLOCK, rows)
    maxima = _maxima(screened)
    norm = (read.square().sum(1) + 2).sqrt()
    off = (read - low[:rows, :d_in].float()).norm(dim=1) * by.norm + norm * by.error
    off += d_in * 2.0**-22 * norm * by.norm  # sums of float32 numbers, here and below
    kth = _kth(maxima, k)
    least = kth - _UNIT * kth.abs() - 2 * off
    least -= 2 * _UNIT * least.abs()  # what was rounded to less than this is not among the largest
    near = maxima.clamp(min=0) >= least[:, None]
    many = (near.sum(1) > near.shape[1] // _FEW) | ~least.isfinite()
    near[many] = False
    row, block = _nonzero(near)
    at, within = _nonzero(screened[block, :, row].float() >= least[row, None])
    found, latents = _chosen(read, encoder, b_enc, k, row[at], block[at] * _BLOCK + within)
    if bool(many.any()):
        found[many], latents[many] = linear(read[many], encoder, b_enc).topk(k, dim=1)
    return found, latents


def _maxima(screened: Tensor) -> Tensor:
    """Of each block the largest number, ``[row, block]``; where none is above 0, one of them.

    Bits are compared as whole numbers, which takes a third of the time.
    """
    bits = screened.view(torch.int16).amax(1)
    return bits.T.contiguous().view(torch.bfloat16).float()


def _kth(numbers: Tensor, k: int) -> Tensor:
    """The kth largest of each row."""
    if torch.get_num_threads() > _FEW_THREADS:
        return numbers.topk(k, dim=1).values[:, -1]
    return torch.from_numpy(np.partition(numbers.numpy(), -k, axis=1)[:, -k].copy())


def _nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of what is true, in order."""
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    return flat // mask.shape[1], flat % mask.shape[1]


def _chosen(
    read: Tensor, encoder: Tensor, b_enc: Tensor, k: int, row: Tensor, latent: Tensor
) -> tuple[Tensor, Tensor]:
    """The k largest of each row among candidates, which come in the order of rows, in float32."""
    rows = len(read)
    count = torch.bincount(row, minlength=rows)
    starts = count.cumsum(0) - count
    slot = torch.arange(len(row)) - starts[row]
    shape = rows, max(k, int(count.max()))
    values = read.new_full(shape, -torch.inf)
    values[row, slot] = _dots(read, encoder, latent, starts, row) + b_enc[latent]
    latents = latent.new_zeros(shape)
    latents[row, slot] = latent
    found, order = values.topk(k, dim=1)
    return found, latents.gather(1, order)


def _dots(read: Tensor, encoder: Tensor, latents: Tensor, starts: Tensor, rows: Tensor) -> Tensor:
    """``read[row] . encoder[latent]`` for each pair, ``[pair]``."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        read, encoder, latents, starts, rows, 0
    )
