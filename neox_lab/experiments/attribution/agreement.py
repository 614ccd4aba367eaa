"""How far an estimate can be trusted: beside what really happens, part by part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import COUNT, check, shown
from neox_lab.data.statistics import Floats, correlation
from neox_lab.errors import InputError
from neox_lab.experiments.attribution.labels import part_names
from neox_lab.interrupts import whole_answers
from neox_lab.results import GridResult, Result

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from neox_lab.experiments.attribution.result import AttributionResult
    from neox_lab.views import ScatterView

_ROUNDING = 1e-6
"""Of the largest number: what sums in float32, of some 1e-7 each step, do not tell from 0."""


@dataclasses.dataclass(frozen=True)
class Agreement(Result):
    """An estimate beside exact numbers.

    Attributes:
        correlation: Pearson's, from -1 to 1; NaN if one side is constant.
        rank_correlation: Spearman's, of the parts where something happens, see ``compare``; NaN if
            one side is constant there.
        largest_miss: the largest absolute difference, in the metric's unit.
        mean_miss: the mean absolute difference.
        frame: one row for each part: its place, ``estimated``, ``exact``, ``miss`` (estimated minus
            exact), the largest misses first.
        k: how many misses are listed when this is shown.
        title: what was estimated.
    """

    correlation: float
    rank_correlation: float
    largest_miss: float
    mean_miss: float
    frame: pd.DataFrame
    k: int
    title: str

    @property
    def misses(self) -> pd.DataFrame:
        """The ``k`` largest misses."""
        return self.frame.head(self.k)

    def view(self) -> ScatterView:
        """Both numbers of every part, and the largest misses by name."""
        from neox_lab.views import ScatterView

        known = np.isfinite(self.frame[["exact", "estimated"]].to_numpy(dtype=float)).all(axis=1)
        shown = self.frame[known]
        left = "" if known.all() else f" {int((~known).sum())} parts are NaN and not drawn."
        return ScatterView(
            shown["exact"],
            shown["estimated"],
            shown["name"].tolist(),
            "exact",
            "estimated",
            marked=self.k,
            title=f"{self.title}: estimate against exact",
            note=f"Correlation {self.correlation:.3f}, of ranks {self.rank_correlation:.3f}. "
            f"Largest miss {self.largest_miss:.3f}, mean {self.mean_miss:.3f}.{left}",
        )


def compare_largest(
    result: AttributionResult, measure: Callable[[list[int]], Tensor], count: int, k: int
) -> Agreement:
    """An attribution beside exact changes of those of its parts that it says are the largest.

    Args:
        result: the estimate, ``[*others, part]``.
        measure: from places on the last axis to exact changes ``[*others, chosen]``.
        count: how many parts are measured.
        k: how many of the largest misses to list.

    Raises:
        InputError: nothing could be measured.
    """
    values = result.values.abs().nan_to_num()
    sizes = values.reshape(-1, values.shape[-1]).amax(dim=0)
    chosen = sizes.topk(min(count, len(sizes))).indices.sort().values
    exact = torch.full_like(result.values, torch.nan)
    with whole_answers():
        exact[..., chosen] = measure(chosen.tolist()).to(exact)
    return compare(result, exact, k)


def compare(result: AttributionResult, exact: Tensor, k: int = 10) -> Agreement:
    """An attribution beside exact changes of the metric.

    Left of the first difference of two prompts nothing can change, and what is computed there is
    rounding: 1e-9 on one side, -1e-6 on the other. In a long prompt these are most of all parts,
    and their order, which says nothing, would hide that of the others. So ranks are those of the
    parts at which either side is at least ``_ROUNDING`` of its largest number.

    Args:
        result: the estimate.
        exact: exact changes ``[*axes]``, over the same axes; NaN where not measured.
        k: how many of the largest misses to list.

    Raises:
        InputError: other axes, or nothing measured on both sides.
    """
    if not isinstance(result, GridResult) or not isinstance(exact, Tensor) or exact.is_meta:
        raise InputError(
            f"compare(result={shown(result)}, exact={shown(exact)}); expected an attribution and a "
            "tensor of exact changes."
        )
    k = check("k", k, COUNT, InputError)
    exact = exact.to_dense().real.float().cpu()
    if exact.shape != result.values.shape:
        raise InputError(
            f"The exact values have shape {list(exact.shape)}, the estimate "
            f"{list(result.values.shape)} ({', '.join(result.axes)})."
        )
    if not (result.is_computed & ~exact.isnan()).any():
        raise InputError("There is no part whose estimate and exact value are both known.")
    frame = result.frame.rename(columns={"value": "estimated"})
    frame.insert(0, "name", part_names(frame))
    frame["exact"] = exact[result.is_computed].numpy()  # in the frame's order
    frame = frame[frame["exact"].notna()]
    frame["miss"] = frame["estimated"] - frame["exact"]
    order = frame["miss"].abs().sort_values(ascending=False, kind="stable").index
    frame = frame.loc[order].reset_index(drop=True)
    estimated, known = (frame[name].to_numpy(dtype=float) for name in ("estimated", "exact"))
    happens = _more_than_rounding(estimated) | _more_than_rounding(known)
    return Agreement(
        correlation=correlation(estimated, known),
        rank_correlation=correlation(estimated[happens], known[happens], ranks=True),
        largest_miss=float(frame["miss"].abs().max(skipna=False)),
        mean_miss=float(frame["miss"].abs().mean(skipna=False)),
        frame=frame,
        k=k,
        title=result.title,
    )


def _more_than_rounding(numbers: Floats) -> NDArray[np.bool_]:
    """Which of ``[part]`` are something beside the largest of them; NaN is."""
    largest = np.abs(numbers[np.isfinite(numbers)]).max(initial=0)
    return ~(np.abs(numbers) < _ROUNDING * largest)
