"""What attribution answers with: numbers over named axes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from neox_lab.errors import CheckpointError, InputError
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.experiments.attribution.agreement import Agreement
    from neox_lab.views import View

_FORMAT = "neox_lab attribution 1"
BARS = 24  # bars of a list


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionResult(Result):
    """Shares of a metric, over named axes.

    Attributes:
        values: the shares, float32 on the CPU, one axis for each of ``axes``; the mean over rows
            of the batch. NaN where there is nothing, as between a writer and an earlier reader.
        axes: names of the axes, such as ``("layer", "pos")``.
        labels: of each axis, a name for each entry.
        total: what the shares are shares of: the metric, or its difference between two runs.
        per_row: the shares of each row of the batch ``[row, *axes]``, where the metric knows rows.
        title: the question.
        value_name: what a share is, with its unit.
        facts: further numbers, such as ``clean`` and ``corrupted``, the metric of both runs.
    """

    values: Tensor
    axes: tuple[str, ...]
    labels: dict[str, list[str]]
    total: float
    per_row: Tensor | None
    title: str
    value_name: str
    facts: dict[str, float]
    _exact: Callable[[], Tensor] | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each share: its place, the token there, and ``value``."""
        import pandas as pd

        columns: dict[str, Any] = {}
        for axis, at in zip(self.axes, np.indices(self.values.shape), strict=True):
            names = np.array(self.labels[axis], dtype=object)[at.ravel()]
            numbered = axis in ("layer", "head", "pos", "source_pos")
            columns[axis] = at.ravel() if numbered else names
            if axis in ("pos", "source_pos"):
                columns["token" if axis == "pos" else "source_token"] = names
        frame = pd.DataFrame(columns | {"value": self.values.numpy().ravel()})
        return frame[frame["value"].notna()].reset_index(drop=True)

    def top(self, k: int = 10) -> pd.DataFrame:
        """The ``k`` largest shares, of either sign, the largest first."""
        order = self.frame["value"].abs().sort_values(ascending=False, kind="stable").index
        return self.frame.loc[order[:k]].reset_index(drop=True)

    def normalized(self) -> Tensor:
        """Shares as parts of ``total``, the metric's whole difference.

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
        from neox_lab.experiments.attribution.agreement import compare

        if self._exact is None:
            raise InputError(
                "Only a result that still knows its model can be checked, and this one came from "
                "a file. Compute it again, or use attribution.compare(result, exact_values)."
            )
        return compare(self, self._exact(), k)

    def view(self) -> View:
        """A map for two and three axes, bars (the largest shares) for one."""
        from neox_lab.views import HeatmapView

        if len(self.axes) == 1 or "writer" in self.axes:
            return self.bars()
        rows, columns = self.axes[0], self.axes[-1]
        values, names = self.values, self.labels
        if self.axes == ("layer", "pos", "head"):  # a row for each head, a column for each token
            values = values.transpose(1, 2)
            columns = "pos"
        row_labels = names[rows]
        if len(self.axes) == 3:
            rows = "head"
            row_labels = [f"L{layer}H{head}" for layer in names["layer"] for head in names["head"]]
        return HeatmapView(
            values.reshape(len(row_labels), -1),
            row_labels,
            names[columns],
            "layer · head" if len(self.axes) == 3 else rows,
            {"pos": "position"}.get(columns, columns),
            self.value_name,
            title=self.title,
        )

    def bars(self, k: int = BARS) -> View:
        """The ``k`` largest shares as bars."""
        from neox_lab.views import BarsView

        top = self.top(k)
        names = part_names(top)
        count = int(self.values.isfinite().sum())
        note = f"{self.value_name}; the {len(top)} largest of {count}, total {self.total:.3f}"
        return BarsView(names, top["value"].tolist(), self.title, note)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the model to a JSON file.

        Raises:
            CheckpointError: the file cannot be written.
        """
        content: dict[str, Any] = {"format": _FORMAT, "kind": type(self).__name__}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "_exact":
                is_tensor = isinstance(value, Tensor)
                content[field.name] = {"float32": value.tolist()} if is_tensor else value
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(content), encoding="utf-8")
            partial.replace(target)
        except OSError as error:
            raise CheckpointError(f"Cannot write {str(path)!r}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """A result that ``save`` wrote; it cannot be checked any more.

        Raises:
            CheckpointError: there is no such file, or it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format", None) != _FORMAT or content.pop("kind") != cls.__name__:
                raise ValueError(f"not a saved {cls.__name__}")
            for name, value in content.items():
                if isinstance(value, dict) and value.keys() == {"float32"}:
                    content[name] = torch.tensor(value["float32"], dtype=torch.float32)
            return cls(**content | {"axes": tuple(content["axes"])})
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise CheckpointError(f"Cannot read {str(path)!r}: {error}") from error


def part_names(frame: pd.DataFrame) -> list[str]:
    """A short name for each row of a frame: ``L2H1``, ``L2 the@3``, ``L0H1 → MLP3``."""
    return [_part_name(row) for row in frame.to_dict("records")]


def _part_name(row: dict[Any, Any]) -> str:
    if "writer" in row:
        where = f" {row['token']}" if "token" in row else ""
        return f"{row['writer']} → {row['reader']}{where}"
    parts = [str(row["component"])] if "component" in row else []
    if "layer" in row:
        parts.append(f"L{row['layer']}" + (f"H{row['head']}" if "head" in row else ""))
    for pos, token in (("pos", "token"), ("source_pos", "source_token")):
        if pos in row:
            parts.append(f"{row[token]}@{row[pos]}")
    return " ".join(parts)
