"""Steering: directions in activations, found, judged, and pushed along.

    happy = nl.steering.direction(model, good, bad, site=("resid_post", 2))
    with happy.steer(scale=2.0, positions="generated"):
        model.generate("The film was")

``finding`` makes a direction out of examples (``contrast`` reads them, ``fitting`` does the
arithmetic); ``directions`` is what it then is; ``edits`` says what steering does to a vector, and
``places`` at which positions. ``projecting``, ``curve`` and ``side_effects`` are questions about a
direction, ``removing`` takes it out of a model, ``saving``, ``loading`` and ``gguf`` keep it.
"""

from neox_lab.steering.contrast import token
from neox_lab.steering.directions import Direction, steer
from neox_lab.steering.finding import direction
from neox_lab.steering.loading import load

__all__ = ["Direction", "direction", "load", "steer", "token"]
