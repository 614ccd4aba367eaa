"""The three task heads on a text one can change: its class, an answer in it, its entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import traitlets

from neox_lab.errors import InputError
from neox_lab.gym import labelled
from neox_lab.tasks import answering, classification, tagging
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job

MOST_CLASSES = 12  # explained token by token


class HeadWidget(LiveWidget):
    """What the three have in common: a model with the right head."""

    head = ""

    def __init__(self, model: Any, **values: Any) -> None:
        if model is None:
            from neox_lab.family import load

            model = load(head=self.head)
            values |= {} if any(self._texts(values)) else self._example()
        if getattr(model, "head", None) != self.head:
            raise InputError(
                f"{type(model).__name__} has the head {getattr(model, 'head', None)!r}; expected "
                f"{self.head!r}: nl.load(name, head={self.head!r})."
            )
        self._model = model
        super().__init__(**values)
        if all(self._texts(vars(self._given()))):
            self.run()

    @staticmethod
    def _texts(values: Mapping[str, str]) -> list[str]:
        """What there is to read."""
        return [values[name] for name in ("text", "question", "passage") if name in values]

    def _example(self) -> dict[str, str]:
        """Something that the built-in model can read but was not trained on."""
        raise NotImplementedError

    def _answer(self, job: Job, given: Any) -> None:
        empty = [control["label"] for control in self.controls if not vars(given)[control["name"]]]
        if empty:
            raise InputError(f"There is nothing to read yet. Fill in: {', '.join(empty)}.")
        report = self._predict(given)
        self._show(job, report, [panel("answer", report.view())], now=True)
        self._explain(job, given, report)

    def _predict(self, given: Any) -> Any:
        """The task's own ``predict`` for what the controls said."""
        raise NotImplementedError

    def _explain(self, job: Job, given: Any, report: Any) -> None:
        """What takes longer and is shown later; nothing, unless a subclass has something."""


class ClassificationWidget(HeadWidget):
    """A text, how likely each class is, and what each token does for it.

    See ``tasks.classification.predict`` and its result's ``explain``.

    Attributes:
        text: what is classified.
    """

    kinds = ("bars",)
    head = "sequence-classification"
    text = traitlets.Unicode().tag(sync=True, control="area", label="Text")

    def __init__(self, model: Any = None, text: str = "") -> None:
        super().__init__(model, heading="Classification", verb="Classify", text=text)

    def _example(self) -> dict[str, str]:
        return {"text": labelled.reviews("held-out", 1)[0]["text"]}

    def _predict(self, given: Any) -> Any:
        return classification.predict(self._model, given.text)

    def _explain(self, job: Job, given: Any, report: Any) -> None:
        if self._model.config.num_labels > MOST_CLASSES:
            return

        def tell(done: int, total: int) -> None:
            job.check()
            self._publish(job, progress=[done, total])

        view = report.explain(progress=tell).view()
        explained = dataclasses.replace(report, picture=lambda: view)
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

    def __init__(self, model: Any = None, question: str = "", passage: str = "") -> None:
        super().__init__(
            model, heading="Question answering", verb="Answer", question=question, passage=passage
        )

    def _example(self) -> dict[str, str]:
        row = labelled.questions("held-out", 1)[0]
        return {"question": row["question"], "passage": row["context"]}

    def _predict(self, given: Any) -> Any:
        return answering.predict(self._model, given.question, given.passage)


class TaggingWidget(HeadWidget):
    """A text with its entities marked; see ``tasks.tagging.predict``.

    Attributes:
        text: where entities are looked for.
    """

    kinds = ("strip",)
    head = "token-classification"
    text = traitlets.Unicode().tag(sync=True, control="area", label="Text")

    def __init__(self, model: Any = None, text: str = "") -> None:
        super().__init__(model, heading="Token tagging", verb="Tag", text=text)

    def _example(self) -> dict[str, str]:
        return {"text": labelled.sentences("held-out", 1)[0]["text"]}

    def _predict(self, given: Any) -> Any:
        return tagging.predict(self._model, given.text)
