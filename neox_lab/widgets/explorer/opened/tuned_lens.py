"""The tuned lens on the prompt, and how close it comes to what the model says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neox_lab.built_in import is_inside
from neox_lab.errors import InputError
from neox_lab.views.explorer import lens_data
from neox_lab.widgets.explorer.questions import Answer, Asked

if TYPE_CHECKING:
    from neox_lab.experiments.lens.tuned_result import TunedLensResult

SHOWN = 3  # likeliest tokens in each cell
DOCUMENTS, STEPS, TOKENS = 80, 40, 2**8  # two seconds on one core
TRAINING = """from random import Random
from neox_lab.gym.training_texts import sentence

random = Random(0)
documents = [" ".join(sentence(random) for _ in range(12)) for _ in range({})]
training = nl.lens.TunedLens.train(model, documents, steps={}, tokens_per_step={})
tuned = training.lens"""


def tuned(asked: Asked) -> Answer:
    """What each layer says through the lens, beside how far it is from what the model says."""
    from neox_lab.experiments.lens import tuned_lens

    ids = asked.first.ids
    if asked.tools.tuned is None:
        measured, code = _trained(asked), TRAINING.format(DOCUMENTS, STEPS, TOKENS)
        on = "held-out sentences of its world"
    else:
        measured = asked.tools.tuned.evaluate(asked.model, ids)
        code = "# tuned: the lens that was given\ntraining = tuned.evaluate(model, prompt)"
        on = "this prompt alone, so that there is no interval"
    read = tuned_lens(asked.model, ids, measured.lens, top_k=SHOWN)
    frame = measured.frame
    first = frame.iloc[0]
    data = {
        **lens_data(read.view()),
        "curves": measured.view().data(),
        "note": "What the model would say after each layer, its stream first translated into the "
        "language of the last one; underlined where the logit lens says something else.",
        "control": f"How far each layer is from what the model says, on {on} "
        f"({measured.tokens:,} tokens): at {first['layer']} {first['kl_bits']:.2f} bits, by the "
        f"logit lens {first['logit_lens_kl_bits']:.2f}. It reads what could be said given a "
        "translation, not what later layers do.",
        "code": f"{code}\ntranslated = nl.lens.tuned_lens(model, prompt, tuned, top_k={SHOWN})",
    }
    return Answer("tuned", data, read)


def _trained(asked: Asked) -> TunedLensResult:
    """A small lens of the built-in model, trained once for each checkpoint.

    Raises:
        InputError: it is another model.
    """
    from random import Random

    from neox_lab.experiments.lens import TunedLens
    from neox_lab.gym.training_texts import sentence
    from neox_lab.model.identity import identity

    if not is_inside(asked.model.name_or_path):
        raise InputError(
            "There is no tuned lens of this model here. Give one: nl.explore(model, prompt, "
            "tuned=nl.lens.TunedLens.from_pretrained(...)), or of nl.lens.TunedLens.train(...)."
        )
    weights = identity(asked.model).weights
    if weights not in asked.tools.trained:
        random = Random(0)
        documents = [" ".join(sentence(random) for _ in range(12)) for _ in range(DOCUMENTS)]
        asked.tools.trained[weights] = TunedLens.train(
            asked.model, documents, steps=STEPS, tokens_per_step=TOKENS, progress=asked.report
        )
    return asked.tools.trained[weights]
