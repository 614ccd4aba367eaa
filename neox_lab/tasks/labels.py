"""What the labels of a text classifier mean: one of several, any of several, or a number.

``config.problem_type`` says which, and ``config.id2label`` names them. ``Labels`` turns what a
table holds into what the loss wants, logits into chances, and both back into what people read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.data.statistics import Floats
from neox_lab.data.tables import listed, refuse, whole_number

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)

Target: TypeAlias = int | float | list[float]
"""What the loss wants: a class number, a number, or a 0 or 1 for each label."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of a classifier.

    Attributes:
        names: of the labels, in order.
        problem: ``SINGLE``, ``MULTI`` or ``REGRESSION``.
    """

    names: list[str]
    problem: str

    @classmethod
    def of(cls, config: GPTNeoXConfig) -> Labels:
        """Those of a configuration, which is told the kind of problem if it does not say."""
        if config.problem_type is None:
            config.problem_type = REGRESSION if config.num_labels == 1 else SINGLE
        names = [str(config.id2label[number]) for number in range(config.num_labels)]
        return cls(names, config.problem_type)

    def targets(self, cells: Sequence[object]) -> list[Target]:
        """What the loss wants of a column of labels.

        Raises:
            DataError: labels that are none of these; the rows are named.
        """
        wrong: list[tuple[int, str]] = []
        targets: list[Target] = []
        for row, cell in enumerate(cells):
            try:
                targets.append(self._target(cell))
            except (TypeError, ValueError, OverflowError):
                wrong.append((row, f"{cell!r:.60}"))
        expected = {
            SINGLE: f"one of {', '.join(self.names)}",
            MULTI: f"a list of some of {', '.join(self.names)}, each once",
            REGRESSION: "a number",
        }[self.problem]
        advice = f"Expected {expected} (config.id2label, config.problem_type)."
        refuse("Unknown labels", wrong, advice)
        return targets

    def _target(self, cell: object) -> Target:
        if self.problem == REGRESSION:
            return _number(cell)
        if self.problem == MULTI:
            there = self._classes(listed(cell))
            return [float(number in there) for number in range(len(self.names))]
        return self._class(cell)

    def _classes(self, cell: object) -> set[int]:
        """Numbers of the labels in a list; zeros and ones for each label are not such a list."""
        if isinstance(cell, str | bytes | Mapping) or not isinstance(cell, Iterable):
            raise ValueError(cell)
        found = [self._class(name) for name in cell]
        if len(set(found)) < len(found):
            raise ValueError(cell)
        return set(found)

    def _class(self, cell: object) -> int:
        """Number of a class given by name or number; what is also a name is the name."""
        name = str(cell) if isinstance(cell, str | bool | np.bool_) else str(whole_number(cell))
        if name in self.names:
            return self.names.index(name)
        number = whole_number(cell)
        if not 0 <= number < len(self.names):
            raise ValueError(cell)
        return number

    def shown(self, target: Target) -> str | list[str] | float:
        """A target as people read it: a name, a list of names, or a number."""
        if isinstance(target, list):
            return [name for name, there in zip(self.names, target, strict=True) if there]
        return self.names[int(target)] if self.problem == SINGLE else target

    def values(self, logits: Tensor) -> Floats:
        """Probabilities ``[text, label]`` of logits, float64; for regression the logits as is."""
        if self.problem == SINGLE:
            return logits.double().softmax(dim=-1).numpy()
        logits = logits.double()
        return logits.sigmoid().numpy() if self.problem == MULTI else logits.numpy()

    def said(self, values: Floats) -> list[Any]:
        """What was predicted for each text, as ``shown``; None where a probability is NaN."""
        if self.problem == REGRESSION:
            return values[:, 0].tolist()
        targets = (values > 0.5).tolist() if self.problem == MULTI else values.argmax(axis=1)
        return [
            None if np.isnan(row).any() else self.shown(target)
            for target, row in zip(targets, values, strict=True)
        ]


def _number(cell: object) -> float:
    number = float(cell)  # type: ignore[arg-type]
    if not np.isfinite(number) or (isinstance(cell, str) and "_" in cell):
        raise ValueError(cell)
    return number
