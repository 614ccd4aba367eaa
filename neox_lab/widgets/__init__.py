"""Live controls in a notebook, where a picture alone is not enough: the kernel works on request.

    nl.widgets.generation(model, "The king")              # write, see alternatives, branch
    nl.widgets.attention(model, "The cat sat")            # another text, another map
    nl.widgets.logit_lens(model, "The cat sat")
    nl.widgets.patching(model, clean, corrupted, " Paris", " Rome")   # click a cell, read on
    nl.widgets.probing(result, model)
    nl.widgets.classification()                           # the built-in heads, or a model of yours
    nl.widgets.answering()
    nl.widgets.tagging()

Every widget has ``run``, ``stop``, ``wait``, ``pin``, ``close`` and ``result``; see
``live.LiveWidget``. The work is done in one thread, one request after the other, and can be
stopped. What a widget shows stays in the notebook as an ordinary, still clickable picture when the
kernel is gone.
"""

from __future__ import annotations

from typing import Any

from neox_lab.widgets._attention import AttentionWidget
from neox_lab.widgets._generation import GenerationWidget
from neox_lab.widgets._logit_lens import LogitLensWidget
from neox_lab.widgets._patching import PatchingWidget
from neox_lab.widgets._probing import ProbingWidget
from neox_lab.widgets._task_heads import AnsweringWidget, ClassificationWidget, TaggingWidget
from neox_lab.widgets.live import LiveWidget

__all__ = [
    "LiveWidget",
    "answering",
    "attention",
    "classification",
    "generation",
    "logit_lens",
    "patching",
    "probing",
    "tagging",
]


def generation(model: Any, prompt: str = "") -> GenerationWidget:
    """Continue a prompt token by token; click a token to see what else might have come.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        prompt: a text to begin with; nothing is written until asked for.

    Raises:
        InputError: a model that cannot write.
    """
    return GenerationWidget(model, prompt)


def attention(model: Any, text: str) -> AttentionWidget:
    """Attention maps of a text that can be changed.

    Args:
        model: any of the classes, with a tokenizer.
        text: what it reads first.
    """
    return AttentionWidget(model, text)


def logit_lens(model: Any, text: str) -> LogitLensWidget:
    """The logit lens on a text that can be changed.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        text: what it reads first.

    Raises:
        InputError: a model without an unembedding.
    """
    return LogitLensWidget(model, text)


def patching(model: Any, clean: str, corrupted: str, correct: str, wrong: str) -> PatchingWidget:
    """Activation patching as a map; click a field to run it again and read on.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        clean: the prompt with the behaviour.
        corrupted: the prompt without it, of as many tokens.
        correct: the one token that the clean prompt makes likely.
        wrong: the one token that the corrupted prompt makes likely.

    Raises:
        InputError: a model that cannot write.
    """
    return PatchingWidget(model, clean, corrupted, correct, wrong)


def probing(result: Any, model: Any = None, text: str = "") -> ProbingWidget:
    """Probes site by site: scores, mistakes, and with a model their answers to any text.

    Args:
        result: what ``nl.probing.probe`` returned.
        model: the model that was probed; None for scores and mistakes only.
        text: what the probes are asked about first.
    """
    return ProbingWidget(result, model, text)


def classification(model: Any = None, text: str = "") -> ClassificationWidget:
    """Classify a text that can be changed.

    Args:
        model: a GPTNeoXForSequenceClassification with a tokenizer; None for the built-in one.
        text: what it reads first; for the built-in one an example if not given.

    Raises:
        InputError: a model with another head.
    """
    return ClassificationWidget(model, text)


def answering(model: Any = None, question: str = "", passage: str = "") -> AnsweringWidget:
    """Answer questions with a stretch of a text, both of which can be changed.

    Args:
        model: a GPTNeoXForQuestionAnswering with a tokenizer; None for the built-in one.
        question: what is asked first; for the built-in one an example if neither is given.
        passage: the text.

    Raises:
        InputError: a model with another head.
    """
    return AnsweringWidget(model, question, passage)


def tagging(model: Any = None, text: str = "") -> TaggingWidget:
    """Mark the entities in a text that can be changed.

    Args:
        model: a GPTNeoXForTokenClassification with a tokenizer; None for the built-in one.
        text: what it reads first; for the built-in one an example if not given.

    Raises:
        InputError: a model with another head.
    """
    return TaggingWidget(model, text)
