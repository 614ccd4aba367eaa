"""Which weights learn, how fast, and with what optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from neox_lab import interrupts
from neox_lab.errors import InputError
from neox_lab.family.structure import all_or_nothing
from neox_lab.tasks.settings import TrainingSettings

if TYPE_CHECKING:
    from neox_lab.family.base import GPTNeoXPreTrainedModel

BLOCK_MATRICES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


@contextmanager
def trainable(
    model: GPTNeoXPreTrainedModel, settings: TrainingSettings
) -> Iterator[dict[str, nn.Parameter]]:
    """Freeze, inside a ``with`` block, all weights but those that learn.

    Args:
        model: any of the classes.
        settings: say which weights.

    Yields:
        The weights that learn, by name.

    Raises:
        InputError: ``freeze_below`` is more than there are layers, or ``lora`` without peft.
    """
    layers = model.config.num_hidden_layers
    if not 0 <= settings.freeze_below <= layers:
        raise InputError(f"freeze_below={settings.freeze_below}; the model has {layers} layers.")
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}

    def undo() -> None:
        if settings.train == "lora":
            _merge_lora(model)
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)

    with interrupts.certainly(undo):
        if settings.train == "lora":
            _add_lora(model, settings)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_learns(name, settings))
        chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not chosen:
            raise InputError("these settings leave no weight to train")
        yield chosen


def _learns(name: str, settings: TrainingSettings) -> bool:
    in_head = not name.startswith("gpt_neox.")
    if settings.train == "head":
        return in_head
    if settings.train == "lora" and not in_head:
        return "lora_" in name and _layer(name) >= settings.freeze_below
    return in_head or settings.freeze_below == 0 or _layer(name) >= settings.freeze_below


def _layer(name: str) -> float:
    """Which layer a weight belongs to; -1 below the first and infinity above the last."""
    parts = name.split(".")
    if "layers" in parts:
        return int(parts[parts.index("layers") + 1])
    return -1 if "embed_in" in parts else math.inf


def _add_lora(model: GPTNeoXPreTrainedModel, settings: TrainingSettings) -> None:
    """Put a low-rank addition beside every matrix of the blocks (Hu et al., arXiv:2106.09685)."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError(
            "train='lora' needs the package peft: pip install 'neox_lab[lora]'. Without it, "
            "freeze_below=k trains only the layers from k on."
        ) from None
    rank = settings.lora_rank
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=BLOCK_MATRICES)
    with all_or_nothing(model):
        inject_adapter_in_model(config, model)


def _merge_lora(model: GPTNeoXPreTrainedModel) -> None:
    """Add what was learned to the matrices and put plain layers back in place."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A") and hasattr(child, "get_base_layer"):
                adapted: Any = child  # a layer of peft
                adapted.merge()
                setattr(parent, name, adapted.get_base_layer())
    if not model._hf_peft_config_loaded:
        vars(model).pop("peft_config", None)


def optimizer_for(chosen: dict[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) with decay on matrices only."""
    matrices = [parameter for parameter in chosen.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in chosen.values() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One pass over each weight instead of a dozen, where there is such a kernel.
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in chosen.values())
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


def rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """Learning rate of one optimiser step.

    Args:
        step: its number, from 0.
        steps: how many there are.
        settings: peak, rise and fall.
    """
    rise = round(settings.warm_up * steps)
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    if settings.decay == "constant":
        return settings.learning_rate
    left = 1 - (step - rise) / max(1, steps - rise)
    if settings.decay == "linear":
        return settings.learning_rate * left
    return settings.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
