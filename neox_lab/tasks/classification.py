"""Classify texts: one label, several labels, or a number.

    model = nl.load(head="sequence-classification", labels=["negative", "positive"])
    classification.train(model, "train.csv", "validation.csv")
    classification.evaluate(model, "test.csv").metrics
    classification.predict(model, ["a delight from start to end"]).explain()  # token by token

The head reads the residual stream at the last token, the only one that has seen the whole text.
``config.problem_type`` says what a label is: with ``multi_label_classification`` a cell holds a
list of names, with ``regression`` a number; without, one name or its number. A number that is also
a name counts as the name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neox_lab.data.batches import Example, outputs, padded
from neox_lab.data.encoding import pad_token, token_ids
from neox_lab.data.tables import check_lengths, listed, read_table, refuse, texts_of
from neox_lab.errors import DataError, InputError
from neox_lab.tasks import metrics
from neox_lab.tasks.explanation import Prediction
from neox_lab.tasks.report import Report
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit

if TYPE_CHECKING:
    from neox_lab.views.curves import CurvesView

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
DRAWN = 20  # texts in the picture of predictions


def train(
    model: Any,
    data: Any,
    validation: Any = None,
    settings: TrainingSettings | None = None,
    *,
    text: str = "text",
    label: str = "label",
    truncate: bool = False,
    directory: str | os.PathLike[str] | None = None,
) -> TrainingResult:
    """Fine-tune a sequence classifier in place.

    Args:
        model: a GPTNeoXForSequenceClassification with a tokenizer.
        data: a frame, a path, a list of dictionaries or a dataset; see ``tables.read_table``.
        validation: likewise, to be measured during training; or None.
        settings: see ``TrainingSettings``.
        text: name of the column with texts.
        label: name of the column with labels.
        truncate: cut texts that are too long at their start instead of refusing them.
        directory: keep the run here and go on with it if it was stopped.

    Raises:
        DataError: rows are wrong; the message names them.
        InputError: the model has another head, or settings do not fit.
        TrainingError: the loss is not a number.
    """
    examples = prepare(model, data, text=text, label=label, truncate=truncate)
    held = None
    if validation is not None:
        held = prepare(model, validation, text=text, label=label, truncate=truncate)
    pad = pad_token(model)
    return fit(
        model,
        examples,
        lambda rows: padded(rows, pad),
        settings,
        evaluate=None if held is None else lambda: measure(model, held)[0],
        directory=directory,
    )


def evaluate(
    model: Any, data: Any, *, text: str = "text", label: str = "label", truncate: bool = False
) -> Report:
    """Measure a classifier.

    Returns:
        ``metrics`` as in ``tasks.metrics``; a frame with text, label, prediction and probabilities;
        the picture is the confusion matrix (for numbers, target against prediction).
    """
    examples = prepare(model, data, text=text, label=label, truncate=truncate)
    numbers, values = measure(model, examples)
    frame = _frame(model, [example["_text"] for example in examples], values)
    frame.insert(1, "label", [_given(model, example["labels"]) for example in examples])
    return Report(frame, numbers, lambda: _evaluation_view(model, examples, values))


def predict(
    model: Any, texts: str | Sequence[str], batch_size: int = 32, *, truncate: bool = False
) -> Prediction:
    """Classify texts.

    Returns:
        A frame with ``text``, ``prediction`` and a probability for each label; the picture shows
        a text's labels as bars, or several texts, each with its label. ``.explain()`` says which
        tokens a text's labels rest on.
    """
    _check_head(model)
    rows = [texts] if isinstance(texts, str) else list(texts)
    if not rows:
        raise DataError("there is no text to classify")
    examples = _tokenized(model, rows, truncate)
    values = _probabilities(model, outputs(model, examples, batch_size, ["logits"]))
    frame = _frame(model, rows, values)
    picture = partial(_prediction_view, model, frame, values)
    return Prediction(frame, {}, picture, values, examples, model)


def calibration(report: Report, bins: int = 10) -> CurvesView:
    """Is the model as often right as it is sure? Accuracy over confidence, from ``evaluate``.

    Args:
        report: what ``evaluate`` returned for a model with one label out of several.
        bins: in how many steps of confidence texts are gathered; see ``metrics.calibration``.

    Raises:
        InputError: the report has no probabilities of single labels.
    """
    from neox_lab.views.curves import CurvesView, Line

    chances = report.frame.filter(regex=r"^p\(")
    names = [name[2:-1] for name in chances.columns]
    if "calibration_error" not in report.metrics:
        raise InputError("expected what evaluate returns for one label out of several")
    right = np.array([names.index(name) for name in report.frame["label"]])
    table = metrics.calibration(right, chances.to_numpy(), bins)
    lines = {
        "accuracy": Line(table["confidence"], table["accuracy"]),
        "as right as sure": Line([0.0, 1.0], [0.0, 1.0], faint=True),
    }
    title = f"Calibration error {report.metrics['calibration_error']:.3f}"
    return CurvesView(title, lines, "confidence", "accuracy")


def prepare(model: Any, data: Any, *, text: str, label: str, truncate: bool) -> list[Example]:
    """Examples with ``input_ids`` and ``labels`` from a table.

    Raises:
        DataError: rows without text, with unknown labels, or longer than the model can read.
    """
    _check_head(model)
    frame = read_table(data, (text, label))
    labels = _targets(model, frame[label].tolist())
    examples = _tokenized(model, texts_of(frame, text), truncate)
    return [{**example, "labels": target} for example, target in zip(examples, labels, strict=True)]


def measure(
    model: Any, examples: Sequence[Example], batch_size: int = 32
) -> tuple[dict[str, float], Any]:
    """Metrics, and what was predicted: probabilities `[row, label]`, or numbers `[row]`."""
    values = _probabilities(model, outputs(model, examples, batch_size, ["logits"]))
    labels = np.array([example["labels"] for example in examples])
    if _problem(model) == REGRESSION:
        return metrics.regression(labels, values[:, 0]), values
    if _problem(model) == MULTI:
        return metrics.multi_label(labels.astype(int), values), values
    return metrics.classification(labels, values), values


def _check_head(model: Any) -> None:
    if model.head != "sequence-classification":
        raise InputError(
            f"this model's head is {model.head!r}; expected 'sequence-classification': "
            "nl.load(..., head='sequence-classification', labels=[...])"
        )


def _problem(model: Any) -> str:
    if model.config.problem_type is None:
        model.config.problem_type = REGRESSION if model.config.num_labels == 1 else SINGLE
    return str(model.config.problem_type)


def _names(model: Any) -> list[str]:
    return [str(model.config.id2label[number]) for number in range(model.config.num_labels)]


def _targets(model: Any, given: list[Any]) -> list[Any]:
    """What the loss wants: a class number, zeros and ones for each label, or a float."""
    names, problem = _names(model), _problem(model)
    wrong: list[tuple[int, str]] = []
    targets: list[Any] = []
    for row, value in enumerate(given):
        try:
            if problem == REGRESSION:
                targets.append(_number(value))
            elif problem == MULTI:
                there = {_class(name, names) for name in listed(value)}
                targets.append([float(number in there) for number in range(len(names))])
            else:
                targets.append(_class(value, names))
        except (TypeError, ValueError):
            wrong.append((row, f"{value!r:.60}"))
    expected = "a number" if problem == REGRESSION else f"one of {', '.join(names)}"
    if problem == MULTI:
        expected = f"a list of some of {', '.join(names)}"
    refuse("Unknown labels", wrong, f"Expected {expected} (config.id2label, config.problem_type).")
    return targets


def _given(model: Any, target: Any) -> Any:
    """A target as it is shown: a name, a list of names, or a number."""
    names, problem = _names(model), _problem(model)
    if problem == MULTI:
        return [name for name, there in zip(names, target, strict=True) if there]
    return names[target] if problem == SINGLE else target


def _number(value: Any) -> float:
    if not np.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _class(value: Any, names: list[str]) -> int:
    """Number of a class given by name or number."""
    if isinstance(value, str):
        return names.index(value)
    if isinstance(value, bool | np.bool_) or int(value) != value:
        raise ValueError(value)
    if str(int(value)) in names:
        return names.index(str(int(value)))
    if not 0 <= value < len(names):
        raise ValueError(value)
    return int(value)


def _tokenized(model: Any, texts: list[str], truncate: bool) -> list[Example]:
    longest = model.config.max_position_embeddings
    rows = token_ids(model, texts)
    if truncate:
        rows = [row[-longest:] for row in rows]
    check_lengths(rows, longest, "Pass truncate=True to keep their ends.")
    return [{"input_ids": row, "_text": text} for row, text in zip(rows, texts, strict=True)]


def _probabilities(model: Any, found: list[dict[str, Tensor]]) -> Any:
    """Probabilities `[row, label]` (for regression the outputs themselves), float64."""
    logits = torch.stack([row["logits"] for row in found]).double()
    if _problem(model) == SINGLE:
        return logits.softmax(dim=-1).numpy()
    return logits.sigmoid().numpy() if _problem(model) == MULTI else logits.numpy()


def _frame(model: Any, texts: list[str], values: Any) -> Any:
    import pandas as pd

    frame = pd.DataFrame({"text": texts})
    names = _names(model)
    if _problem(model) == REGRESSION:
        frame["prediction"] = values[:, 0]
        return frame
    if _problem(model) == MULTI:
        frame["prediction"] = [
            [name for name, p in zip(names, row, strict=True) if p > 0.5] for row in values
        ]
    else:
        frame["prediction"] = [names[number] for number in values.argmax(axis=1)]
    for number, name in enumerate(names):
        frame[f"p({name})"] = values[:, number]
    return frame


def _prediction_view(model: Any, frame: Any, values: Any) -> Any:
    """One text's labels as bars; several texts, each with its label or number."""
    from neox_lab.views import BarsView, Piece, StripView

    names, texts, count = _names(model), frame["text"][:DRAWN].tolist(), len(frame)
    title = f"Predictions, the first {DRAWN} of {count} texts" if count > DRAWN else "Predictions"
    if count == 1:
        return BarsView(names, values[0], title=texts[0])
    if _problem(model) == REGRESSION:
        return BarsView(texts, values[:DRAWN, 0], title)
    pieces = []
    for text, said, chances in zip(texts, frame["prediction"], values, strict=False):
        kind = ", ".join(said) or "none" if isinstance(said, list) else said
        sure = float(chances.max()) if _problem(model) == SINGLE else 0.5
        note = f"{kind} {sure:.2f}" if _problem(model) == SINGLE else kind
        pieces += [Piece(text, note, kind, 2 * sure - 1), Piece("\n")]
    found = frame[:DRAWN].to_dict("records")
    return StripView(pieces[:-1], title, "The deeper the colour, the surer.", found)


def _evaluation_view(model: Any, examples: Sequence[Example], values: Any) -> Any:
    from neox_lab.views import BarsView, ConfusionView

    labels = np.array([example["labels"] for example in examples])
    if _problem(model) == SINGLE:
        counts = metrics.confusion(labels, values.argmax(axis=1), len(_names(model)))
        return ConfusionView(counts, _names(model), title="What was taken for what")
    if _problem(model) == MULTI:
        right = ((values > 0.5) == labels.astype(bool)).mean(axis=0)
        return BarsView(_names(model), right, title="Share of texts in which each label is right")
    numbers = metrics.regression(labels, values[:, 0])
    chosen = {name: numbers[name] for name in ("r2", "pearson", "spearman")}
    return BarsView(list(chosen), list(chosen.values()), title="Agreement of numbers")
