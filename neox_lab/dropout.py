"""Whether dropout is on: one gate at the door of every question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from neox_lab.checks import require_data, require_model
from neox_lab.errors import InputError

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedNetwork


def has_dropout(module: nn.Module | HookedNetwork) -> bool:
    """Whether what ``module`` computes is random now."""
    return any(part.training and _share_dropped(part) > 0 for part in module.modules())


def dropout_of(module: nn.Module | HookedNetwork) -> dict[str, float]:
    """What every part drops in training mode, by its name."""
    return {name: _share_dropped(part) for name, part in module.named_modules()}


def refuse_dropout(model: HookedNetwork) -> None:
    """The gate at the door of every question: an answer must be the same when asked again.

    Raises:
        InputError: dropout is on, in training mode; or this is no model.
        DeviceError: its weights are on the device ``meta``: there are no numbers to answer with.
    """
    if isinstance(model, type) or not hasattr(model, "named_modules"):
        require_model(model)
    if (device := getattr(model, "device", None)) is not None:
        require_data(device)
    for name, part in model.named_modules():
        if part.training and (share := _share_dropped(part)) > 0:
            raise InputError(
                "The model is in training mode: dropout would add noise, first "
                f"{name or type(part).__name__} with a probability of {share}. model.eval()"
            )


def _share_dropped(part: nn.Module) -> float:
    """The probability with which ``part`` itself drops numbers in training mode."""
    if isinstance(part, _DropoutNd):
        return float(part.p)
    share = getattr(part, "dropout", 0.0)  # attention keeps the number alone
    return share if isinstance(share, float) else 0.0
