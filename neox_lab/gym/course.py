"""What the notebooks share: the model they look into, and exercises that check themselves.

    model = nl.load(nl.gym.course_model())     # NEOX_LAB_MODEL, or the built-in model
    nl.gym.check("likeliest token", ...)       # the question; nothing is answered yet
    nl.gym.check("likeliest token", " Rome")   # right, or not yet and a hint
    nl.gym.exercises()                         # all of them
    name, steps = nl.gym.course_training()     # the same over training, or the built-in model's
    nl.gym.claim(score > 0.5, "a head does it")  # a sentence that is held against the numbers

Right answers are not written down anywhere: each is computed from the model, so that an exercise
has one for every model.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
from typing import TYPE_CHECKING

from neox_lab.checks import SWITCH, TEXT, require_model
from neox_lab.checks import check as checked
from neox_lab.errors import CheckpointError, InputError, NeoxLabError
from neox_lab.family.structure import evaluating
from neox_lab.frames import make_frame
from neox_lab.gym.exercise_table import EXERCISES
from neox_lab.hub import local_directory
from neox_lab.interrupts import whole_answers
from neox_lab.model.output_heads import require_head

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import LanguageModel

VARIABLE = "NEOX_LAB_MODEL"
_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What ``check`` says; true if the answer was right.

    Attributes:
        right: whether it was.
        words: the same for people, with a hint where it was not.
    """

    right: bool
    words: str

    def __bool__(self) -> bool:
        """Whether the answer was right."""
        return self.right

    def __repr__(self) -> str:
        """The words, in lines."""
        return "\n".join(textwrap.wrap(self.words, _WIDTH))


def course_model() -> str | None:
    """The model that the notebooks look into: what the environment variable NEOX_LAB_MODEL names.

    Returns:
        A directory or hub id, to give to ``nl.load`` or ``nl.dynamics``; None, the built-in model,
        where the variable is empty or not set.
    """
    return os.environ.get(VARIABLE) or None


def course_training() -> tuple[str | None, str]:
    """The training that the notebooks look into: that of ``course_model()`` where it has revisions.

    A directory that holds one checkpoint has none. Then it is the built-in model's, and a printed
    sentence says so.

    Returns:
        What to give to ``nl.dynamics``: a directory of checkpoints, a hub id or None, the built-in
        model; and which of its steps, ``"all"`` of the built-in model and ``"log"`` of others.
    """
    from neox_lab.dynamics import revisions

    name = course_model()
    if name is not None and local_directory(name) is not None:
        try:
            revisions(name)
        except CheckpointError:  # a checkpoint without revisions
            print(
                f"{name} is one checkpoint, without revisions of its training; what can be shown "
                "over training is the built-in model."
            )
            name = None
    return name, "all" if name is None else "log"


def claim(holds: object, sentence: str) -> None:
    """Print a sentence about the model with whether it holds of this one.

    The notebooks were written about the built-in model. Of another one their sentences may be
    false, and then are said to be.

    Args:
        holds: whether it does: True or False, or a tensor or array of one of them.
        sentence: what is claimed.

    Raises:
        NeoxLabError: it does not hold of the built-in model.
        InputError: ``sentence`` is no text, or ``holds`` neither true nor false.
    """
    sentence = checked("sentence", sentence, TEXT, InputError)
    sentence = sentence.encode("utf-8", "backslashreplace").decode("utf-8")
    held = checked("holds", holds, SWITCH, InputError)
    if not held and course_model() is None:
        raise NeoxLabError(f"This should hold of the built-in model: {sentence}")
    print("Holds:" if held else "Does not hold of this model:", sentence)


def exercises() -> pd.DataFrame:
    """Every exercise of the notebooks, in their order.

    Returns:
        One row an exercise: ``notebook``, where it is asked; ``name``; ``question``; ``answer``,
        what one looks like.
    """
    return make_frame(
        {
            "notebook": each.notebook,
            "name": name,
            "question": each.question,
            "answer": each.form.kind.words,
        }
        for name, each in EXERCISES.items()
    )


def check(exercise: str, answer: object = ..., model: LanguageModel | None = None) -> Verdict:
    """Say whether the answer to an exercise is right.

    Args:
        exercise: its name; ``nl.gym.exercises()`` lists them.
        answer: yours, also as pictures and tables write it, such as ``"L1H2"`` for ``(1, 2)``;
            without one, or with ``...``, the question is asked.
        model: the model it is about; by default ``course_model()``, or what the exercise names.

    Returns:
        A verdict, which is shown in words: right, or not yet, what is missing where that can be
        told, and a hint.

    Raises:
        InputError: no such exercise, an answer that is of another kind than what is asked for, or
            this is no model.
    """
    asked = EXERCISES[checked("exercise", exercise, TEXT, InputError)]
    if model is not None:
        require_model(model)
        require_head(model.head, asked.head)
    if answer is ...:
        return Verdict(
            False, f"{asked.question} (Your answer, {asked.form.kind.words}, in place of ...)"
        )
    answer = checked("answer", asked.form.read(answer), asked.form.kind, InputError)
    model = asked.model(course_model()) if model is None else model
    with evaluating(model), whole_answers():
        found = asked.judge(model, answer)
    if found is True:
        return Verdict(True, "Right.")
    missing = f"{found} " if isinstance(found, str) else ""
    return Verdict(False, f"Not yet. {missing}Hint: {asked.hint}")
