"""What a weight matrix writes or reads most, as tokens.

    logits = nl.lens.singular_vectors(model, "OV", layer=3, head=5)     [vocab, vector]
    nl.lens.predictions(logits[:, 0], model.tokenizer)                  the first one's tokens

The right singular vectors of a matrix are directions of the residual stream: what a head (``OV``)
or the neurons (``W_out``) write most, what the neurons (``W_in``) read most. Multiplied with the
unembedding they often spell out a topic (Millidge and Black, 2022, "The Singular Value
Decompositions of Transformer Weight Matrices are Highly Interpretable"). A singular vector has no
sign of its own: the likeliest and the unlikeliest tokens count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.checks import check, one_of, require_model, whole
from neox_lab.errors import InputError
from neox_lab.family.factored import FactoredMatrix
from neox_lab.model.parts import plain_layer_norm
from neox_lab.selections import entry

if TYPE_CHECKING:
    from neox_lab.family import GPTNeoXForCausalLM

MATRICES = ("OV", "W_in", "W_out")


@torch.no_grad()
def singular_vectors(
    model: GPTNeoXForCausalLM,
    matrix: Literal["OV", "W_in", "W_out"],
    layer: int,
    head: int | None = None,
    count: int = 10,
) -> Tensor:
    """Logits of the right singular vectors of a matrix, those of the largest values first.

    Args:
        model: one with an unembedding.
        matrix: ``"OV"`` of a head, ``"W_in"`` (with the weight of the layer norm before it) or
            ``"W_out"``.
        layer: number of the block.
        head: which head, for ``"OV"``.
        count: how many vectors.

    Returns:
        ``[vocab, vector]``, float32 at least.

    Raises:
        InputError: an unknown matrix, no such layer or head, or more vectors than there are.
        ConfigError: the model has no unembedding.
    """
    require_model(model)
    check("matrix", matrix, one_of(*MATRICES), InputError)
    weights = model.blocks[entry("layer", layer, len(model.blocks), InputError)]
    if matrix == "OV":
        if head is None:
            raise InputError("OV is the matrix of one head; give head=.")
        at = entry("head", head, len(weights.W_V), InputError)
        vectors = FactoredMatrix(weights.W_V[at], weights.W_O[at]).V
    elif matrix == "W_in":
        norm = plain_layer_norm(weights.block.post_attention_layernorm, "post_attention_layernorm")
        vectors = _right(weights.W_in.T * norm.weight)
    else:
        vectors = _right(weights.W_out)
    count = check("count", count, whole(least=1, most=vectors.shape[1]), InputError)
    return model.W_U.T.to(vectors) @ vectors[:, :count]


def _right(matrix: Tensor) -> Tensor:
    """Right singular vectors, the columns of ``[columns, rank]``; float32 at least."""
    exact = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    return torch.linalg.svd(exact, full_matrices=False).Vh.T
