"""Who may look at whom: causality and padding as one additive bias.

A query at position i may look at keys 0..i (a language model must not see the future) and never
at padding. Both rules become numbers added to the attention scores before the softmax: 0 where
looking is allowed, minus infinity where it is not.

One case needs care: a padded query in front of the text may look at nothing at all, and a softmax
over nothing is NaN. Such a row gets the lowest finite number everywhere instead, hence uniform
attention. No real token ever reads from it.
"""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.errors import InputError

_log = logging.getLogger("neox_lab")


class AttentionMask(NamedTuple):
    """What attention needs to know about visibility.

    Attributes:
        bias: additive, ``[batch or 1, head or 1, query_pos, key_pos]``, or None for none.
        causal: True if the lower triangle is all there is to it, and ``bias`` is None. Fused
            kernels then skip the upper half instead of computing and masking it.
        blind: True if some query may look at nothing while gradients are recorded. Fused kernels
            give such a row a wrong gradient: they remember log Σ exp(score) of each row, in which
            the number of keys is lost beside the lowest finite number.
    """

    bias: Tensor | None
    causal: bool
    blind: bool = False

    def to(self, device: torch.device) -> AttentionMask:
        """The same on another device."""
        return self if self.bias is None else self._replace(bias=self.bias.to(device))

    def full_bias(self, scores: Tensor) -> Tensor | None:
        """The additive bias for ``scores`` ``[.., query_pos, key_pos]``, the triangle included."""
        if not self.causal:
            return self.bias
        length = scores.shape[-1]
        return _as_bias(_visible(length, 0, scores.device), scores.dtype)


def attention_mask(
    given: Tensor | None,
    batch: int,
    length: int,
    past: int,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionMask:
    """The mask for ``length`` new positions after ``past`` cached ones.

    Args:
        given: None (no padding); ``[batch or 1, past + length]`` with 1 for text and 0 for
            padding, where a shorter one hides what it does not reach and the surplus of a longer
            one is not read, as in Hugging Face's library; or ``[batch or 1, head or 1, length,
            past + length]``, used as it is: boolean with True for visible, or floating point
            and additive.
        batch: rows in the batch.
        length: new positions (queries).
        past: positions whose keys and values are cached.
        dtype: dtype of queries and keys.
        device: where they are.

    Raises:
        InputError: ``given`` has another number of axes or another size.
    """
    total = past + length
    if given is not None and given.dim() == 4:
        return _explicit(given, batch, length, total, dtype, device)
    padding = None if given is None else _padding(given, batch, total, past, device)
    if padding is None:
        if length == 1:
            return AttentionMask(None, causal=False)  # one query sees everything before it
        if past == 0:
            return AttentionMask(None, causal=True)
        return AttentionMask(_as_bias(_visible(length, past, device), dtype), causal=False)
    visible = _visible(length, past, device) & padding[:, None, None, :]
    return _biased(_as_bias(visible, dtype))


def _explicit(
    given: Tensor, batch: int, length: int, total: int, dtype: torch.dtype, device: torch.device
) -> AttentionMask:
    if given.shape[0] not in (1, batch) or tuple(given.shape[2:]) != (length, total):
        raise InputError(
            f"A 4-D attention_mask has shape {list(given.shape)}; expected "
            f"[batch, head or 1, query_pos, key_pos] = [{batch}, 1, {length}, {total}]."
        )
    given = given.to(device)
    return _biased(given.to(dtype) if given.is_floating_point() else _as_bias(given.bool(), dtype))


def packed_texts(position_ids: Tensor) -> Tensor | None:
    """The mask of rows in which texts follow one another, each counting its own positions.

    A new text begins wherever a position is not the one before plus 1. Hugging Face's library
    reads positions that way where there is neither a mask nor a cache, and so do we: several
    short texts can be trained on in one row, without padding (Krell et al., arXiv:2107.02027).

    Args:
        position_ids: ``[batch or 1, pos]``.

    Returns:
        Boolean ``[batch or 1, 1, query_pos, key_pos]``, True for earlier positions of the same
        text; None if no row has a second one.
    """
    text = (position_ids.diff() != 1).cumsum(dim=1)
    if text.shape[1] == 0 or (_has_numbers(text) and not bool(text[:, -1].any())):
        return None
    text = torch.nn.functional.pad(text, (1, 0))  # [batch or 1, pos]: its number in the row
    return _visible(text.shape[1], 0, text.device) & (text[:, None, :, None] == text[:, None, None])


def own_positions(
    position_ids: Tensor | None,
    mask: Tensor | None,
    length: int,
    past: int,
    device: torch.device,
) -> Tensor:
    """Where in its own text each new position stands, ``[batch or 1, length]``; -1 for padding.

    Args:
        position_ids: those given to the run ``[batch or 1, length]``; None where they were not:
            then tokens of each text are counted, padding left out.
        mask: given to the run; one with four axes says nothing of padding.
        length: new positions.
        past: cached positions before them.
        device: where the result is wanted.
    """
    text = None
    if mask is not None and mask.dim() == 2:
        text = mask.to(device).bool()[:, : past + length]
        text = torch.nn.functional.pad(text, (0, past + length - text.shape[1]))
    if position_ids is not None:
        places = position_ids.to(device)
    elif text is not None:
        places = (text.cumsum(dim=1) - 1)[:, past:]
    else:
        places = torch.arange(past, past + length, device=device)[None]
    return places if text is None else torch.where(text[:, past:], places, -1)


def _padding(
    given: Tensor, batch: int, total: int, past: int, device: torch.device
) -> Tensor | None:
    """A boolean ``[batch or 1, key_pos]``, True for text; None if there is no padding at all."""
    if given.dim() != 2 or given.shape[0] not in (1, batch):
        cached = f" ({past} of them cached)" if past else ""
        raise InputError(
            f"attention_mask has shape {list(given.shape)}; expected [batch, pos] = "
            f"[{batch}, {total}], a 1 for each position to be read{cached}, or a 4-D mask."
        )
    text = given.to(device).bool()
    if text.shape[1] > total:
        text = text[:, :total]
    elif text.shape[1] < total:
        if _has_numbers(text):
            _say_short()
        text = torch.nn.functional.pad(text, (0, total - text.shape[1]))
    return None if _has_numbers(text) and bool(text.all()) else text


@functools.cache  # once is enough
def _say_short() -> None:
    _log.warning(
        "An attention_mask is shorter than what it is for, cached positions included: the last "
        "positions are hidden."
    )


def _has_numbers(tensor: Tensor) -> bool:
    """Whether the numbers in ``tensor`` may decide what is computed.

    They may not while a forward pass is recorded for other inputs (torch.export, compile, trace),
    and there are none under a FakeTensorMode.
    """
    recorded = torch.compiler.is_compiling() or torch._C._is_tracing()
    return type(tensor) is Tensor and not recorded


def _visible(length: int, past: int, device: torch.device) -> Tensor:
    """``[1, 1, query_pos, key_pos]``: True where the key is not in the query's future."""
    query = torch.arange(past, past + length, device=device)
    key = torch.arange(past + length, device=device)
    return (key[None, :] <= query[:, None])[None, None]


def _biased(bias: Tensor) -> AttentionMask:
    lowest = torch.finfo(bias.dtype).min
    blind = torch.is_grad_enabled()
    if blind and _has_numbers(bias):
        blind = bool((bias.amax(dim=-1) <= lowest).any())
    return AttentionMask(bias, causal=False, blind=blind)


def _as_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """From True and False to 0 and minus infinity; rows that see nothing become finite."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    bias.masked_fill_(~visible, float("-inf"))
    return bias.masked_fill_(~visible.any(dim=-1, keepdim=True), torch.finfo(dtype).min)
