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
from typing import TYPE_CHECKING

import numpy as np
import torch

from neox_lab.checks import one_or_several_texts
from neox_lab.data.batches import EncodedExample, collate_for, outputs
from neox_lab.data.encoding import token_ids
from neox_lab.data.statistics import Floats
from neox_lab.data.tables import Table, check_lengths, read_table, refuse, texts_of
from neox_lab.errors import DataError, InputError
from neox_lab.frames import make_frame
from neox_lab.model.output_heads import require_head
from neox_lab.tasks import metrics
from neox_lab.tasks.explanation import Prediction
from neox_lab.tasks.labels import MULTI, REGRESSION, SINGLE, Labels
from neox_lab.tasks.result import TaskResult
from neox_lab.tasks.settings import TrainingSettings
from neox_lab.tasks.training import TrainingResult, fit

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family import GPTNeoXForSequenceClassification
    from neox_lab.views import View
    from neox_lab.views.curves import CurvesView

HEAD = "sequence-classification"
DRAWN = 20  # texts in the picture of predictions


def train(
    model: GPTNeoXForSequenceClassification,
    data: Table,
    validation: Table | None = None,
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
    return fit(
        model,
        examples,
        collate_for(model),
        settings,
        evaluate=None if held is None else lambda: measure(model, held)[0],
        directory=directory,
    )


def evaluate(
    model: GPTNeoXForSequenceClassification,
    data: Table,
    *,
    text: str = "text",
    label: str = "label",
    truncate: bool = False,
) -> TaskResult:
    """Measure a classifier.

    Args:
        model: a GPTNeoXForSequenceClassification with a tokenizer.
        data: a table; see ``tables.read_table``.
        text: name of the column with texts.
        label: name of the column with labels.
        truncate: cut texts that are too long at their start instead of refusing them.

    Returns:
        ``metrics`` as in ``tasks.metrics``; a frame with text, label, prediction and probabilities;
        the picture is the confusion matrix (for numbers, their agreement).

    Raises:
        DataError: rows are wrong; the message names them.
        InputError: the model has another head.
    """
    examples = prepare(model, data, text=text, label=label, truncate=truncate)
    numbers, values = measure(model, examples)
    labels = Labels.of(model.config)
    frame = _frame(labels, [example["_text"] for example in examples], values)
    frame.insert(1, "label", [labels.shown(example["labels"]) for example in examples])
    return TaskResult(frame, numbers, partial(_evaluation_view, labels, examples, values))


def predict(
    model: GPTNeoXForSequenceClassification,
    texts: str | Sequence[str],
    batch_size: int = 32,
    *,
    truncate: bool = False,
) -> Prediction:
    """Classify texts.

    Args:
        model: a GPTNeoXForSequenceClassification with a tokenizer.
        texts: one or several.
        batch_size: texts in one forward pass.
        truncate: cut texts that are too long at their start instead of refusing them.

    Returns:
        A frame with ``text``, ``prediction`` and a probability for each label; the picture shows
        a text's labels as bars, or several texts, each with its label. ``.explain()`` says which
        tokens a text's labels rest on.

    Raises:
        DataError: no text, an empty one, or texts longer than the model can read.
        InputError: the model has another head.
    """
    require_head(model.head, HEAD)
    rows = one_or_several_texts("texts", texts)
    if not rows:
        raise DataError("there is no text to classify")
    examples = _tokenized(model, rows, truncate)
    values, labels = _values(model, examples, batch_size), Labels.of(model.config)
    frame = _frame(labels, rows, values)
    picture = partial(_prediction_view, labels, frame, values)
    return Prediction(frame, {}, picture, values, examples, model)


def calibration(report: TaskResult, bins: int = 10) -> CurvesView:
    """Is the model as often right as it is sure? Accuracy over confidence, from ``evaluate``.

    Args:
        report: what ``evaluate`` returned for a model with one label out of several.
        bins: in how many steps of confidence texts are gathered; see ``metrics.calibration``.

    Raises:
        InputError: the report has no probabilities of single labels, or one is NaN.
    """
    from neox_lab.views.curves import CurvesView, Line

    chances = report.frame.filter(regex=r"^p\(")
    names = [name[2:-1] for name in chances.columns]
    if "calibration_error" not in report.metrics:
        raise InputError("expected what evaluate returns for one label out of several")
    if none := np.flatnonzero(chances.isna().any(axis=1)).tolist():
        raise InputError(f"the probabilities of texts {none[:5]} are NaN; there is no confidence")
    right = np.array([names.index(name) for name in report.frame["label"]])
    table = metrics.calibration(right, chances.to_numpy(), bins)
    lines = {
        "accuracy": Line(table["confidence"], table["accuracy"]),
        "as right as sure": Line([0.0, 1.0], [0.0, 1.0], faint=True),
    }
    title = f"Calibration error {report.metrics['calibration_error']:.3f}"
    return CurvesView(title, lines, "confidence", "accuracy")


def prepare(
    model: GPTNeoXForSequenceClassification,
    data: Table,
    *,
    text: str,
    label: str,
    truncate: bool,
) -> list[EncodedExample]:
    """Examples with ``input_ids`` and ``labels`` from a table.

    Raises:
        DataError: rows without text, with unknown labels, or longer than the model can read.
        InputError: the model has another head.
    """
    require_head(model.head, HEAD)
    frame = read_table(data, (text, label))
    labels = Labels.of(model.config).targets(frame[label].tolist())
    examples = _tokenized(model, texts_of(frame, text), truncate)
    return [{**example, "labels": target} for example, target in zip(examples, labels, strict=True)]


def measure(
    model: GPTNeoXForSequenceClassification,
    examples: Sequence[EncodedExample],
    batch_size: int = 32,
) -> tuple[dict[str, float], Floats]:
    """Metrics, and what was predicted.

    Returns:
        Metrics as in ``tasks.metrics``; and probabilities ``[text, label]``, or for regression
        numbers ``[text, 1]``.
    """
    values = _values(model, examples, batch_size)
    targets = np.array([example["labels"] for example in examples])
    problem = Labels.of(model.config).problem
    if problem == REGRESSION:
        return metrics.regression(targets, values[:, 0]), values
    if problem == MULTI:
        return metrics.multi_label(targets.astype(int), values), values
    return metrics.classification(targets, values), values


def _tokenized(
    model: GPTNeoXForSequenceClassification, texts: list[str], truncate: bool
) -> list[EncodedExample]:
    longest = model.config.max_position_embeddings
    rows = token_ids(model, texts)
    empty = [(number, "has no token") for number, row in enumerate(rows) if not row]
    refuse("There is nothing to classify", empty, "Leave these texts out.")
    if truncate:
        rows = [row[-longest:] for row in rows]
    check_lengths(rows, longest, "Pass truncate=True to keep their ends.")
    return [{"input_ids": row, "_text": text} for row, text in zip(rows, texts, strict=True)]


def _values(
    model: GPTNeoXForSequenceClassification, examples: Sequence[EncodedExample], batch_size: int
) -> Floats:
    """Probabilities ``[text, label]``; for regression the numbers ``[text, 1]``."""
    found = outputs(model, examples, batch_size, ["logits"])
    return Labels.of(model.config).values(torch.stack([row["logits"] for row in found]))


def _frame(labels: Labels, texts: list[str], values: Floats) -> pd.DataFrame:
    """A row for each text: what was predicted, and how likely each label is."""
    frame = make_frame({"text": texts, "prediction": labels.said(values)})
    if labels.problem != REGRESSION:
        for number, name in enumerate(labels.names):
            frame[f"p({name})"] = values[:, number]
    return frame


def _prediction_view(labels: Labels, frame: pd.DataFrame, values: Floats) -> View:
    """One text's labels as bars; several texts, each with its label or number."""
    from neox_lab.views import BarsView, Piece, StripView

    texts, count = frame["text"][:DRAWN].tolist(), len(frame)
    title = f"Predictions, the first {DRAWN} of {count} texts" if count > DRAWN else "Predictions"
    if count == 1:
        return BarsView(labels.names, values[0], title=texts[0])
    if labels.problem == REGRESSION:
        return BarsView(texts, values[:DRAWN, 0], title)
    pieces = []
    for text, said, chances in zip(texts, frame["prediction"], values, strict=False):
        if not isinstance(said, str | list):  # a probability is NaN
            pieces += [Piece(text, "NaN", "NaN", 0.0), Piece("\n")]
            continue
        kind = ", ".join(said) or "none" if isinstance(said, list) else said
        sure = float(chances.max()) if labels.problem == SINGLE else 0.5
        note = f"{kind} {sure:.2f}" if labels.problem == SINGLE else kind
        pieces += [Piece(text, note, kind, 2 * sure - 1), Piece("\n")]
    found = [{str(k): v for k, v in row.items()} for row in frame[:DRAWN].to_dict("records")]
    note = "The deeper the colour, the surer."
    return StripView(pieces[:-1], title, note, found, kinds=labels.names)


def _evaluation_view(labels: Labels, examples: Sequence[EncodedExample], values: Floats) -> View:
    from neox_lab.views import BarsView, ConfusionView

    targets = np.array([example["labels"] for example in examples])
    if labels.problem == SINGLE:
        known = ~np.isnan(values).any(axis=1)
        if not known.any():
            return BarsView(labels.names, [np.nan] * len(labels.names), "Every answer is NaN")
        said = values[known].argmax(axis=1)
        counts = metrics.confusion(targets[known], said, len(labels.names))
        left = "" if known.all() else f"; {int((~known).sum())} texts are NaN"
        return ConfusionView(counts, labels.names, title=f"What was taken for what{left}")
    if labels.problem == MULTI:
        hits = np.where(np.isnan(values), np.nan, (values > 0.5) == targets.astype(bool))
        right = hits.mean(axis=0)
        return BarsView(labels.names, right, title="Share of texts in which each label is right")
    numbers = metrics.regression(targets, values[:, 0])
    chosen = {name: numbers[name] for name in ("r2", "pearson", "spearman")}
    return BarsView(list(chosen), list(chosen.values()), title="Agreement of numbers")
