"""Which positions logits are wanted for."""

from __future__ import annotations

import torch
from torch import Tensor

from neox_lab.errors import InputError


def kept_positions(hidden: Tensor, keep: int | Tensor) -> Tensor:
    """The positions of ``hidden`` ``[batch, pos, d_model]`` whose logits are wanted.

    Args:
        hidden: final residual stream.
        keep: see ``GPTNeoXForCausalLM.forward``.

    Raises:
        InputError: a selection of wrong kind.
    """
    if isinstance(keep, int) and not isinstance(keep, bool):
        return hidden[:, -keep:] if keep else hidden
    if not isinstance(keep, Tensor):
        raise InputError(
            f"logits_to_keep is a {type(keep).__name__}; expected an int or a tensor of positions."
        )
    if keep.is_meta != hidden.is_meta or keep.layout is not torch.strided:
        raise InputError("logits_to_keep is a tensor without data, or a sparse one.")
    if keep.dtype == torch.bool and keep.shape not in (hidden.shape[:2], hidden.shape[1:2]):
        raise InputError(
            f"logits_to_keep is a mask of shape {list(keep.shape)}; expected [pos] or [batch, pos] "
            f"of {list(hidden.shape[:2])}."
        )
    keep = keep.to(hidden.device)
    if keep.dtype == torch.uint8:
        keep = keep.long()  # as an index it would be a mask
    try:
        return _kept(hidden, keep)
    except IndexError as error:
        raise InputError(f"logits_to_keep names positions that are not there: {error}") from None


def _kept(hidden: Tensor, keep: Tensor) -> Tensor:
    if keep.dtype == torch.bool and keep.dim() == 2:
        return hidden[keep]
    if keep.dim() == 1 and not keep.is_floating_point():
        return hidden[:, keep]
    if keep.dim() == 2 and not keep.is_floating_point():
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return hidden[rows, keep]
    raise InputError(
        f"logits_to_keep has shape {list(keep.shape)} and dtype {keep.dtype}; expected an int, "
        "positions [kept] or [batch, kept], or a boolean [batch, pos]."
    )
