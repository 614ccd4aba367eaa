"""Live controls in a notebook, where a picture alone is not enough: the kernel computes on request.

    nl.widgets.generation(model)                      # write, look at alternatives, branch
    nl.widgets.attention(model, "The cat sat")        # another text, another map
    nl.widgets.logit_lens(model, "The cat sat")
    nl.widgets.patching(model, clean, corrupted, " Paris", " Rome")   # click a cell, read on
    nl.widgets.probing(result, model)
    nl.widgets.classification()                       # the built-in heads; or a model of yours
    nl.widgets.answering()
    nl.widgets.tagging()

Every widget has ``run``, ``stop``, ``wait``, ``pin`` and ``result``; see ``live.LiveWidget``. The
work is done in one thread, one request after the other, and can be stopped. What it shows stays in
the notebook as an ordinary, still clickable picture when the kernel is gone.
"""

from __future__ import annotations

from typing import Any

from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.maps import AttentionWidget

__all__ = ["LiveWidget", "attention"]


def attention(model: Any, text: str) -> AttentionWidget:
    """Attention maps of ``text``, which can be changed.

    Args:
        model: any of the classes, with a tokenizer.
        text: what it reads first.
    """
    return AttentionWidget(model, text)
