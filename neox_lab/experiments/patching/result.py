"""The answer of a sweep: one number for each cell, with its labels, statistics and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check
from neox_lab.data import statistics
from neox_lab.errors import CheckpointError, InputError
from neox_lab.files import parse_json
from neox_lab.hooks import cache_files
from neox_lab.results import GridResult, bad_rows
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import HeatmapView

_TITLES = {
    "denoising": "Patching {}, clean into corrupted",
    "noising": "Patching {}, corrupted into clean",
    "ablation": "Ablating {}",
}


@dataclass(frozen=True, kw_only=True)
class PatchResult(GridResult):
    """What the metric becomes when one thing is replaced, cell by cell.

    Attributes:
        values: the metric of each cell ``[*axes]``, mean over pairs, float32 (or float64) on the
            CPU. Of an interrupted sweep: the mean over the pairs that are done; ``computed`` is
            False where none is. A pair that is NaN makes the mean NaN.
        axes: names of the axes of ``values``, such as ``("layer", "pos")``.
        clean: the metric on the clean prompts; NaN if unknown.
        corrupted: the metric on the corrupted prompts; NaN if there are none.
        site: where was patched; several names for a result with an axis ``site``.
        metric: name of the metric.
        direction: ``"denoising"`` (clean into corrupted), ``"noising"`` (corrupted into clean) or
            ``"ablation"`` (something else into clean).
        labels: for each axis a name for each index.
        samples: the metric of each pair, ``[pair, ...]``; None if the metric has no such thing. Of
            an interrupted sweep NaN where it was not computed, and so are statistics over pairs.
        base_samples: the metric of each pair without any patch ``[pair]``.
        complete: False if the sweep was interrupted.
    """

    clean: float
    corrupted: float
    site: tuple[str, ...]
    metric: str
    direction: str
    samples: Tensor | None = None
    base_samples: Tensor | None = None
    complete: bool = True

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            InputError: it does not.
        """
        super().__post_init__()
        if self.direction not in _TITLES:
            raise InputError(f"direction={self.direction!r}; expected one of {', '.join(_TITLES)}.")
        if self.samples is not None and self.samples.shape[1:] != self.values.shape:
            raise InputError(
                f"samples have the shape {list(self.samples.shape)}; expected [pair, "
                f"{', '.join(map(str, self.values.shape))}]."
            )
        given, base = self.samples, self.base_samples
        if given is not None and base is not None and base.shape != given.shape[:1]:
            raise InputError(
                f"base_samples have the shape {list(base.shape)}; expected one for each of "
                f"{len(given)} pairs."
            )

    @property
    def base(self) -> float:
        """The metric without any patch."""
        return self.corrupted if self.direction == "denoising" else self.clean

    def effect(self) -> Tensor:
        """By how much each cell changes the metric, ``[*axes]`` as ``values``."""
        return self.values - self.base

    def normalized(self) -> Tensor:
        """How far each cell goes from the patched prompt (0) to the other prompt (1), ``[*axes]``.

        Raises:
            InputError: there is no other prompt, or both have the same metric.
        """
        other = self.clean if self.direction == "denoising" else self.corrupted
        distance = other - self.base
        if distance == 0 or not np.isfinite(distance):
            raise InputError(
                f"normalized() needs two different ends; the metric is {self.clean:g} on the clean "
                f"and {self.corrupted:g} on the corrupted prompts. Use effect()."
            )
        return self.effect() / distance

    def standard_error(self) -> Tensor:
        """Standard error of each cell's effect, mean over pairs, ``[*axes]`` as ``values``.

        Raises:
            InputError: the metric of each pair is not known.
        """
        return statistics.standard_error(self._effects())

    def interval(
        self, level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of each cell's effect; see ``statistics.bootstrap_interval``.

        Args:
            level: how likely each interval is to hold the effect.
            draws: so many resamples of pairs.
            seed: of these.

        Returns:
            Lower and upper bounds, each of the shape of ``values`` ``[*axes]``.

        Raises:
            InputError: the metric of each pair is unknown, or ``level`` or ``draws`` out of range.
        """
        return statistics.bootstrap_interval(self._effects(), level, draws, seed)

    def p_values(self, draws: int = 2000, seed: int = 0) -> Tensor:
        """Permutation p-values of each cell's effect; see ``statistics.sign_flip_p_values``.

        Args:
            draws: so many draws of signs.
            seed: of these.

        Returns:
            Of the shape of ``values`` ``[*axes]``.

        Raises:
            InputError: the metric of each pair is not known, or ``draws`` out of range.
        """
        return statistics.sign_flip_p_values(self._effects(), draws, seed)

    def _effects(self) -> Tensor:
        """By how much each cell changes the metric of each pair ``[pair, ...]``."""
        if self.samples is None or self.base_samples is None:
            raise InputError(
                "Statistics over pairs need the metric of each pair. A function from all logits to "
                "one number has none; use logit_difference or another of the named metrics."
            )
        return self.samples - self.base_samples.reshape(-1, *[1] * (self.samples.dim() - 1))

    def __getitem__(self, site: str) -> PatchResult:
        """One site of a result with several.

        Raises:
            KeyError: no such site.
        """
        if site not in self.site:
            raise KeyError(f"{site!r}; this result has {', '.join(self.site)}")
        if self.axes[0] != "site":
            return self
        at = self.site.index(site)
        samples = None if self.samples is None else self.samples[:, at]
        return replace(
            self,
            values=self.values[at],
            axes=self.axes[1:],
            site=(site,),
            samples=samples,
            computed=None if self.computed is None else self.computed[at],
        )

    def _what(self) -> str:
        pairs = [] if self.samples is None else bad_rows(self.samples, self.is_computed)
        of = f" of pairs {', '.join(pairs)}" if pairs else ""
        return f"{self.metric}{of}, patched"

    def _columns(self) -> dict[str, Tensor]:
        columns = {"value": self.values, "effect": self.effect()}
        if self.samples is not None and len(self.samples) > 1:
            columns["standard_error"] = self.standard_error()
        return columns

    def _rank(self, frame: pd.DataFrame) -> pd.Series[float]:
        return frame["effect"].abs()

    def view(self, *, normalized: bool = False, **at: int | str) -> HeatmapView:
        """A heat map of the effects.

        Args:
            normalized: show ``normalized()`` instead of the metric's change.
            at: an index on an axis, such as ``head=3`` or ``site="z"``. Of axes that are too many
                for a map and have no index, each field shows the cell that changes most.

        Raises:
            InputError: an axis or an index that this result does not have.
        """
        from neox_lab.views import HeatmapView

        check("normalized", normalized, SWITCH, InputError)
        values = self.normalized() if normalized else self.effect()
        values, measured, axes, told = self._on_two_axes(values, at)
        if len(axes) == 1:
            values, measured, axes = values[None], measured[None], ["metric", *axes]
        only = ["share" if normalized else "change"]  # the label of a single row
        rows, columns = (self.labels.get(axis, only) for axis in axes)
        end = "corrupted" if self.direction == "noising" else "clean"
        name = f"change of the {self.metric.removeprefix('the ')}"  # a function has no name
        if normalized:
            name = f"{self.metric}, share of the way to {end}"
        words = {"pos": "position", "source_pos": "source position"}
        row_axis, column_axis = (words.get(axis, axis) for axis in axes)
        title = "; ".join([_TITLES[self.direction].format(", ".join(self.site)), *told])
        return HeatmapView(
            values.numpy(),
            rows,
            columns,
            row_axis,
            column_axis,
            name,
            title=title,
            measured=measured.numpy(),
        )

    def _on_two_axes(
        self, values: Tensor, at: Mapping[str, int | str]
    ) -> tuple[Tensor, Tensor, list[str], list[str]]:
        """``values`` on at most two axes, which of them are computed, and these axes.

        Last, in words, what became of the others.

        Raises:
            InputError: an axis or an index that this result does not have.
        """
        axes, told, computed = list(self.axes), [], self.is_computed
        for axis, index in at.items():
            if axis not in axes:
                raise InputError(f"No axis {axis!r}; this result has {', '.join(self.axes)}")
            if axis == "site" and str(index) in self.site:
                number = self.site.index(str(index))
            else:
                number = entry(axis, index, values.shape[axes.index(axis)], InputError)
            values = values.select(axes.index(axis), number)
            computed = computed.select(axes.index(axis), number)
            axes.remove(axis)
            told.append(str(index) if axis == "site" else f"{axis} {index}")
        while len(axes) > 2:
            axis = next(a for a in ("head", "source_pos", "site", *axes) if a in axes)
            values, computed = _farthest(values, computed, axes.index(axis))
            axes.remove(axis)
            told.append(f"the {axis} that changes most")
        return values, computed, axes, told

    def __repr__(self) -> str:
        """Headline, and the cells that stand out."""
        shape = " × ".join(f"{n} {a}" for n, a in zip(self.values.shape, self.axes, strict=True))
        lines = [
            f"PatchResult of {', '.join(self.site)}: {shape}, {self.direction}",
            f"{self.metric}: clean {self.clean:.4g}, corrupted {self.corrupted:.4g}",
        ]
        if self.direction == "ablation":
            lines[1] = f"{self.metric} with nothing taken away: {self.clean:.4g}"
        if not self.complete:
            done, cells = int(self.is_computed.sum()), self.values.numel()
            lines.append(f"Interrupted after {done} of {cells} cells; others were not computed")
        if none := int((self.values.isnan() & self.is_computed).sum()):
            lines.append(f"{none} cells are NaN")
        return "\n".join([*lines, self.top(5).to_string(index=False)])

    @classmethod
    def _read_earlier(cls, path: Path) -> dict[str, object] | None:
        """Until version 0.1 a result was a saved cache with a description of its own."""
        try:
            tensors, description = cache_files.read(path)
        except CheckpointError:
            return None
        if "patch_result" not in description:
            return None
        fields = parse_json(str(description["patch_result"]))
        return {**fields, **{name: tensor.clone() for name, tensor in tensors.items()}}


def _farthest(values: Tensor, computed: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Along ``axis``, the entry farthest from zero, NaN if there is one; and if it is computed."""
    far = values.abs().nan_to_num(torch.inf).masked_fill(~computed, -1.0)
    at = far.argmax(dim=axis, keepdim=True)
    return values.gather(axis, at).squeeze(axis), computed.gather(axis, at).squeeze(axis)
