"""What really stands in the network's places, for those who compute with weights.

The forward pass calls its modules, so it computes with whatever stands there: an adapter that was
injected (LoRA, Hu et al., 2021, arXiv:2106.09685), a module of somebody's own, a PyTorch hook.
Questions that take blocks apart multiply with weights instead, or call parts of a block on other
shapes. They ask here first, and get what stands there exactly, or an error that names it:

    linear maps     their own weight; of a module of another class, the weight and bias that it
                    amounts to, found by calling it, if it is one linear map of what it reads
    layer norms     only ``nn.LayerNorm``
    everything      no PyTorch hooks, which a part called by itself would skip
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from neox_lab.dropout import has_dropout
from neox_lab.errors import HookError
from neox_lab.kernels.linear import Linear
from neox_lab.model.elsewhere import Elsewhere

_FAR = 64
_LINEAR = (Linear.forward, nn.Linear.forward)
_WHAT_TO_DO = (
    "Put a plain module there (with PEFT: merge_and_unload()), or ask what runs the model as a "
    "whole (run_with_cache, run_with_hooks)."
)


class Affine(NamedTuple):
    """The map x ↦ W x + b.

    Attributes:
        weight: ``[out, in]``.
        bias: ``[out]``, or None.
    """

    weight: Tensor
    bias: Tensor | None


def affine(module: nn.Module, width: int, name: str) -> Affine:
    """Weight and bias of the linear map that stands in a place.

    Those of ``nn.Linear`` are its own parameters. Those of another module are made by calling it
    on zeros and on the unit vectors, at the price of ``width`` tokens; gradients reach what they
    are made of.

    Args:
        module: what stands there.
        width: how many numbers it reads.
        name: of the place, for messages.

    Raises:
        HookError: it is no linear map, or PyTorch hooks stand in it.
    """
    refuse_hooks(module, name)
    if isinstance(module, nn.Linear) and runs(module, *_LINEAR):
        return Affine(module.weight, module.bias)
    if has_dropout(module):
        raise HookError(f"{name} is in training mode, and its dropout is random. model.eval()")
    like = _like(module)
    try:
        bias = module(like.new_zeros(1, 1, width))[0, 0]
        # Far from the bias, so that little is lost in rounding; a power of two loses nothing.
        far = _FAR * torch.eye(width, dtype=torch.float32).to(like)
        weight = ((module(far[None])[0] - bias) / _FAR).T
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise HookError(
            f"{name} is {described(module)}, whose weight cannot be found: {error}. {_WHAT_TO_DO}"
        ) from error
    _check_linear(module, Affine(weight, bias), name)
    return Affine(weight, bias)


@torch.no_grad()
def _check_linear(module: nn.Module, found: Affine, name: str) -> None:
    """Raise HookError unless ``module`` computes what was found, on numbers not seen before."""
    read = _numbers(module, found.weight.shape[1])
    assert found.bias is not None
    expected = read.double() @ found.weight.double().T + found.bias.double()
    made = module(read).double()
    rounding = torch.finfo(read.dtype).eps ** 0.5 * float(expected.abs().max())
    if not float((made - expected).abs().max()) <= rounding:
        raise HookError(
            f"{name} is {described(module)}, and what it computes is not one linear map of "
            f"what it reads, so there is no weight to compute with. {_WHAT_TO_DO}"
        )


def embeddings(module: nn.Module, vocab: int, name: str = "embed_in") -> Tensor:
    """The vector of each token ``[vocab, d_model]``: the parameter itself of ``nn.Embedding``.

    Args:
        module: what stands where tokens are looked up.
        vocab: how many tokens there are.
        name: of the place, for messages.

    Raises:
        HookError: PyTorch hooks stand in it.
    """
    refuse_hooks(module, name)
    if isinstance(module, nn.Embedding) and runs(module, nn.Embedding.forward):
        return module.weight
    device = _like(module).device
    vectors: Tensor = module(torch.arange(vocab, device=device)[None])[0]
    return vectors


def plain_layer_norm(module: nn.Module | Elsewhere, name: str) -> nn.LayerNorm:
    """The layer norm that stands in a place.

    Args:
        module: what stands there.
        name: of the place, for messages.

    Raises:
        HookError: something else does, or PyTorch hooks stand in it.
    """
    if isinstance(module, Elsewhere):
        found: nn.LayerNorm = module.through(plain_layer_norm, name)
        return found
    refuse_hooks(module, name)
    if isinstance(module, nn.LayerNorm) and runs(module, nn.LayerNorm.forward):
        return module
    raise HookError(
        f"{name} is {described(module)} and no plain nn.LayerNorm, so it cannot be taken "
        "apart. Put one there (with PEFT: merge_and_unload()), or leave its hook points out."
    )


def takes_tokens_alone(module: nn.Module, width: int) -> bool:
    """Whether ``module`` treats every token by itself, in whatever shape tokens come.

    Args:
        module: from ``[.., width]`` to ``[.., out]``.
        width: how many numbers it reads.
    """
    tokens = _numbers(module, width)
    with torch.no_grad():
        try:
            together = module(tokens)[0]
            alone = torch.cat([module(token[None]) for token in tokens[0].flip(0)]).flip(0)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
    rounding = torch.finfo(tokens.dtype).eps ** 0.5 * float(together.abs().max())
    return together.shape == alone.shape and float((together - alone).abs().max()) <= rounding


@torch.no_grad()
def answers(module: nn.Module, width: int) -> Tensor | None:
    """What a module that is no plain linear map makes of some numbers, to see whether it changes.

    None for a plain one, and where PyTorch hooks would be called.

    Args:
        module: from ``[.., width]`` to ``[.., out]``.
        width: how many numbers it reads.
    """
    plain = isinstance(module, nn.Linear) and runs(module, *_LINEAR)
    if plain or any(map(is_hooked, module.modules())):
        return None
    made: Tensor = module(_numbers(module, width))
    return made


def refuse_hooks(module: nn.Module, name: str) -> None:
    """Raise if PyTorch hooks stand in ``module``.

    Raises:
        HookError: they do.
    """
    if any(map(is_hooked, module.modules())):
        found = next(path for path, part in module.named_modules() if is_hooked(part))
        raise skipped_hook(f"{name}.{found}" if found else name)


def refuse_among(hooks: Mapping[int, Callable[..., object]], name: str) -> None:
    """Raise if a hook among ``hooks``, some of those of a module, may change something.

    For a matrix of a larger module: what is done to all that this one reads, or hands on, is no
    part of the matrix, and would be left out of what is computed with it.

    Raises:
        HookError: one does.
    """
    if any(hook is not let_gradients_begin for hook in hooks.values()):
        raise skipped_hook(name)


def skipped_hook(name: str) -> HookError:
    """The error for a PyTorch hook on the module ``name``."""
    if is_everywhere():
        name = "Every module"
    return HookError(
        f"{name} has a PyTorch hook on its forward pass. This takes the network apart there and "
        "would skip it. Remove it (handle.remove()), or run the model as a whole (run_with_cache, "
        "run_with_hooks) and look at what whole modules hand on."
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether PyTorch hooks on the forward pass of ``module`` itself may change something."""
    if module._forward_pre_hooks or is_everywhere():
        return True
    return any(hook is not let_gradients_begin for hook in module._forward_hooks.values())


def is_everywhere() -> bool:
    """Whether PyTorch hooks on the forward passes of all modules there are may change something."""
    return bool(every_module._global_forward_hooks or every_module._global_forward_pre_hooks)


def let_gradients_begin(_module: nn.Module, _inputs: object, output: Tensor) -> None:
    """A PyTorch hook that changes no number: gradients reach ``output`` of frozen modules too."""
    output.requires_grad_(True)


def described(module: nn.Module) -> str:
    """What stands in a place, in words."""
    kind = type(module).__name__
    return f"a {kind} whose forward was replaced" if "forward" in vars(module) else f"a {kind}"


def runs(module: nn.Module, *forwards: Callable[..., object]) -> bool:
    """Whether calling ``module`` runs one of ``forwards``, which its class may inherit."""
    return type(module).forward in forwards and "forward" not in vars(module)


def takes_tap(module: nn.Module) -> bool:
    """Whether ``module`` passes its activations through a tap."""
    return _has_argument_tap(type(module).forward)


@functools.cache
def _has_argument_tap(forward: Callable[..., object]) -> bool:
    return "tap" in inspect.signature(forward).parameters


def _like(module: nn.Module) -> Tensor:
    """An empty tensor of the device and dtype in which ``module`` computes."""
    device, dtype = torch.device("cpu"), torch.get_default_dtype()
    for parameter in module.parameters():
        if parameter.is_floating_point() and not parameter.is_meta:
            return parameter.new_empty(0)
        if parameter.is_floating_point():  # put aside: it comes back in its dtype when it is needed
            dtype = parameter.dtype
        device = device if parameter.is_meta else parameter.device
    return torch.empty(0, device=device, dtype=dtype)


def _numbers(module: nn.Module, width: int) -> Tensor:
    """Three tokens ``[1, 3, width]``; none drawn, somebody's seeded computation goes on."""
    numbers = (torch.arange(3 * width, dtype=torch.float64) * 7.3 + 1).sin()
    return numbers.view(1, 3, width).to(_like(module))


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor`` in float32, or in float64 if it is: what rounding must not reach is made of it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
