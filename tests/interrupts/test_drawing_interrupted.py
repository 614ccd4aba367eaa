"""An interrupt while matplotlib draws."""

from __future__ import annotations

import signal

import pytest
from matplotlib.artist import Artist

from neox_lab.views.drawing import Sheet, encode


def test_an_interrupt_waits_until_the_picture_is_drawn() -> None:
    drawn = []

    class Striking(Artist):
        """Stands for a compiled part that turns KeyboardInterrupt into another error."""

        def draw(self, renderer: object) -> None:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ValueError("Invalid bounding box") from None
            drawn.append(renderer)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sheet = Sheet(1, 1)
        sheet.figure.add_artist(Striking())
        with pytest.raises(KeyboardInterrupt):
            encode(sheet.figure, "png", 72)
    finally:
        signal.signal(signal.SIGINT, before)
    assert drawn, "it was drawn to its end"
