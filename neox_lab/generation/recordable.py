"""Which models may be decoded from a recording, and what a recording of one depends on.

A recording repeats kernels and runs no Python. So ``runs_as_built`` looks for everything that may
have Python of somebody's own in a step, and ``state_of`` for everything that chose the kernels and
the memory they read. What is put in the place of a function of a module (``F.linear = ...``) is
seen by neither.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from neox_lab.kernels.linear import Linear
from neox_lab.model.activations import ACTIVATION_FUNCTIONS
from neox_lab.model.attention import Attention
from neox_lab.model.block import MLP, Block
from neox_lab.model.network import Network
from neox_lab.model.rotary import RotaryTable

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

_PARTS = (
    *(nn.ModuleList, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.Linear),
    *(Linear, Block, Attention, MLP),
)
# As they were written, to tell when somebody puts others in their place.
_METHODS = {
    part: {name: value for name, value in vars(part).items() if isinstance(value, FunctionType)}
    for part in (*_PARTS, Network, RotaryTable)
}


def runs_as_built(model: LanguageModel) -> bool:
    """Whether a step of ``model`` is nothing but kernels: nobody watches and nothing was put in.

    Hooks, adapters, modules and methods of somebody's own, training, autocast, modes of PyTorch's
    that see every call, layers read from files or spread over devices, and rotary embeddings that
    depend on the length need Python in every step.
    """
    if not _is_ours(model) or _somebody_watches():
        return False
    network, config = model.backbone, model.config
    if (
        model.hook_stack.placements
        or model.hook_stack.everywhere
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(model.device.type)
        or config.output_attentions
        or config.output_hidden_states
        or network.store is not None
        or network.devices is not None
        or network.rotary.depends_on_length
    ):
        return False
    tensors = [*model.parameters()]
    return (
        all(t.device == model.device and type(t) is nn.Parameter for t in tensors)
        and all(vars(kind)[n] is m for kind, named in _METHODS.items() for n, m in named.items())
        and not _has_own_methods(network.rotary)
        and all(_is_as_built(module) for module in model.modules())
    )


def _somebody_watches() -> bool:
    """Whether anything outside the model is told of every module, call or kernel."""
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return bool(
        every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or torch._C._len_torch_dispatch_stack() > 0
        # torch.set_default_device is one, too; a step says everywhere where its tensors are.
        or any(type(mode) is not DeviceContext for mode in modes)
    )


def _is_as_built(module: nn.Module) -> bool:
    own = vars(module)
    return (
        (type(module) in _PARTS or _is_ours(module))
        and not (module.training or module._forward_hooks or module._forward_pre_hooks)
        and module._compiled_call_impl is None
        and not _has_own_methods(module)
        and own.get("act") in (None, *ACTIVATION_FUNCTIONS.values())
        # A weight that is no parameter: nobody would see where it is.
        and not any(isinstance(value, Tensor) for value in own.values())
    )


def _has_own_methods(thing: object) -> bool:
    """Whether something stands in ``thing`` itself in the place of a method of its class."""
    return any(callable(getattr(type(thing), name, None)) for name in vars(thing))


def _is_ours(module: object) -> bool:
    return type(module).__module__.startswith("neox_lab.family.")


def state_of(model: LanguageModel) -> tuple[Any, ...]:
    """What a recording of ``model`` depends on: where weights are, what it and PyTorch are set to.

    Numbers in the weights may change: the recording reads them where they are.
    """
    found: list[Any] = [model.backbone.rotary, *_kernels_asked_for()]
    for module in model.modules():
        numbers = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
        found += (type(module), getattr(module, "act", None), numbers)
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found += (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    return tuple(found)


def _kernels_asked_for() -> tuple[object, ...]:
    """How exactly PyTorch is told to multiply and attend on CUDA devices, and by which kernels."""
    backend: Any = torch.backends.cuda
    matmul = backend.matmul
    # PyTorch 2.9 has a new name for this, and refuses the old one once the new one was used.
    precision = getattr(matmul, "fp32_precision", None)
    return (
        torch.get_float32_matmul_precision() if precision is None else precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        getattr(matmul, "allow_fp16_accumulation", None),
        torch.are_deterministic_algorithms_enabled(),
        backend.preferred_blas_library(),
        backend.flash_sdp_enabled(),
        backend.mem_efficient_sdp_enabled(),
        backend.math_sdp_enabled(),
        backend.cudnn_sdp_enabled(),
    )
