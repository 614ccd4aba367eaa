"""Predictions that can say which words they rest on.

    classification.predict(model, "A fine day").explain()

asks, for each label and each token, by how much the label's logit falls when the token is taken
away: ``attribution.occlusion``, with the mean of all embeddings in the token's place. That is one
run per token and label, so it is done when someone asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from neox_lab.data.batches import EncodedExample
from neox_lab.data.encoding import tokenizer_of
from neox_lab.data.statistics import Floats
from neox_lab.errors import InputError
from neox_lab.experiments.attribution.tokens import occlusion
from neox_lab.experiments.metrics import class_logit
from neox_lab.progress import Progress
from neox_lab.selections import entry
from neox_lab.tasks.result import TaskResult

if TYPE_CHECKING:
    from neox_lab.family import GPTNeoXForSequenceClassification

NOTE = "Below each token: by how much the logit of the label falls without it."


@dataclasses.dataclass(frozen=True)
class Prediction(TaskResult):
    """What ``classification.predict`` returns: a report that can explain itself.

    Attributes:
        values: probabilities ```[text, label]```, or for regression numbers ```[text, 1]```.
        examples: what the model read: ``input_ids`` of each text.
        model: the model that was asked; ``explain`` asks it again.
    """

    values: Floats
    examples: Sequence[EncodedExample]
    model: GPTNeoXForSequenceClassification

    def explain(
        self, text: int = 0, progress: bool | Callable[[int, int], None] = True
    ) -> TaskResult:
        """Which tokens speak for each label of one text, and which against.

        Args:
            text: which text, in the order they were given.
            progress: show a bar; or a function that is told how many labels are done, and of how
                many. What it raises ends the work.

        Returns:
            A report whose frame has a row for each label and token (``label``, ``pos``, ``token``,
            ``attribution`` in logits); the picture is the labels as bars over the tinted text.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import BarsView

        text = entry("text", text, len(self.examples), InputError)
        example, names = self.examples[text], self.model.config.id2label
        labels = [str(names[number]) for number in range(len(names))]
        ids = torch.tensor([example["input_ids"]], device=self.model.device)
        lost = []
        with Progress(len(labels), "label", silent=progress is not True) as bar:
            for number in range(len(labels)):
                if callable(progress):
                    progress(number, len(labels))
                shares = occlusion(self.model, ids, class_logit(number)).values[0]
                lost.append(shares.numpy())
                bar.update()
        pieces = tokenizer_of(self.model).pieces(example["input_ids"])
        title, shown, attributions = example["_text"], self.values[text], np.stack(lost)
        view = BarsView(labels, shown, title, NOTE, pieces, attributions)
        frame = view.attribution_frame.rename(columns={"name": "label", "position": "pos"})
        return TaskResult(frame, {}, lambda: view)
