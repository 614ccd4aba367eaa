"""The built-in model: where its checkpoints are in the package.

    weights_directory()                               # the finished model, and the tokenizer
    weights_directory("step512")                      # early in its training
    weights_directory(head="question-answering")      # with a trained head

What the model has learned, and how it was made, is in the room ``gym``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from neox_lab.checks import TEXT, check, or_none, shown
from neox_lab.errors import CheckpointError
from neox_lab.steps import nearest_revisions

_WEIGHTS = Path(__file__).parent / "gym" / "weights"


def weights_directory(revision: str | None = None, head: str = "causal-lm") -> Path:
    """The directory of a built-in checkpoint, to give to any ``from_pretrained``.

    The tokenizer is in ``weights_directory()`` only, and so is ``training.json``: how the model
    was trained.

    Args:
        revision: one of ``revisions()``; None or ``main`` is the finished model.
        head: ``question-answering``, ``sequence-classification`` or ``token-classification`` for
            the finished model with that head, trained. Any other head, and any head of a revision,
            is made from the language model.

    Raises:
        CheckpointError: no such revision; the message names those that exist.
    """
    check("head", head, TEXT, CheckpointError)
    revision = check("revision", revision, or_none(TEXT), CheckpointError)
    if revision is None or revision == "main":
        trained = _WEIGHTS / "heads" / head
        return trained if os.path.isdir(trained) else _WEIGHTS
    known = revisions()
    if revision not in known:
        raise CheckpointError(
            f"The built-in model has no revision {shown(revision)}; it has "
            f"{', '.join(known)}, main.{nearest_revisions(revision, known)}"
        )
    return _WEIGHTS if revision == known[-1] else _WEIGHTS / "revisions" / revision


def revisions() -> tuple[str, ...]:
    """Names of the built-in model's checkpoints over training, the earliest first.

    They are called as Pythia's: ``step512`` has the weights after 512 steps. The last is the
    finished model.
    """
    record = json.loads((_WEIGHTS / "training.json").read_text(encoding="utf-8"))
    kept = [path.name for path in (_WEIGHTS / "revisions").glob("step*")]
    kept.sort(key=lambda name: int(name.removeprefix("step")))
    return (*kept, f"step{record['steps']}")


def is_inside(name_or_path: str) -> bool:
    """Whether a model that came from there is the built-in one; a name of nothing is."""
    return not name_or_path or _WEIGHTS in (Path(name_or_path), *Path(name_or_path).parents)
