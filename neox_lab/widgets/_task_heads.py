"""The three task heads on a text one can change: its class, an answer in it, its entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import traitlets

from neox_lab.errors import InputError
from neox_lab.family import (
    GPTNeoXForQuestionAnswering,
    GPTNeoXForSequenceClassification,
    GPTNeoXForTokenClassification,
    load,
)
from neox_lab.family.contract import HookedModel
from neox_lab.gym import labelled
from neox_lab.results import Result
from neox_lab.tasks import answering as answering_task
from neox_lab.tasks import classification as classification_task
from neox_lab.tasks import tagging as tagging_task
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job

MOST_CLASSES = 12  # explained token by token


class HeadWidget(LiveWidget):
    """What the three have in common: a model with the right head.

    Args:
        model: what reads.
        heading: title of the widget.
        verb: what its button says.
        texts: what is read first, by the name of its control.

    Raises:
        InputError: a model with another head.
    """

    head: ClassVar[str]

    def __init__(
        self, model: HookedModel, heading: str, verb: str, texts: Mapping[str, str]
    ) -> None:
        if getattr(model, "head", None) != self.head:
            raise InputError(
                f"{type(model).__name__} has the head {getattr(model, 'head', None)!r}; expected "
                f"{self.head!r}: nl.load(name, head={self.head!r})."
            )
        super().__init__(None, heading=heading, verb=verb, **texts)
        if all(texts.values()):
            self.run()

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        empty = [control["label"] for control in self.controls if not vars(given)[control["name"]]]
        if empty:
            raise InputError(f"There is nothing to read yet. Fill in: {', '.join(empty)}.")
        self._read(job, given)

    def _read(self, job: Job, given: SimpleNamespace) -> None:
        """Ask the task's own ``predict`` about what the controls said, and draw what it says."""
        raise NotImplementedError

    def _draw(self, job: Job, answer: Result) -> None:
        self._show(job, answer, [panel("answer", answer.view())], now=True)


class ClassificationWidget(HeadWidget):
    """A text, how likely each class is, and what each token does for it.

    See ``tasks.classification.predict`` and its result's ``explain``.

    Attributes:
        text: what is classified.
    """

    kinds = ("bars",)
    head = "sequence-classification"
    unit = traitlets.Unicode("label").tag(sync=True)
    text = traitlets.Unicode().tag(sync=True, control="area", label="Text")

    def __init__(
        self, model: GPTNeoXForSequenceClassification | None = None, text: str = ""
    ) -> None:
        if model is None:
            model = load(head="sequence-classification")
            text = text or labelled.reviews("held-out", 1)[0]["text"]
        self._model = model
        super().__init__(model, "Classification", "Classify", {"text": text})

    def _read(self, job: Job, given: SimpleNamespace) -> None:
        answer = classification_task.predict(self._model, given.text)
        self._draw(job, answer)
        if self._model.config.num_labels > MOST_CLASSES:
            return

        def tell(done: int, total: int) -> None:
            job.check()
            self._publish(job, progress=[done, total])

        view = answer.explain(progress=tell).view()
        explained = dataclasses.replace(answer, picture=lambda: view)
        self._show(job, explained, [panel("answer", view)])


class AnsweringWidget(HeadWidget):
    """A question and a text with the answer marked; see ``tasks.answering.predict``.

    Attributes:
        question: what is asked.
        passage: the text that may hold the answer.
    """

    kinds = ("strip",)
    head = "question-answering"
    question = traitlets.Unicode().tag(sync=True, control="text", label="Question")
    passage = traitlets.Unicode().tag(sync=True, control="area", label="Passage")

    def __init__(
        self,
        model: GPTNeoXForQuestionAnswering | None = None,
        question: str = "",
        passage: str = "",
    ) -> None:
        if model is None:
            model = load(head="question-answering")
            if not (question or passage):
                row = labelled.questions("held-out", 1)[0]
                question, passage = row["question"], row["context"]
        self._model = model
        texts = {"question": question, "passage": passage}
        super().__init__(model, "Question answering", "Answer", texts)

    def _read(self, job: Job, given: SimpleNamespace) -> None:
        self._draw(job, answering_task.predict(self._model, given.question, given.passage))


class TaggingWidget(HeadWidget):
    """A text with its entities marked; see ``tasks.tagging.predict``.

    Attributes:
        text: where entities are looked for.
    """

    kinds = ("strip",)
    head = "token-classification"
    text = traitlets.Unicode().tag(sync=True, control="area", label="Text")

    def __init__(self, model: GPTNeoXForTokenClassification | None = None, text: str = "") -> None:
        if model is None:
            model = load(head="token-classification")
            text = text or labelled.sentences("held-out", 1)[0]["text"]
        self._model = model
        super().__init__(model, "Token tagging", "Tag", {"text": text})

    def _read(self, job: Job, given: SimpleNamespace) -> None:
        self._draw(job, tagging_task.predict(self._model, given.text))


def classification(
    model: GPTNeoXForSequenceClassification | None = None, text: str = ""
) -> ClassificationWidget:
    """Classify a text that can be changed.

    Args:
        model: a GPTNeoXForSequenceClassification with a tokenizer; None for the built-in one.
        text: what it reads first; for the built-in one an example if not given.

    Raises:
        InputError: a model with another head.
    """
    return ClassificationWidget(model, text)


def answering(
    model: GPTNeoXForQuestionAnswering | None = None, question: str = "", passage: str = ""
) -> AnsweringWidget:
    """Answer questions with a stretch of a text, both of which can be changed.

    Args:
        model: a GPTNeoXForQuestionAnswering with a tokenizer; None for the built-in one.
        question: what is asked first; for the built-in one an example if neither is given.
        passage: the text.

    Raises:
        InputError: a model with another head.
    """
    return AnsweringWidget(model, question, passage)


def tagging(model: GPTNeoXForTokenClassification | None = None, text: str = "") -> TaggingWidget:
    """Mark the entities in a text that can be changed.

    Args:
        model: a GPTNeoXForTokenClassification with a tokenizer; None for the built-in one.
        text: what it reads first; for the built-in one an example if not given.

    Raises:
        InputError: a model with another head.
    """
    return TaggingWidget(model, text)
