"""The expected token over checkpoints: with what stands before it, and without."""

from __future__ import annotations

from dataclasses import replace

import torch

from neox_lab.built_in import is_inside, revisions
from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.views import CurvesView
from neox_lab.widgets.explorer.questions import Answer, Asked

MEASURE = """def measure(model):
    ids = model.to_tokens(prompt)[:, : {position} + 1]
    runs = [("in the prompt", ids), ("after the last token alone", ids[:, -1:])]
    return {{name: model(run).logits[0, -1].softmax(-1)[{token}].item() for name, run in runs}}

measured = nl.dynamics.run(measure{source}, steps={steps})"""


def training(asked: Asked) -> Answer:
    """Probability of the token that the present checkpoint expects, at every checkpoint."""
    from neox_lab.dynamics import run

    source, names = _source(asked)
    position, token = asked.chosen.position, int(asked.first.about[asked.chosen.position])
    ids = asked.first.ids[:, : position + 1]
    done = 0

    @torch.no_grad()
    def measure(model: GPTNeoXForCausalLM) -> dict[str, float]:
        nonlocal done
        asked.report(done, len(names))
        done += 1
        runs = {"in the prompt": ids, "after the last token alone": ids[:, -1:]}
        return {
            name: float(model(each).logits[0, -1].float().softmax(-1)[token])
            for name, each in runs.items()
        }

    found = run(measure, source, names, progress=False)
    data = {
        "of": {"position": position},
        "curves": _on_one_scale(found.curves(), asked.token).data(),
        "names": names,
        "note": f"Probability of {asked.token} after token {position}, at {len(names)} checkpoints "
        "of the training. A click on one goes to it, where a slider stands above.",
        "control": "The second line is the control: the same token after the selected one alone, "
        "without what stands before it; what it reaches needs no context. One prompt, so there is "
        "no interval.",
        "code": MEASURE.format(
            position=position,
            token=token,
            source="" if source is None else f", {source!r}",
            steps=names,
        ),
    }
    return Answer("training", data, found)


def _on_one_scale(view: CurvesView, token: str) -> CurvesView:
    """Both lines in one panel: they are probabilities of the same token."""
    lines = {name: replace(line, y_label=None) for name, line in view.lines.items()}
    return CurvesView(
        f"{token} over training", lines, "step", f"probability of {token}", view.x_names
    )


def _source(asked: Asked) -> tuple[str | None, list[str]]:
    """Where checkpoints are, and their names.

    Raises:
        InputError: nobody said which, or only functions load them.
    """
    given, built_in = asked.tools.revisions, is_inside(asked.model.name_or_path)
    if given is None and built_in:
        return None, list(revisions())
    if given is None:
        raise InputError(
            "Nobody said which checkpoints: nl.explore(model, prompt, revisions=[...]); "
            "nl.dynamics.revisions(name) lists those of a model."
        )
    if not given.by_name:
        raise InputError(
            "These checkpoints are loaded by functions, which nl.dynamics.run cannot name; move "
            "the slider above instead."
        )
    return (None if built_in else str(asked.model.name_or_path)), list(given.names)
