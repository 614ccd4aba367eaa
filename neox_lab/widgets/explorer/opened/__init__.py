"""What panels show that are computed when they are opened; each a public call, with its control.

    features    of a dictionary at the selected layer, and what each does to the logit
    tuned       the tuned lens, and how close each layer comes
    steering    along a direction, beside random ones
    circuit     edges that carry the difference of both prompts, beside random circuits
    training    the expected token over checkpoints, with its context and without

``answer`` asks one of them; what is not possible becomes one line that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable

from neox_lab.errors import NeoxLabError
from neox_lab.widgets.explorer.opened.active_features import features
from neox_lab.widgets.explorer.opened.checkpoints import training
from neox_lab.widgets.explorer.opened.edges import circuit
from neox_lab.widgets.explorer.opened.steered import steering
from neox_lab.widgets.explorer.opened.tuned_lens import tuned
from neox_lab.widgets.explorer.questions import Answer, Asked

OPENED: dict[str, Callable[[Asked], Answer]] = {
    "features": features,
    "tuned": tuned,
    "steering": steering,
    "circuit": circuit,
    "training": training,
}


def answer(what: str, asked: Asked) -> Answer:
    """The answer of one panel.

    Args:
        what: its name, one of ``OPENED``.
        asked: the question's surroundings.
    """
    try:
        return OPENED[what](asked)
    except NeoxLabError as error:
        return Answer(what, {"missing": str(error)}, None)
