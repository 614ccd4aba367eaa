"""How good are predictions? Pure functions of arrays.

scikit-learn computes what it knows (accuracy, F1, log loss, R²); what it lacks is here with its
formula. Every metric is a plain number in a dictionary, so that results can be put side by side.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neox_lab.data.conll import entities
from neox_lab.data.statistics import Floats, Integers, correlation, mean_interval
from neox_lab.frames import make_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "answer_f1",
    "calibration",
    "calibration_error",
    "classification",
    "confusion",
    "entity_metrics",
    "exact_match",
    "mean_interval",
    "multi_label",
    "normalized",
    "regression",
]


def classification(labels: Integers, probabilities: Floats) -> dict[str, float]:
    """Metrics of one label out of several.

    Args:
        labels: the right classes ``[row]``.
        probabilities: of each class ``[row, label]``, rows summing to 1.

    Returns:
        ``accuracy``; ``macro_f1``, the unweighted mean of F1 over the classes that occur in labels
        or predictions; ``loss``, the mean of -ln p(right class) in nats; ``calibration_error``,
        see ``calibration``; ``majority``, the accuracy of always saying the commonest class.
        Where a probability is NaN, all but ``majority`` are.
    """
    from sklearn.metrics import accuracy_score, f1_score

    if np.isnan(probabilities).any():
        names = ("accuracy", "macro_f1", "loss", "calibration_error")
        return unknown(names) | {"majority": float(np.bincount(labels).max() / len(labels))}
    predicted = probabilities.argmax(axis=1)
    right = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "loss": float(-np.log(right).mean()),
        "calibration_error": calibration_error(labels, probabilities),
        "majority": float(np.bincount(labels).max() / len(labels)),
    }


def unknown(names: Iterable[str]) -> dict[str, float]:
    """These metrics of a model that says NaN of an example: a mean over it is NaN, too."""
    return dict.fromkeys(names, math.nan)


def multi_label(labels: Integers, probabilities: Floats) -> dict[str, float]:
    """Metrics of any number of labels at once; a label is predicted above one half.

    Args:
        labels: 0 or 1 ``[row, label]``.
        probabilities: of each label by itself ``[row, label]``.

    Returns:
        ``accuracy`` (all labels of a row right), ``micro_f1``, ``macro_f1``, and ``loss``, the mean
        binary cross entropy in nats.
    """
    from sklearn.metrics import accuracy_score, f1_score

    if np.isnan(probabilities).any():
        return unknown(("accuracy", "micro_f1", "macro_f1", "loss"))
    predicted = (probabilities > 0.5).astype(int)
    kept = np.clip(probabilities, 1e-12, 1 - 1e-12)
    entropy = -(labels * np.log(kept) + (1 - labels) * np.log(1 - kept))
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "micro_f1": float(f1_score(labels, predicted, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "loss": float(entropy.mean()),
    }


def regression(targets: Floats, predicted: Floats) -> dict[str, float]:
    """Metrics of numbers ``[row]``: ``r2``, ``mean_absolute_error``, ``pearson``, ``spearman``.

    ``loss`` is the mean squared error. ``r2`` is 1 minus the error over that of always saying the
    mean, NaN where targets are all the same; the correlations are NaN where one side is constant.
    """
    error = predicted - targets
    spread = ((targets - targets.mean()) ** 2).mean()
    return {
        "r2": float(1 - (error**2).mean() / spread) if np.ptp(targets) else float("nan"),
        "mean_absolute_error": float(np.abs(error).mean()),
        "pearson": correlation(targets, predicted),
        "spearman": correlation(targets, predicted, ranks=True),
        "loss": float((error**2).mean()),
    }


def confusion(labels: Integers, predicted: Integers, count: int) -> Integers:
    """Counts ``[label, predicted]``: how often each class was taken for each."""
    from sklearn.metrics import confusion_matrix

    counts: Integers = confusion_matrix(labels, predicted, labels=range(count))
    return counts


def calibration(labels: Integers, probabilities: Floats, bins: int = 10) -> pd.DataFrame:
    """Confidence against accuracy: one row for each tenth of confidence that occurs.

    Columns ``confidence`` (mean probability of the predicted class), ``accuracy`` and ``count``.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    frame = make_frame({"bin": place, "confidence": confidence, "accuracy": correct})
    grouped = frame.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("accuracy", "mean"), count=("bin", "size")
    )
    return grouped.reset_index(drop=True)


def calibration_error(labels: Integers, probabilities: Floats, bins: int = 10) -> float:
    """Expected calibration error: mean |confidence - accuracy| over bins, weighted by their size.

    Guo et al. 2017, arXiv:1706.04599, equation 3.
    """
    table = calibration(labels, probabilities, bins)
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())


def entity_metrics(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of entities over all sentences, and F1 of each kind.

    As conlleval and seqeval count: an entity is right if first word, last word and kind are.

    Args:
        right: the tags of each sentence.
        predicted: those found, as many.

    Returns:
        ``precision`` = entities found that are right / found, ``recall`` = / there, ``f1`` their
        harmonic mean (each 0 where nothing is there to divide by), ``accuracy`` of single tags,
        and ``f1_KIND`` for each kind.
    """
    there: Counter[str] = Counter()
    found: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    same = total = 0
    for one, other in zip(right, predicted, strict=True):
        wanted, given = set(entities(one)), set(entities(other))
        there.update(kind for kind, _, _ in wanted)
        found.update(kind for kind, _, _ in given)
        hits.update(kind for kind, _, _ in wanted & given)
        same += sum(a == b for a, b in zip(one, other, strict=True))
        total += len(one)
    precision = hits.total() / max(1, found.total())
    recall = hits.total() / max(1, there.total())
    result = {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits.total() / max(1, found.total() + there.total()),
        "accuracy": same / max(1, total),
    }
    for kind in sorted(there | found):
        result[f"f1_{kind}"] = 2 * hits[kind] / (there[kind] + found[kind])
    return result


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles (a, an, the) and extra spaces."""
    lowered = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 if the answer is one of those given, after ``normalized``; "" is no answer."""
    return float(normalized(predicted) in {normalized(text) for text in answers or [""]})


def answer_f1(predicted: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, for the answer where it is highest.

    If either side has no word left after ``normalized``, 1 if both have none and 0 otherwise.
    """
    return max(
        _words_f1(normalized(predicted).split(), normalized(a).split()) for a in answers or [""]
    )


def _words_f1(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = sum((Counter(predicted) & Counter(right)).values())
    return 2 * common / (len(predicted) + len(right))
