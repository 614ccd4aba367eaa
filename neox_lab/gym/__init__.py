"""The gym: a small model that comes with the package, and the small world it has learned.

    model = nl.load()                          # a GPT-NeoX of about one million weights
    nl.gym.tasks()                             # what it can do, with examples
    nl.gym.evaluate(model)                     # how well; works for other models too
    nl.gym.TASKS["ioi"].pairs(8)               # prompts for patching
    nl.load(revision="step512")                # the same model, early in its training
    nl.load(head="question-answering")         # with a head that was trained on the same world
    nl.gym.planted()                           # a model whose induction heads were written by hand

It loads in milliseconds and needs no network. ``world`` has the eight tasks and ``labelled`` the
data of the heads, ``lore`` what else the model was told; ``corpus``, ``train`` and ``heads`` are
the scripts that made it, and ``README.md`` beside this file says what it can and cannot do.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neox_lab.errors import CheckpointError, nearest

if TYPE_CHECKING:
    from neox_lab.gym import labelled
    from neox_lab.gym.evaluation import Evaluation, evaluate, repeat_loss, tasks
    from neox_lab.gym.examples import Example, Pair, Task
    from neox_lab.gym.planting import planted
    from neox_lab.gym.world import TASKS

_HOME = {
    "Evaluation": "evaluation",
    "Example": "examples",
    "Pair": "examples",
    "TASKS": "world",
    "Task": "examples",
    "evaluate": "evaluation",
    "planted": "planting",
    "repeat_loss": "evaluation",
    "tasks": "evaluation",
}

__all__ = [
    "TASKS",
    "Evaluation",
    "Example",
    "Pair",
    "Task",
    "evaluate",
    "labelled",
    "planted",
    "repeat_loss",
    "revisions",
    "tasks",
    "weights_directory",
]


def weights_directory(revision: str | None = None, head: str = "causal-lm") -> Path:
    """The directory of a built-in checkpoint, to give to any ``from_pretrained``.

    Args:
        revision: one of ``revisions()``; None or ``main`` is the finished model.
        head: ``question-answering``, ``sequence-classification`` or ``token-classification`` for
            the finished model with that head, trained. Any other head, and any head of a revision,
            is made from the language model.

    The tokenizer is in ``weights_directory()`` only, and so is ``training.json``: how the model
    was trained.

    Raises:
        CheckpointError: no such revision; the message names those that exist.
    """
    weights = Path(__file__).parent / "weights"
    if revision in (None, "main"):
        trained = weights / "heads" / head
        return trained if trained.is_dir() else weights
    assert revision is not None
    known = revisions()
    if revision not in known:
        raise CheckpointError(
            f"The built-in model has no revision {revision!r}; it has {', '.join(known)}, main."
            f"{nearest(revision, known)}"
        )
    return weights if revision == known[-1] else weights / "revisions" / revision


def revisions() -> tuple[str, ...]:
    """Names of the built-in model's checkpoints over training, the earliest first.

    They are called as Pythia's: ``step512`` has the weights after 512 steps. The last is the
    finished model.
    """
    weights = Path(__file__).parent / "weights"
    record = json.loads((weights / "training.json").read_text(encoding="utf-8"))
    kept = [path.name for path in (weights / "revisions").glob("step*")]
    kept.sort(key=lambda name: int(name.removeprefix("step")))
    return (*kept, f"step{record['steps']}")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f"neox_lab.gym.{_HOME[name]}"), name)
    if name == "labelled":
        return importlib.import_module("neox_lab.gym.labelled")
    raise AttributeError(f"module 'neox_lab.gym' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *__all__})
