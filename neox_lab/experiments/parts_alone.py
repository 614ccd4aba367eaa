"""Whether parts of a network may be called by themselves.

Sweeps, paths and attributions compute parts of the forward pass: some blocks, some tokens, one
head's part of a matrix. That is exact with adapters in place, and with any module that treats
every token by itself. It is not where a PyTorch hook would be skipped or shown other tensors than
those of a text, or where a block does something else than blocks do; then there is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from neox_lab.dropout import refuse_dropout
from neox_lab.errors import HookError
from neox_lab.kernels.linear import Linear
from neox_lab.model.attention import Attention
from neox_lab.model.block import MLP, Block
from neox_lab.model.parts import described, is_hooked, runs, skipped_hook, takes_tokens_alone

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_FORWARDS = (
    Linear.forward,
    MLP.forward,
    nn.Linear.forward,
    nn.LayerNorm.forward,
    nn.Dropout.forward,
)


def check_parts(model: HookedModel) -> None:
    """Raise if computing parts of ``model`` would not give what a forward pass does, every time.

    Raises:
        InputError: dropout is on.
        HookError: PyTorch hooks on a forward pass (those at the embedding are called as always),
            or a module in whose place another stands that cannot be called by itself.
    """
    refuse_dropout(model)
    # Everybody calls the embedding, with whole texts.
    exempt = {id(part) for part in model.backbone.embed_in.modules()}
    if any(is_hooked(part) and id(part) not in exempt for part in model.modules()):
        for name, part in model.named_modules():
            if is_hooked(part) and id(part) not in exempt:
                raise skipped_hook(name or type(model).__name__)
    width = model.config.hidden_size
    for layer, block in enumerate(model.backbone.layers):
        _check_block(block, width, f"layers.{layer}")
    _check_tokens(model.backbone.final_layer_norm, width, "final_layer_norm")


def _check_block(block: nn.Module, width: int, name: str) -> None:
    if not isinstance(block, Block) or not runs(block, Block.forward):
        raise _another(block, name)
    attention = block.attention
    if not isinstance(attention, Attention) or not runs(attention, Attention.forward):
        raise _another(attention, f"{name}.attention")
    places = {
        "input_layernorm": block.input_layernorm,
        "post_attention_layernorm": block.post_attention_layernorm,
        "attention.query_key_value": attention.query_key_value,
        "attention.dense": attention.dense,
        "mlp": block.mlp,
    }
    for place, module in places.items():
        _check_tokens(module, width, f"{name}.{place}")


def _check_tokens(module: nn.Module, width: int, name: str) -> None:
    """Raise unless ``module`` treats every token by itself; what was built there does."""
    if _is_built_in(module):
        return
    if not takes_tokens_alone(module, width):
        raise HookError(
            f"{name} is {described(module)} that does not treat every token by itself, as "
            "computing some tokens of a text alone needs. Ask what runs the model as a whole "
            "(run_with_cache, run_with_hooks)."
        )


def _is_built_in(module: nn.Module) -> bool:
    """Whether what a network is built of stands there."""
    return all(runs(part, *_FORWARDS) for part in module.modules())


def _another(module: nn.Module, name: str) -> HookError:
    return HookError(
        f"{name} is {described(module)}. This computes parts of blocks and would skip what its own "
        "forward does. Ask what runs the model as a whole (run_with_cache, "
        "run_with_hooks)."
    )
