"""What a direction of the residual stream says about the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from neox_lab.family.contract import HookedModel
from neox_lab.model.parts import plain_layer_norm


@torch.no_grad()
def logit_effects(model: HookedModel, direction: Tensor) -> Tensor | None:
    """How much a direction speaks for each token: through centring, weight and unembedding.

    Args:
        model: the model.
        direction: ``[d_model]``.

    Returns:
        ``[vocab]``, float32, on the CPU, with a mean of 0 over the tokens; the division of the
        final layer norm is left out. None for a model without unembedding.

    Raises:
        ConfigError: something else stands in the place of the final layer norm.
    """
    unembed = model.get_output_embeddings()
    if unembed is None:
        return None
    norm = plain_layer_norm(model.backbone.final_layer_norm, "final_layer_norm")
    weight = unembed.weight.float()
    vector = direction.to(weight)
    read = (vector - vector.mean()) * norm.weight.float()
    effects = weight @ read
    return (effects - effects.mean()).cpu()
