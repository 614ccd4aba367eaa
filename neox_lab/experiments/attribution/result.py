"""What attribution answers with: numbers over named axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.attribution.agreement import Agreement, compare
from neox_lab.experiments.attribution.labels import part_names
from neox_lab.files import parse_json
from neox_lab.head_names import head_name
from neox_lab.interrupts import whole_answers
from neox_lab.results import GridResult, bad_rows

if TYPE_CHECKING:
    from neox_lab.views import View

_EARLIER = b'{"format": "neox_lab attribution 1"'  # how a file of version 0.1 begins
BARS = 24  # bars of a list


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionResult(GridResult):
    """Shares of a metric, over named axes.

    Attributes:
        values: the shares ``[*axes]``, float32 on the CPU; the mean over rows of the batch. Not
            computed where there is nothing, as between a writer and an earlier reader.
        axes: names of the axes, such as ``("layer", "pos")``.
        labels: of each axis, a name for each entry.
        total: what the shares are shares of: the metric, or its difference between two runs.
        per_row: the shares of each row of the batch ``[row, *axes]``, where the metric knows rows.
        title: the question.
        value_name: what a share is, with its unit.
        facts: further numbers, such as ``clean`` and ``corrupted``, the metric of both runs.
    """

    total: float
    per_row: Tensor | None
    title: str
    value_name: str
    facts: dict[str, float]
    _exact: Callable[[], Tensor] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check that everything fits together.

        Raises:
            InputError: it does not.
        """
        super().__post_init__()
        if self.per_row is not None and self.per_row.shape[1:] != self.values.shape:
            raise InputError(
                f"per_row has the shape {list(self.per_row.shape)}; expected [row, "
                f"{', '.join(map(str, self.values.shape))}]."
            )

    def _what(self) -> str:
        rows = [] if self.per_row is None else bad_rows(self.per_row, self.is_computed)
        return f"The {self.value_name}" + (f" of rows {', '.join(rows)}" if rows else "")

    def normalized(self) -> Tensor:
        """Shares ``[*axes]`` as parts of ``total``, the metric's whole difference.

        Raises:
            InputError: ``total`` is zero.
        """
        if self.total == 0:
            raise InputError("The metric does not differ between the two runs; nothing to divide.")
        return self.values / self.total

    def check(self, k: int = 10) -> Agreement:
        """Compare with what really happens when each part is exchanged by itself.

        Args:
            k: how many of the largest misses to list.

        Returns:
            Correlation, largest misses, and a picture of both numbers of every part.

        Raises:
            InputError: the result was loaded from a file and no longer knows its model.
        """
        if self._exact is None:
            raise InputError(
                "Only a result that still knows its model can be checked, and this one came from "
                "a file. Compute it again, or use attribution.compare(result, exact_values)."
            )
        with whole_answers():
            return compare(self, self._exact(), k)

    def view(self) -> View:
        """A map for two and three axes, bars (the largest shares) for one."""
        from neox_lab.views import HeatmapView

        if len(self.axes) == 1 or "writer" in self.axes:
            return self.bars()
        rows, columns = self.axes[0], self.axes[-1]
        values, measured, names = self.values, self.is_computed, self.labels
        if self.axes == ("layer", "pos", "head"):  # a row for each head, a column for each token
            values, measured = values.transpose(1, 2), measured.transpose(1, 2)
            columns = "pos"
        row_labels = names[rows]
        if len(self.axes) == 3:
            rows = "head"
            row_labels = [head_name(*at) for at in product(names["layer"], names["head"])]
        return HeatmapView(
            values.reshape(len(row_labels), -1),
            row_labels,
            names[columns],
            "layer · head" if len(self.axes) == 3 else rows,
            {"pos": "position"}.get(columns, columns),
            self.value_name,
            title=self.title,
            measured=measured.reshape(len(row_labels), -1).numpy(),
        )

    def bars(self, k: int = BARS) -> View:
        """The ``k`` largest shares as bars."""
        from neox_lab.views import BarsView
        from neox_lab.views.drawing import number

        top = self.top(k)
        top = self.frame.head(k) if top.empty else top  # all are NaN, and said to be
        names = part_names(top)
        count = int(self.is_computed.sum())
        added = float(self.values[self.is_computed].sum())
        note = (
            f"{self.value_name}; the {len(top)} largest of {count}. The sum of all is "
            f"{number(added, 3)}; what they are shares of is {number(self.total, 3)}."
        )
        return BarsView(names, top["value"].tolist(), self.title, note)

    @classmethod
    def _read_earlier(cls, path: Path) -> dict[str, object] | None:
        """Until version 0.1 a result was a JSON file."""
        with path.open("rb") as file:
            if file.read(len(_EARLIER)) != _EARLIER:
                return None
        content: dict[str, object] = parse_json(path.read_text(encoding="utf-8"))
        del content["format"]
        if content.pop("kind") != cls.__name__:
            raise ValueError(f"not a saved {cls.__name__}")
        for name, value in content.items():
            if isinstance(value, dict) and value.keys() == {"float32"}:
                content[name] = torch.tensor(value["float32"], dtype=torch.float32)
        return content
