"""``model.state_dict()``: weights by TransformerLens's names of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.errors import CheckpointError, nearest
from neox_lab.streaming import refuse_writing

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer

_ATTENTION = ("W_Q", "W_O", "b_Q", "b_O", "W_K", "W_V", "b_K", "b_V")
_MLP = ("W_in", "b_in", "W_out", "b_out")
_NO_WEIGHTS = ("IGNORE", "mask", "rotary_sin", "rotary_cos")


def state_dict(model: HookedTransformer) -> dict[str, Tensor]:
    """Every weight by name; views of the model's own, except for biases that it does not have."""
    return {name: weight.detach() for name, weight in named_weights(model).items()}


def named_weights(model: HookedTransformer) -> dict[str, Tensor]:
    """What ``state_dict`` has, through which gradients reach the model's own weights."""
    found = {"embed.W_E": model.native.W_E}
    for block in model.blocks:
        found |= {f"{norm.name}.w": norm.w for norm in (block.ln1, block.ln2)}
        found |= {f"{norm.name}.b": norm.b for norm in (block.ln1, block.ln2)}
        found |= {f"{block.attn.name}.{name}": getattr(block.attn, name) for name in _ATTENTION}
        found |= {f"{block.mlp.name}.{name}": getattr(block.mlp, name) for name in _MLP}
    norm = model.ln_final
    if model.cfg.normalization_type == "LNPre":  # the norms have nothing that could be learned
        found = {name: weight for name, weight in found.items() if ".ln" not in name}
    else:
        found |= {"ln_final.w": norm.w, "ln_final.b": norm.b}
    found |= {"unembed.W_U": model.native.W_U, "unembed.b_U": model.native.b_U}
    return found


@torch.no_grad()
def load_state_dict(
    model: HookedTransformer, given: Mapping[str, Tensor], strict: bool = True
) -> None:
    """Write weights into the model's own.

    Args:
        model: which one.
        given: by names as ``state_dict`` has them; buffers of TransformerLens's are left out.
        strict: all of the model's must be there, and no other.

    Raises:
        CheckpointError: weights are missing, unknown, of another shape, or biases for which this
            model has no place; nothing is written then.
        DeviceError: layers of the model are read from their files.
    """
    refuse_writing(model.native)
    own = state_dict(model)
    weights = {n: w for n, w in given.items() if n.rsplit(".", 1)[-1] not in _NO_WEIGHTS}
    unknown = [name for name in weights if name not in own]
    missing = [name for name in own if name not in weights]
    if strict and (unknown or missing):
        what, name = ("unknown", unknown[0]) if unknown else ("missing", missing[0])
        hint = nearest(name, [*own, *weights]) if unknown else ""
        raise CheckpointError(f"The weight {name!r} is {what}.{hint} strict=False lets that be.")
    learned = {weight.untyped_storage().data_ptr() for weight in model.native.parameters()}
    weights = {name: weight for name, weight in weights.items() if name in own}
    for name, weight in weights.items():
        there = own[name]
        if weight.shape != there.shape:
            shapes = f"{list(weight.shape)}; expected {list(there.shape)}"
            raise CheckpointError(f"The weight {name!r} has shape {shapes}.")
        if there.untyped_storage().data_ptr() not in learned and bool(weight.any()):
            raise CheckpointError(f"This model has no place for the bias {name!r}.")
    for name, weight in weights.items():
        own[name].copy_(weight)
