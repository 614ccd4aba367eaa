"""Live controls in a notebook, where a picture alone is not enough: the kernel works on request.

    nl.widgets.generation(model, "The king")              # write, see alternatives, branch
    nl.widgets.attention(model, "The cat sat")            # another text, another map
    nl.widgets.logit_lens(model, "The cat sat")
    nl.widgets.patching(model, clean, corrupted, " Paris", " Rome")   # click a cell, read on
    nl.widgets.probing(result, model)
    nl.widgets.steering(direction, "The film was")        # a slider; the text beside the original
    nl.widgets.classification()                           # the built-in heads, or a model of yours
    nl.widgets.answering()
    nl.widgets.tagging()

Every widget has ``run``, ``stop``, ``wait``, ``pin``, ``close`` and ``result``; see
``live.LiveWidget``. The work is done in one thread, one request after the other, and can be
stopped. What a widget shows stays in the notebook as an ordinary, still clickable picture when the
kernel is gone.
"""

from __future__ import annotations

from neox_lab.widgets._attention import AttentionWidget, attention
from neox_lab.widgets._generation import GenerationWidget, generation
from neox_lab.widgets._logit_lens import LogitLensWidget, logit_lens
from neox_lab.widgets._patching import PatchingWidget, patching
from neox_lab.widgets._probing import ProbingWidget, probing
from neox_lab.widgets._steering import SteeringWidget, steering
from neox_lab.widgets._task_heads import (
    AnsweringWidget,
    ClassificationWidget,
    TaggingWidget,
    answering,
    classification,
    tagging,
)
from neox_lab.widgets.live import LiveWidget

__all__ = [
    "AnsweringWidget",
    "AttentionWidget",
    "ClassificationWidget",
    "GenerationWidget",
    "LiveWidget",
    "LogitLensWidget",
    "PatchingWidget",
    "ProbingWidget",
    "SteeringWidget",
    "TaggingWidget",
    "answering",
    "attention",
    "classification",
    "generation",
    "logit_lens",
    "patching",
    "probing",
    "steering",
    "tagging",
]
