"""The names beside a map: all of them where they fit, else some, upright or turned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from neox_lab.views.drawing import POINTS, Sheet, text_width
from neox_lab.views.tokens import figure_texts

LARGEST_TYPE, SMALLEST_TYPE = 8.5, 5.4  # points; names that need smaller type are thinned out
SPARSE_TYPE = 6.5
LABEL_LIMIT = 14  # characters
GAP = 0.06  # inches between a map and its names


@dataclass(frozen=True)
class Marks:
    """Names along one side of a map, as (position, text) pairs.

    ``size`` is their type in points, ``cell`` the inches from one position to the next.
    """

    entries: list[tuple[int, str]]
    size: float
    cell: float

    @classmethod
    def fit(cls, names: Sequence[str], cell: float, sparse: Sequence[str] | None = None) -> Marks:
        """All ``names`` if ``cell`` inches hold a line of type, else every so many of ``sparse``.

        ``sparse`` is ``names`` if not given; for tokens, positions say more.
        """
        size, step = min(LARGEST_TYPE, cell * POINTS * 0.8), 1
        if size < SMALLEST_TYPE:
            size, names = SPARSE_TYPE, sparse or names
            steps = (lead * 10**power for power in range(9) for lead in (1, 2, 5))
            step = next(step for step in steps if step * cell >= 0.25)
        texts = figure_texts(names[::step], LABEL_LIMIT)  # cut so that none are alike
        return cls(list(zip(range(0, len(names), step), texts, strict=True)), size, cell)

    @property
    def widest(self) -> float:
        """The inches that the longest name takes."""
        return max(text_width(text, self.size) for _, text in self.entries)

    def angle(self, steepest: float) -> float:
        """How far names below a map are turned: not at all where the longest fits its place."""
        spacing = self.cell * (self.entries[1][0] if len(self.entries) > 1 else 1)
        if self.widest < spacing * 0.95:
            return 0
        return steepest if spacing > 0.22 else 90

    def height(self, steepest: float) -> float:
        """The inches that names below a map take."""
        turned = math.sin(math.radians(self.angle(steepest))) * self.widest
        return GAP + max(turned, self.size / POINTS)

    def overhang(self, steepest: float) -> float:
        """The inches by which slanted names below a map may begin left of it."""
        return math.cos(math.radians(self.angle(steepest))) * self.widest - self.cell / 2

    def beside(self, sheet: Sheet, x: float, y: float) -> None:
        """Write them left of a map whose top left corner is at a point."""
        for at, text in self.entries:
            middle = y + (at + 0.5) * self.cell
            sheet.text(x - GAP, middle, text, self.size, ha="right", va="center_baseline")

    def below(self, sheet: Sheet, x: float, y: float, steepest: float) -> None:
        """Write them below a map whose bottom left corner is at a point."""
        angle = self.angle(steepest)
        slanted = 0 < angle < 90
        style = {
            "ha": "right" if slanted else "center",
            "va": "top",
            "rotation": angle,
            "rotation_mode": "anchor" if slanted else "default",
        }
        for at, text in self.entries:
            sheet.text(x + (at + 0.5) * self.cell, y + GAP, text, self.size, **style)
