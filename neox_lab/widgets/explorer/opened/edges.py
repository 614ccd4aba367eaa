"""The edges that carry the difference of both prompts, and whether they do it alone."""

from __future__ import annotations

from neox_lab.views.drawing import number
from neox_lab.widgets.explorer.questions import Answer, Asked

SHARE, RANDOM = 0.05, 20


def circuit(asked: Asked) -> Answer:
    """The edges of largest score as a network, beside random circuits of as many."""
    from neox_lab.circuits import scores

    metric, other = asked.difference(), asked.other()
    scored = scores(asked.model, asked.first.prompt, other.prompt, metric)
    found = scored.circuit(share=SHARE)
    tested = found.evaluate(random=RANDOM)
    chance = tested.random["faithfulness"]
    data = {
        "network": {**found.view().data(), "attention": None},
        "note": f"{found.edges:,} of {found.all_edges:,} edges, those whose removal should change "
        f"the logit of {asked.pieces} most: what a part reads of another is taken from the second "
        "prompt instead. A click on a part selects it.",
        "control": f"With all other edges removed {number(tested.faithfulness, 2)} of the "
        "difference is left (1 is the whole model), with only these removed "
        f"{number(tested.left_outside, 2)}; of {RANDOM} random circuits of as many edges "
        f"{number(chance.mean(), 2)} on average, {100 * tested.better_than_random:.0f} % of them "
        "further from 1. Found and tested on the same pair of prompts, so there is no interval "
        "and it says little of others.",
        "code": f"metric = {asked.difference_code}\n"
        "scores = nl.circuits.scores(model, prompt, second, metric)\n"
        f"circuit = scores.circuit(share={SHARE})\n"
        f"evaluated = circuit.evaluate(random={RANDOM})",
    }
    return Answer("circuit", data, found)
