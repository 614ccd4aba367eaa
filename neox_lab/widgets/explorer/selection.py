"""What is selected in the explorer, as the browser says it and as Python needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neox_lab.views.explorer import chosen
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

        measure = state.get("measure")
        return cls(
            position=chosen(state, "position", reading.length),
            row=chosen(state, "row", len(view.lens.row_labels)),
            layer=chosen(state, "layer", len(view.attention.layers)),
            head=chosen(state, "head", len(view.attention.heads), 0),
            measure=measure if isinstance(measure, str) else "",
        )
