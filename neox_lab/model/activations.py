"""The functions a GPT-NeoX MLP may apply between its two matrices, by config.json's names.

GELU(x) = x Φ(x), with Φ the normal distribution function (Hendrycks and Gimpel,
arXiv:1606.08415), comes in two kinds: exact, through erf, and the tanh approximation
0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))). GPT-NeoX-20B says ``gelu_fast`` (tanh), Pythia says
``gelu`` (erf). ``gelu_fast``, ``gelu_new`` and ``gelu_pytorch_tanh`` are the same function; the
fused kernel computes it with one rounding, which in half precision is more exact than the
operation-by-operation forms they were named after.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def _gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, ``[..]`` to ``[..]``."""
    return F.gelu(x, approximate="tanh")


def _gelu_clipped(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10.0, 10.0)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * (1.702 * x).sigmoid()


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_10": _gelu_clipped,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "tanh": Tensor.tanh,
    "linear": _linear,
}
"""From ``hidden_act`` to a function of any shape, elementwise."""
