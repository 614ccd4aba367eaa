"""The heads at work: train, evaluate and use them.

    nl.tasks.classification    texts to labels or numbers
    nl.tasks.answering         questions to stretches of a text
    nl.tasks.tagging           words to tags, tags to entities
    nl.tasks.language          further training of a language model
    nl.tasks.likelihood        perplexity, continuations, multiple choice
    nl.tasks.harness           the model for the evaluation harness ``lm_eval``

Each of the first three has ``train``, ``evaluate`` and ``predict``; what they return shows itself
in a notebook and has a ``.frame``. All of them train through ``tasks.training.fit``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from neox_lab.tasks.settings import TrainingSettings

if TYPE_CHECKING:
    from neox_lab.tasks import answering, classification, harness, language, likelihood, tagging

_ROOMS = ("answering", "classification", "harness", "language", "likelihood", "tagging")

__all__ = [
    "TrainingSettings",
    "answering",
    "classification",
    "harness",
    "language",
    "likelihood",
    "tagging",
]


def __getattr__(name: str) -> Any:
    """Import a task when it is first asked for."""
    if name in _ROOMS:
        return importlib.import_module(f"neox_lab.tasks.{name}")
    raise AttributeError(f"module 'neox_lab.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, for completion."""
    return sorted({*globals(), *__all__})
