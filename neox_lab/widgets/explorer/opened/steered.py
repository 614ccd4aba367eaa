"""Steering along a direction: what it does to the answer, beside random directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neox_lab.views.drawing import number
from neox_lab.widgets.explorer.questions import Answer, Asked

if TYPE_CHECKING:
    from neox_lab.steering.curve import SteeringCurve
    from neox_lab.views import CurvesView

CONTROLS = 8


def steering(asked: Asked) -> Answer:
    """The metric and its cost over scales: along the given direction, or from prompt to prompt."""
    from neox_lab.steering import direction

    layer, given = asked.chosen.layer, asked.tools.direction
    if given is not None:
        along, metric, where = given.on(asked.model), asked.metric, "all"
        prompt, named = asked.first.prompt, "prompt"
        code = f"# direction: the one that was given\nmetric = {asked.metric_code}"
        of = {"position": asked.chosen.position}
        said = (
            f"The direction that was given ({along.method}), added at all tokens: the logit of "
            f"{asked.token} after token {asked.chosen.position}."
        )
        cost = "Below is what it costs: how far what the model says after all tokens moves."
    else:
        metric, other = asked.difference(), asked.other()
        texts = asked.first.prompt, other.prompt
        site = ("resid_post", layer)
        along = direction(asked.model, [texts[0]], [texts[1]], site=site)
        prompt, named, where = other.prompt, "second", "last"
        code = (
            "direction = nl.steering.direction(\n"
            f"    model, [prompt], [second], site={site!r}\n)\nmetric = {asked.difference_code}"
        )
        of = {"layer": layer}
        said = (
            "The second prompt, its last token pushed along the difference of both prompts after "
            f"layer {layer}: at 0 it is as it was, at 1 it stands where the first one does. "
            f"Upwards: the logit of {asked.pieces}."
        )
        cost = "Only the last token is pushed: what is said after the others stays as it is."
    found = along.evaluate(metric, prompt, positions=where, controls=CONTROLS)
    effect = found.effect
    controls = [abs(each) for kind in found.control_effects.values() for each in kind]
    mean = sum(controls) / len(controls)
    beside = f"at most {number(max(controls), 2)}, {number(mean, 2)} on average"
    data = {
        "of": of,
        "curves": _drawn(found, where).data(),
        "note": said,
        "control": "From the lowest to the highest scale the direction moves it by "
        f"{number(effect, 2)}; {len(controls)} directions at right angles to it, as long, by "
        f"{beside}. One prompt, so there is no interval. {cost}",
        "code": f"{code}\nsteered = direction.evaluate(\n"
        f'    metric, {named}, positions="{where}", controls={CONTROLS}\n)',
    }
    return Answer("steering", data, found)


def _drawn(found: SteeringCurve, where: str) -> CurvesView:
    """Its picture; without the costs where only the last token is steered, which has none."""
    from neox_lab.views import CurvesView

    view = found.view()
    if where != "last":
        return view
    lines = {name: line for name, line in view.lines.items() if line.y_label == found.metric}
    return CurvesView(view.title, lines, "scale", found.metric)
