"""Rotary position embedding: how a GPT-NeoX head knows where it is.

The first ``rotary_ndims`` numbers of every query and key are read as pairs. Pair ``i`` joins
number ``i`` with number ``i + rotary_ndims // 2`` (the NeoX layout; GPT-J pairs neighbours) and is
turned by the angle ``position * inverse_frequency[i]``:

    first'  = first * cos - second * sin
    second' = second * cos + first * sin

A dot product of two turned vectors depends only on how far apart they stand, which is what
attention needs. RoFormer, arXiv:2104.09864.

The scaled variants change only the frequencies, so that a model can read texts longer than the
ones it was trained on. All of them are functions of the configuration and, for ``dynamic`` and
``longrope``, of the length being read now. Nothing here remembers earlier calls: the same
positions always give the same angles.

Frequencies and angles are float32 whatever the dtype of the model, because a half-precision
frequency multiplied by a position in the thousands is off by whole turns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neox_lab.config import GPTNeoXConfig


def inverse_frequencies(config: GPTNeoXConfig, length: int | None = None) -> tuple[Tensor, float]:
    """Angle in radians by which each pair turns from one position to the next.

    ``length`` is the number of positions being read (highest position + 1); only ``dynamic`` and
    ``longrope`` look at it, and None means a length the model was trained on.

    Returns the frequencies, float32 on the CPU `[rotary_ndims // 2]`, and the factor by which
    cos and sin are multiplied (1.0 except for ``yarn`` and ``longrope``).
    """
    return _TYPES[config.rope_parameters["rope_type"]].frequencies(config, length)


def _wavelengths(config: GPTNeoXConfig, base: float | Tensor) -> Tensor:
    """``base ** (2i / d)``: positions per radian, float32 `[rotary_ndims // 2]`."""
    d = _dimensions(config)
    even = torch.arange(0, d, 2, dtype=torch.float32, device="cpu")
    powers: Tensor = base ** (even / d)
    return powers


def _dimensions(config: GPTNeoXConfig) -> int:
    """``d`` of the formulas: the share of a head that is to be turned.

    An odd one leaves a number without a partner, which takes the next one of the head, so that
    ``rotary_ndims`` is larger by one. The frequencies are spread over ``d`` all the same.
    """
    return int(config.head_size * config.rotary_pct)


def _default(config: GPTNeoXConfig, length: int | None) -> tuple[Tensor, float]:
    """``theta_i = base ** (-2i / d)``. RoFormer, arXiv:2104.09864."""
    return 1.0 / _wavelengths(config, config.rope_parameters["rope_theta"]), 1.0


def _linear(config: GPTNeoXConfig, length: int | None) -> tuple[Tensor, float]:
    """Every frequency divided by ``factor``. Position interpolation, arXiv:2306.15595."""
    frequencies, _ = _default(config, length)
    return frequencies / config.rope_parameters["factor"], 1.0


def _dynamic(config: GPTNeoXConfig, length: int | None) -> tuple[Tensor, float]:
    """A larger base for longer texts: ``base * (f * L / Lmax - (f - 1)) ** (d / (d - 2))``.

    "NTK-aware" scaling (bloc97, emozilla, 2023), described in YaRN, arXiv:2309.00071, section 3.
    Up to ``max_position_embeddings`` the frequencies are those of ``default``.
    """
    trained = config.max_position_embeddings
    if length is None or length <= trained:
        return _default(config, length)
    factor = config.rope_parameters["factor"]
    d = _dimensions(config)
    # float32, as transformers computes it: at position 10 000 a difference in the last bit of
    # a frequency is a visible difference in the angle.
    current = torch.tensor(length, dtype=torch.float32, device="cpu")
    stretch = factor * current / trained - (factor - 1)
    base = config.rope_parameters["rope_theta"] * stretch ** (d / (d - 2))
    return 1.0 / _wavelengths(config, base), 1.0


def _yarn(config: GPTNeoXConfig, length: int | None) -> tuple[Tensor, float]:
    """Interpolate slow pairs, keep fast pairs, ramp in between. YaRN, arXiv:2309.00071.

    A pair that turns more than ``beta_fast`` times within the trained context keeps its frequency,
    one that turns fewer than ``beta_slow`` times has it divided by ``factor``.
    """
    parameters = config.rope_parameters
    trained = parameters["original_max_position_embeddings"]
    factor, base, d = parameters["factor"], parameters["rope_theta"], _dimensions(config)

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes this many full turns in the trained context."""
        return float(d * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base)))

    low = pair_turning(parameters.get("beta_fast") or 32)
    high = pair_turning(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    if low == high:
        high += 0.001  # a ramp of width zero would divide by zero

    pairs = torch.arange(d // 2, dtype=torch.float32, device="cpu")
    kept = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
    wavelengths = _wavelengths(config, base)
    frequencies = 1.0 / (factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
    return frequencies, _yarn_attention_scaling(config, factor)


def _yarn_attention_scaling(config: GPTNeoXConfig, factor: float) -> float:
    """``0.1 ln(factor) + 1`` (YaRN, equation 22) unless the configuration gives its own."""
    parameters = config.rope_parameters

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    numerator, denominator = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if numerator and denominator:
        return temperature(numerator) / temperature(denominator)
    return temperature(1.0)


def _llama3(config: GPTNeoXConfig, length: int | None) -> tuple[Tensor, float]:
    """Divide slow pairs by ``factor``, keep fast pairs, blend between (Llama 3.1, 2024).

    "Slow" is fewer than ``low_freq_factor`` turns within the trained context, "fast" more than
    ``high_freq_factor`` turns. The Llama 3 Herd of Models, arXiv:2407.21783; the formula is in
    Meta's published code.
    """
    parameters = config.rope_parameters
    trained = parameters["original_max_position_embeddings"]
    factor = parameters["factor"]
    fewest, most = parameters["low_freq_factor"], parameters["high_freq_factor"]

    frequencies, _ = _default(config, length)
    period = 2 * math.pi / frequencies
    slow, fast = period > trained / fewest, period < trained / most
    kept = (trained / period - fewest) / (most - fewest)
    blended = (1 - kept) * frequencies / factor + kept * frequencies
    scaled = torch.where(slow, frequencies / factor, frequencies)
    return torch.where(slow | fast, scaled, blended), 1.0


def _longrope(config: GPTNeoXConfig, length: int | None) -> tuple[Tensor, float]:
    """A searched divisor for each pair, one list for short and one for long texts.

    LongRoPE, arXiv:2402.13753. Texts longer than ``original_max_position_embeddings`` use
    ``long_factor``. Cos and sin are multiplied by ``sqrt(1 + ln(factor) / ln(trained))``.
    """
    parameters = config.rope_parameters
    trained = parameters["original_max_position_embeddings"]
    is_long = length is not None and _is_long(config, length)
    divisors = parameters["long_factor" if is_long else "short_factor"]
    divide = torch.tensor(divisors, dtype=torch.float32, device="cpu")
    frequencies = 1.0 / (divide * _wavelengths(config, parameters["rope_theta"]))

    scaling = parameters.get("attention_factor")
    if scaling is None:
        factor = parameters.get("factor") or config.max_position_embeddings / trained
        scaling = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return frequencies, float(scaling)


class _Type(NamedTuple):
    """A type of scaling.

    Attributes:
        frequencies: from the configuration and the length being read.
        regime: of a length, what it has in common with all lengths of the same frequencies; None
            where the frequencies are the same for every length.
    """

    frequencies: Callable[[GPTNeoXConfig, int | None], tuple[Tensor, float]]
    regime: Callable[[GPTNeoXConfig, int], int] | None = None


def _beyond_trained(config: GPTNeoXConfig, length: int) -> int:
    return max(length, config.max_position_embeddings)


def _is_long(config: GPTNeoXConfig, length: int) -> int:
    return int(length > config.rope_parameters["original_max_position_embeddings"])


_TYPES: dict[str, _Type] = {
    "default": _Type(_default),
    "linear": _Type(_linear),
    "dynamic": _Type(_dynamic, _beyond_trained),
    "yarn": _Type(_yarn),
    "llama3": _Type(_llama3),
    "longrope": _Type(_longrope, _is_long),
}


class RotaryTable:
    """Positions in, cosines and sines out, for one configuration.

    A plain object and not an ``nn.Module``: ``model.half()`` must not reach the frequencies.
    The configuration is read when the table is built and is not watched afterwards.

    Args:
        config: shape of the model.

    Raises:
        ConfigError: its ``rope_parameters`` were edited and are wrong.
    """

    def __init__(self, config: GPTNeoXConfig) -> None:
        config.standardize_rope_params()
        self.config = copy.deepcopy(config)
        self._regime = _TYPES[config.rope_parameters["rope_type"]].regime
        self._by_device: dict[torch.device, tuple[Tensor, float]] = {}

    @property
    def depends_on_length(self) -> bool:
        """Whether how far a position turns depends on how long the text is."""
        return self._regime is not None

    def regime(self, length: int) -> int:
        """A number that is the same for lengths whose positions turn by the same angles.

        The frequencies of a batch are those of its longest text, so where texts are to be read as
        if each were alone, texts of another regime belong into another batch.

        Args:
            length: positions being read.
        """
        return 0 if self._regime is None else self._regime(self.config, length)

    def angles(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the turn at each position, as ``rotate`` takes them.

        ``position_ids`` is `[batch or 1, pos]`, whole numbers. Returns two float32 tensors
        `[batch or 1, pos, 1, rotary_ndims]` on the same device, already multiplied by the
        attention scaling of the RoPE type; the axis of length 1 stands for all heads. Each pair
        has two entries, half the axis apart; the sine of the first is negative.
        """
        frequencies, scaling = self._frequencies(position_ids)
        turns = position_ids[:, :, None, None] * frequencies
        cos, sin = turns.cos(), turns.sin()
        if scaling != 1.0:
            cos, sin = cos * scaling, sin * scaling
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def _frequencies(self, position_ids: Tensor) -> tuple[Tensor, float]:
        device = position_ids.device
        if self._regime is not None:
            # The only place where the device is waited for, and only for these two types.
            length = int(position_ids.max().item()) + 1
            frequencies, scaling = inverse_frequencies(self.config, length)
            return frequencies.to(device), scaling
        # Inside torch.export or a FakeTensorMode tensors have shapes and no numbers: what meets
        # them must be made there as well.
        plain = type(position_ids) is Tensor
        if plain and device in self._by_device:
            return self._by_device[device]
        frequencies, scaling = inverse_frequencies(self.config)
        made = frequencies.to(device), scaling
        traced = not torch.compiler.is_compiling() and torch._C._is_tracing()
        if plain and not traced:  # what is made there must not stay here
            self._by_device[device] = made
        return made


HALF_PRECISION = (torch.float16, torch.bfloat16)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first ``rotary_ndims`` numbers of each head; the others pass unchanged.

    ``x`` is `[batch, pos, head, d_head]`, ``cos`` and ``sin`` come from `RotaryTable.angles`,
    `[batch or 1, pos, 1, rotary_ndims]`. Any other leading axes that broadcast will do, so
    queries and keys that lie side by side can be turned in one call. Returns a new tensor of the
    shape and dtype of ``x``; half precision is turned in float32 and rounded once.
    RoFormer, arXiv:2104.09864, equation 34.
    """
    width = cos.shape[-1]
    turning, rest = x.split_with_sizes((width, x.shape[-1] - width), dim=-1)
    if x.dtype in HALF_PRECISION:
        turning = turning.float()
    # Half the axis away is each number's partner. In place: this runs for every layer and token.
    partner = turning.roll(width // 2, dims=-1)
    turned = (turning * cos).add_(partner.mul_(sin))
    return torch.cat((turned.to(x.dtype), rest), dim=-1)
