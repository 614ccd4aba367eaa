"""How faithful a run is: where it stands between nothing and the whole model.

    faithfulness = (m(C) - m(∅)) / (m(M) - m(∅))

m is the metric's mean over prompts, M the whole model, ∅ the run with every edge ablated and C the
run of a circuit; 1 is as good as the model, and more than 1 is possible. It is a ratio of means,
not a mean of ratios, so the interval draws prompts again and forms the ratio anew each time. Where
the denominator may be zero the ratio says nothing, and that is told.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from neox_lab.notices import tell

DRAWS = 2000


class Ratio(NamedTuple):
    """A number with its interval, or several of them.

    Attributes:
        value: the ratio of means.
        low: lower end of the 95 % interval over prompts; NaN for a single prompt.
        high: upper end.
    """

    value: Tensor
    low: Tensor
    high: Tensor


def faithfulness(samples: Tensor, whole: Tensor, nothing: Tensor, seed: int = 0) -> Ratio:
    """Faithfulness of runs.

    Args:
        samples: the metric of each run and prompt ``[run, sample]``.
        whole: of the whole model ``[sample]``.
        nothing: with everything ablated ``[sample]``.
        seed: of the draws.

    Returns:
        For each run ``[run]``, float64.
    """
    samples, whole, nothing = (tensor.double() for tensor in (samples, whole, nothing))
    count = samples.shape[1]
    distance = whole.mean() - nothing.mean()
    value = (samples.mean(dim=1) - nothing.mean()) / distance
    if count < 2:
        return Ratio(value, torch.full_like(value, torch.nan), torch.full_like(value, torch.nan))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (DRAWS, count), generator=generator)
    distances = (whole - nothing)[drawn].mean(dim=1)
    if bool((distances.sign() != distance.sign()).float().mean() > 0.025):
        tell(
            "The metric of the whole model and of the model with everything ablated may be the "
            f"same (they differ by {float(distance):.3g} on these prompts, with either sign when "
            "prompts are drawn again), so faithfulness says nothing here."
        )
    ratios = torch.stack(
        [(row - nothing)[drawn].mean(dim=1) / distances for row in samples]
    )  # [run, draw]
    ends = ratios.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)
    return Ratio(value, ends[0], ends[1])
