"""What a head copies, whatever it looks at.

The *copying score* of a head says whether it raises the logits of the very tokens it looks at
(Elhage et al., 2021, "A Mathematical Framework for Transformer Circuits"). Let X ``[vocab,
d_model]`` be what the head's layer reads, after its layer norm, of each token standing alone; with
λ the eigenvalues of the map X W_V W_O W_U from tokens to logits,

    copying = Σ λ / Σ |λ|                                -1 to 1

A head that copies has positive eigenvalues and a score near 1. In layer 0 X is the embedding, as in
the paper. Later layers read what earlier ones made of it (as Wang et al., 2022, arXiv:2211.00593,
do for the first MLP): heads that copy perfectly can score 0 on the bare embedding. Layer norms are
folded into the weights (``nl.folded``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import COUNT, check
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.family.factored import FactoredMatrix
from neox_lab.family.folded import folded
from neox_lab.hooks import reads_only

if TYPE_CHECKING:
    from neox_lab.model.hook_points import HookPoint

SAMPLE = 2048  # tokens that the score is taken from


@torch.no_grad()
def copying_scores(model: GPTNeoXPreTrainedModel, sample: int = SAMPLE) -> Tensor:
    """Σ λ / Σ |λ| of each head's map from tokens to logits, float32 ``[layer, head]``.

    Formulas: ``help("neox_lab.experiments.copying")``. X W_V W_O W_U shares its
    eigenvalues with the small matrix W_O W_U X W_V ``[d_head, d_head]``. It is a score of the
    weights: hooks and spliced functions that are in place take no part.

    NaN where there is nothing to measure: in a model without an unembedding, and for a head whose
    writing the unembedding does not read.

    Args:
        model: any of the five classes.
        sample: how many tokens of the vocabulary are taken, at random. Nearly all the time goes
            into running the model on them; a quarter of the built-in model's vocabulary moves
            scores by up to 0.05.

    Raises:
        InputError: dropout is on, or ``sample`` is no number of tokens.
    """
    refuse_dropout(model)
    sample = check("sample", sample, COUNT, InputError)
    config = model.config
    scores = torch.full(
        (config.num_hidden_layers, config.num_attention_heads), torch.nan, dtype=torch.float32
    )
    if model.get_output_embeddings() is None:
        return scores
    weights = folded(model)
    for layer, (block, around) in enumerate(
        zip(weights.blocks, _around(model, sample), strict=True)
    ):
        value, output = block.W_V.float(), block.W_O.float()
        product = FactoredMatrix(value, output @ around)
        real, size = product.eigenvalues.real.sum(-1), product.eigenvalues.abs().sum(-1)
        # Rounding leaves something even where the exact product is zero.
        largest = value.norm(dim=(1, 2)) * output.norm(dim=(1, 2)) * around.norm()
        scores[layer] = (real / size).masked_fill(size <= 1e-5 * largest, torch.nan).cpu()
    return scores


def _around(model: GPTNeoXPreTrainedModel, sample: int) -> list[Tensor]:
    """W_U X ``[d_model, d_model]`` of each layer: from logits back to what the layer reads."""
    config = model.config
    layers = config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randperm(config.vocab_size, generator=generator)[:sample].to(model.device)
    unembed = folded(model).W_U[:, tokens].float()
    sums = [unembed.new_zeros(config.hidden_size, config.hidden_size) for _ in range(layers)]
    for batch, columns in zip(
        torch.split(tokens, 256), torch.split(unembed, 256, dim=1), strict=True
    ):

        @reads_only
        def add(read: Tensor, hook: HookPoint, columns: Tensor = columns) -> None:
            assert hook.layer is not None
            sums[hook.layer] += columns @ read[:, 0].to(columns.device, torch.float32)

        with model.hook_stack.suspended(), model.hooks([("blocks.*.ln1.hook_normalized", add)]):
            model.backbone(batch[:, None], use_cache=False)
    return sums
