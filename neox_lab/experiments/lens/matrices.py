"""What a weight matrix reads and writes most, as tokens.

    result = nl.lens.svd(model, "OV", layer=3, head=5)
    result                                              # each vector's tokens at both ends
    result.spectrum()                                   # beside that of a random matrix

A matrix M = Σ σ u vᵀ takes what lies along a left singular vector u and gives σ v for it. Where u
or v is a direction of the residual stream, it has a number for every token:

    OV       W_V W_O      reads u, writes v
    QK       W_Q W_Kᵀ     query u, key v: how much the query's token looks for the key's
    W_in                  reads u; its v are directions among neurons
    W_out                 writes v; its u are directions among neurons

What is written goes through the unembedding (the numbers are logits), what is read comes from the
embedding, each token's after the centring and scaling of a layer norm: exactly what layer 0 reads,
and further up only as far as a token's own embedding is still in the stream. Layer norms are folded
into the weights and what is written is centred (``nl.folded``). Biases are left out, and of QK the
rotation: its rotated dimensions are those of a key at the query's own position.

These tokens often spell out a topic (Millidge and Black, 2022, "The Singular Value Decompositions
of Transformer Weight Matrices are Highly Interpretable"). A pair of singular vectors has no sign of
its own, so both ends are shown; ends of one sign go together: what reads ``+`` writes ``+``.

``singular_vectors`` gives the bare logits of TransformerLens's ``SVDInterpreter``: right singular
vectors, those of ``W_in`` read through the unembedding as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional

from neox_lab.checks import SEED, check, one_of, require_model, whole
from neox_lab.errors import InputError
from neox_lab.experiments.lens.reading import token_text
from neox_lab.experiments.lens.svd_result import SVDResult, squared_shares
from neox_lab.family.factored import FactoredMatrix
from neox_lab.family.folded import folded
from neox_lab.frames import make_frame
from neox_lab.model.parts import plain_layer_norm
from neox_lab.selections import entry

if TYPE_CHECKING:
    from neox_lab.family import GPTNeoXForCausalLM
    from neox_lab.family.weights import WeightViews

MATRICES = ("OV", "W_in", "W_out")
SIDES = {
    "OV": ("reads", "writes"),
    "QK": ("query", "key"),
    "W_in": ("reads", None),
    "W_out": (None, "writes"),
}
"""What left and right singular vectors of a matrix do in the residual stream, if they are of it."""


@torch.no_grad()
def svd(
    model: GPTNeoXForCausalLM,
    matrix: Literal["OV", "QK", "W_in", "W_out"],
    layer: int,
    head: int | None = None,
    *,
    count: int = 5,
    top_k: int = 8,
    seed: int = 0,
) -> SVDResult:
    """Singular values and vectors of a matrix, with the tokens farthest out at both ends.

    Formulas: ``help("neox_lab.experiments.lens.matrices")``. It is a question about
    weights: no text is read, and hooks and spliced functions that are in place take no part.

    Args:
        model: one with an unembedding, for what writes; any of the five classes for the rest.
        matrix: ``"OV"`` or ``"QK"`` of a head, ``"W_in"`` or ``"W_out"`` of an MLP.
        layer: number of the block.
        head: which head, for ``"OV"`` and ``"QK"``.
        count: how many vectors, those of the largest values.
        top_k: how many tokens at each end; ids beyond the tokenizer are left out.
        seed: of the random matrix beside it.

    Raises:
        InputError: an unknown matrix, no such layer or head, a head for an MLP, numbers out of
            range, or weights that are not finite.
        ConfigError: the model has no unembedding, and the matrix writes.
        HookError: a layer norm is none, or a weight is no matrix.
    """
    require_model(model)
    check("matrix", matrix, one_of(*SIDES), InputError)
    weights = folded(model)
    block = weights.blocks[entry("layer", layer, len(weights.blocks), InputError)]
    at = _head(matrix, head, model.config.num_attention_heads)
    seed = check("seed", seed, SEED, InputError)
    if at is None:
        factors = [getattr(block, matrix)]
    else:
        factors = [block.W_V[at], block.W_O[at]]
        if matrix == "QK":
            factors = [block.W_Q[at], block.W_K[at].mT]
    factors = [factor.to(torch.promote_types(factor.dtype, torch.float32)) for factor in factors]
    if not all(bool(factor.isfinite().all()) for factor in factors):
        raise InputError(f"{matrix} holds NaN or infinity. model.check() names such weights.")
    left, values, right = _decomposed(factors)
    count = check("count", count, whole(least=1, most=len(values)), InputError)
    ends = [left[:, :count], right[:, :count]]
    readings = {
        side: _logits(model, vectors, writes=side == "writes")
        for side, vectors in zip(SIDES[matrix], ends, strict=True)
        if side is not None
    }
    known = len(next(iter(readings.values())))
    top_k = check("top_k", top_k, whole(least=1, most=known), InputError)
    signs = _signs(list(readings.values())[-1])
    shares = squared_shares(values)
    return SVDResult(
        matrix=matrix,
        layer=entry("layer", layer, len(weights.blocks), InputError),
        head=at,
        singular_values=values.cpu(),
        random_values=_random_values(factors, values.norm(), seed).cpu(),
        left=(ends[0] * signs).cpu(),
        right=(ends[1] * signs).cpu(),
        frame=make_frame(
            [
                {"vector": vector, "value": float(values[vector]), "share": float(shares[vector])}
                | row
                for vector in range(count)
                for side, logits in readings.items()
                for row in _rows(model, side, (logits * signs)[:, vector], top_k)
            ]
        ),
    )


def _head(matrix: str, head: object, heads: int) -> int | None:
    """The number of the head, for a matrix that has one."""
    if matrix not in ("OV", "QK"):
        if head is not None:
            raise InputError(
                f"{matrix} is a matrix of the MLP, which has no heads; leave out head=."
            )
        return None
    if head is None:
        raise InputError(f"{matrix} is the matrix of one head; give head=.")
    return entry("head", head, heads, InputError)


def _decomposed(factors: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """U ``[rows, rank]``, the singular values, V ``[columns, rank]`` of the factors' product."""
    if len(factors) == 2:
        return FactoredMatrix(*factors).svd()
    left, values, right = torch.linalg.svd(factors[0], full_matrices=False)
    return left, values, right.mT


def _random_values(factors: list[Tensor], norm: Tensor, seed: int) -> Tensor:
    """Singular values of Gaussian factors of the same shapes, scaled to the norm."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(factor.shape, generator=generator, dtype=torch.float32).to(factor)
        for factor in factors
    ]
    values = FactoredMatrix(*drawn).S if len(drawn) == 2 else torch.linalg.svdvals(drawn[0])
    return values * (norm / values.norm())


def _logits(model: WeightViews, vectors: Tensor, *, writes: bool) -> Tensor:
    """A number for each token that the tokenizer knows, ``[token, vector]``."""
    if writes:
        tokens = folded(model).W_U.T
    else:
        tokens = functional.layer_norm(
            model.W_E.to(vectors), model.W_E.shape[1:], eps=model.config.layer_norm_eps
        )
    tokenizer = getattr(model, "tokenizer", None)
    known = len(tokens) if tokenizer is None else min(len(tokenizer), len(tokens))
    return tokens[:known].to(vectors) @ vectors


def _signs(logits: Tensor) -> Tensor:
    """For each vector 1 or -1, so that the token farthest out stands at the end called ``+``."""
    farthest = logits.gather(0, logits.abs().argmax(dim=0, keepdim=True))[0]
    return torch.where(farthest < 0, -1.0, 1.0).to(logits)


def _rows(model: WeightViews, side: str, logits: Tensor, top_k: int) -> list[dict[str, object]]:
    """The tokens at both ends of one vector."""
    tokenizer = getattr(model, "tokenizer", None)
    rows: list[dict[str, object]] = []
    for sign, direction in (("+", 1), ("-", -1)):
        order = (direction * logits).argsort(descending=True, stable=True)[:top_k].tolist()
        for rank, token in enumerate(order):
            text = token_text(tokenizer, token)
            rows.append(
                {"side": side, "sign": sign, "rank": rank, "token": text}
                | {"token_id": token, "logit": float(logits[token])}
            )
    return rows


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
        InputError: an unknown matrix, no such layer or head, a head for an MLP, or more vectors
            than there are.
        ConfigError: the model has no unembedding.
    """
    require_model(model)
    check("matrix", matrix, one_of(*MATRICES), InputError)
    weights = model.blocks[entry("layer", layer, len(model.blocks), InputError)]
    at = _head(matrix, head, model.config.num_attention_heads)
    if matrix == "OV":
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
