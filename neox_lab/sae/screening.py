"""The k largest pre-activations of each row, without all of them in full precision; exact.

    s = bfloat16(x) @ bfloat16(W)              every latent, with processors that have units for it
    candidates                                 those that may be among the k largest
    x @ W[candidates]                          in float32, and of these the k largest

Bounds say how far ``s`` may be from the truth: with ``x = x' + dx`` and ``w = w' + dw`` it is off
by at most ``|dx| |w'| + |x| |dw|`` (Cauchy and Schwarz), the rounding of its own 8 bits, and that
of sums of d float32 numbers. A row where these bounds do not separate candidates from the rest is
computed in full. What is looked through is divided into blocks, of which only those can matter
whose maximum is among the largest.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

LEAST = 4096  # latents below which nothing is gained
TOKENS = 128  # rows below which seeing that the encoder is the same costs what is saved
_ROWS = 256  # at a time, so that what was just written is still near
_BLOCK = 16  # latents of a block
_WIDE = 3  # candidates, for each that is asked for
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
    fits = latents >= LEAST and latents % _BLOCK == 0 and latents > _BLOCK * (_WIDE * k + 1)
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
    width = by.weights.shape[1] - read.shape[1]
    ones = read.new_zeros(width)
    ones[:2] = 1
    low = torch.cat((read, ones.expand(len(read), width)), dim=1).bfloat16()
    screened = low @ by.weights.T
    values, latents, rest = _largest(screened, _WIDE * k)
    norm = (read.square().sum(1) + 2).sqrt()
    off = (read - low[:, : read.shape[1]].float()).norm(dim=1) * by.norm + norm * by.error
    off += read.shape[1] * 2.0**-22 * norm * by.norm  # sums of float32 numbers, here and below
    kth = values.topk(k, dim=1, sorted=False).values.amin(1)
    certain = rest + _UNIT * rest.abs() + off < kth - _UNIT * kth.abs() - off
    exact = _dots(read, encoder, latents) + b_enc[latents]
    found, order = exact.topk(k, dim=1)
    at = latents.gather(1, order)
    if not bool(certain.all()):
        found[~certain], at[~certain] = linear(read[~certain], encoder, b_enc).topk(k, dim=1)
    return found, at


def _largest(screened: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest of each row, in no order, which they are, and the most that any other can be.

    Blocks are made of latents that stand far apart, so that maxima are taken of whole rows. Their
    bits are compared as whole numbers, which takes a third of the time and is the same where a
    block has a number above 0; of others it is only known that they are not.
    """
    rows, latents = screened.shape
    blocks = latents // _BLOCK
    bits = screened.view(torch.int16).view(rows, _BLOCK, blocks)
    kept, of_blocks = _top(bits.amax(1).view(torch.bfloat16).float(), count)
    places = (torch.arange(0, latents, blocks)[None, :, None] + kept[:, None]).flatten(1)
    values = screened.gather(1, places).float()
    best, of_values = _top(values, count)
    rest = torch.maximum(of_values, of_blocks).clamp(min=0)
    return values.gather(1, best), places.gather(1, best), rest


def _top(numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Where the largest of each row are, in no order, and the largest of the others ``[row]``."""
    if torch.get_num_threads() > _FEW_THREADS:
        values, at = numbers.topk(count + 1, dim=1)
        return at[:, :count], values[:, count]
    order = np.argpartition(numbers.numpy(), -count - 1, axis=1)[:, -count - 1 :]
    at = torch.from_numpy(order)
    return at[:, 1:], numbers.gather(1, at[:, :1])[:, 0]


def _dots(read: Tensor, encoder: Tensor, latents: Tensor) -> Tensor:
    """``read @ encoder[latents]``, row by row, ``[row, latent]``."""
    rows, count = latents.shape
    bags = torch.arange(rows).repeat_interleave(count)
    starts = torch.arange(0, rows * count, count)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        read, encoder, latents.flatten(), starts, bags, 0
    ).view(rows, count)
