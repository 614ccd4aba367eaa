"""What is selected in the explorer, as the browser says it and as Python needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neox_lab.widgets.explorer.reading import Reading


@dataclass(frozen=True)
class Selection:
    """A place in a run.

    Attributes:
        position: the selected token.
        row: of the lens.
        layer: of the selected head.
        head: its number.
        measure: what colours the heads; empty for the first there is.
    """

    position: int
    row: int
    layer: int
    head: int
    measure: str

    @classmethod
    def of(cls, state: Mapping[str, object], reading: Reading) -> Selection:
        """Read what a browser said.

        What it did not say, or what cannot be, is the end of the text, the last row and layer, and
        the first head, as in ``within`` of ``views/assets/explorer.js``.
        """
        view = reading.view

        def at(name: str, count: int, other: int = -1) -> int:
            value = state.get(name)
            fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
            return value if fits and isinstance(value, int) else other % count

        measure = state.get("measure")
        return cls(
            position=at("position", reading.length),
            row=at("row", len(view.lens.row_labels)),
            layer=at("layer", len(view.attention.layers)),
            head=at("head", len(view.attention.heads), 0),
            measure=measure if isinstance(measure, str) else "",
        )
