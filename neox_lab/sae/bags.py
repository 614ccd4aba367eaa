"""What codes stand for: rows of a matrix times their activations, summed for each token."""

from __future__ import annotations

import torch
from torch import Tensor

from neox_lab.sae.codes import Codes

SPARSE = 8
"""Codes of more than one feature in so many are multiplied as a matrix."""


def rows_summed(codes: Codes, matrix: Tensor) -> Tensor:
    """The sum of the active features' rows, each times its activation.

    Args:
        codes: ``[*tokens, slot]``.
        matrix: ``[latent, d]``.

    Returns:
        ``[*tokens, d]``, in the dtype of the matrix.
    """
    tokens, slots, d = codes.indices.shape[:-1], codes.indices.shape[-1], matrix.shape[1]
    if slots == 0:
        return matrix.new_zeros(*tokens, d)
    if slots * SPARSE > codes.latents:  # rows one by one would take many times as long
        return codes.dense().to(matrix.dtype) @ matrix
    bags = torch.nn.functional.embedding_bag(
        codes.indices.reshape(-1, slots),
        matrix,
        per_sample_weights=codes.values.reshape(-1, slots).to(matrix.dtype),
        mode="sum",
    )
    return bags.view(*tokens, d)
