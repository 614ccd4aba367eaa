"""The gym: a small model that comes with the package, and the small world it has learned.

    model = nl.load()                          # a GPT-NeoX of about one million weights
    nl.gym.tasks()                             # what it can do, with examples
    nl.gym.evaluate(model)                     # how well; works for other models too
    nl.gym.TASKS["ioi"].pairs(8)               # prompts for patching
    nl.gym.sealed.evaluate(model)              # how well in sentences of other kinds
    nl.load(revision="step512")                # the same model, early in its training
    nl.load(head="question-answering")         # with a head that was trained on the same world
    nl.gym.dictionaries(model)                 # features at every layer, trained on the same world
    nl.gym.planted()                           # a model whose induction heads were written by hand
    nl.gym.planted_ioi()                       # planted circuits with their true edges and prompts
    nl.gym.planted_variable()                  # one whose variables were
    nl.gym.CAUSAL["ioi"].pairs("receiver", 99) # pairs for interchange interventions
    nl.gym.pairs(model, "ioi", 8)              # those of a task that this tokenizer can be asked
    nl.gym.check("likeliest token", " Rome")   # the notebooks' exercises: right, or not yet

It loads in milliseconds and needs no network. ``world`` has the eight tasks, ``labelled`` the data
of the heads, ``sealed`` items that nothing here was trained or chosen by, ``training_texts`` what
else the model was told; ``corpus``, ``train``, ``head_training`` and ``dictionary_training`` are
the scripts that made it, and ``README.md`` beside this file says what it can and cannot do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from neox_lab.built_in import revisions, weights_directory

if TYPE_CHECKING:
    from neox_lab.gym import labelled, sealed
    from neox_lab.gym.built_in_dictionaries import dictionaries, dictionary_card, named_features
    from neox_lab.gym.causal import CAUSAL, CausalTask
    from neox_lab.gym.course import check, claim, course_model, course_training, exercises
    from neox_lab.gym.evaluation import Evaluation, evaluate, pairs, repeat_loss, tasks
    from neox_lab.gym.examples import Example, Pair, Task
    from neox_lab.gym.planting import planted
    from neox_lab.gym.planting_induction import planted_induction
    from neox_lab.gym.planting_ioi import planted_ioi
    from neox_lab.gym.planting_parts import PlantedCircuit
    from neox_lab.gym.planting_two_step import planted_two_step
    from neox_lab.gym.planting_variable import planted_variable
    from neox_lab.gym.world import TASKS

_HOME = {
    "CAUSAL": "causal",
    "CausalTask": "causal",
    "Evaluation": "evaluation",
    "Example": "examples",
    "Pair": "examples",
    "PlantedCircuit": "planting_parts",
    "TASKS": "world",
    "Task": "examples",
    "check": "course",
    "claim": "course",
    "course_model": "course",
    "course_training": "course",
    "dictionaries": "built_in_dictionaries",
    "dictionary_card": "built_in_dictionaries",
    "evaluate": "evaluation",
    "exercises": "course",
    "named_features": "built_in_dictionaries",
    "pairs": "evaluation",
    "planted": "planting",
    "planted_induction": "planting_induction",
    "planted_ioi": "planting_ioi",
    "planted_two_step": "planting_two_step",
    "planted_variable": "planting_variable",
    "repeat_loss": "evaluation",
    "tasks": "evaluation",
}

__all__ = [
    "CAUSAL",
    "TASKS",
    "CausalTask",
    "Evaluation",
    "Example",
    "Pair",
    "PlantedCircuit",
    "Task",
    "check",
    "claim",
    "course_model",
    "course_training",
    "dictionaries",
    "dictionary_card",
    "evaluate",
    "exercises",
    "labelled",
    "named_features",
    "pairs",
    "planted",
    "planted_induction",
    "planted_ioi",
    "planted_two_step",
    "planted_variable",
    "repeat_loss",
    "revisions",
    "sealed",
    "tasks",
    "weights_directory",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f"neox_lab.gym.{_HOME[name]}"), name)
    if name in ("labelled", "sealed"):
        return importlib.import_module(f"neox_lab.gym.{name}")
    raise AttributeError(f"module 'neox_lab.gym' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *__all__})
