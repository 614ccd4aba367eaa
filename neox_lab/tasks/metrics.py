"""How good are predictions? Pure functions of arrays.

scikit-learn computes what it knows (accuracy, F1, log loss, R²); what it lacks is here with its
formula. Every metric is a plain number in a dictionary, so that results can be put side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def classification(labels: Integers, probabilities: Floats) -> dict[str, float]:
    """Metrics of one label out of several.

    Args:
        labels: the right classes `[row]`.
        probabilities: of each class `[row, label]`, rows summing to 1.

    Returns:
        ``accuracy``; ``macro_f1``, the unweighted mean of F1 over the classes that occur in labels
        or predictions; ``loss``, the mean of -ln p(right class) in nats; ``calibration_error``,
        see ``calibration``; ``majority``, the accuracy of always saying the commonest class.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted = probabilities.argmax(axis=1)
    right = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "loss": float(-np.log(right).mean()),
        "calibration_error": calibration_error(labels, probabilities),
        "majority": float(np.bincount(labels).max() / len(labels)),
    }


def multi_label(labels: Integers, probabilities: Floats) -> dict[str, float]:
    """Metrics of any number of labels at once; a label is predicted above one half.

    Args:
        labels: 0 or 1 `[row, label]`.
        probabilities: of each label by itself `[row, label]`.

    Returns:
        ``accuracy`` (all labels of a row right), ``micro_f1``, ``macro_f1``, and ``loss``, the mean
        binary cross entropy in nats.
    """
    from sklearn.metrics import accuracy_score, f1_score

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
    """Metrics of numbers `[row]`: ``r2``, ``mean_absolute_error``, ``pearson``, ``spearman``.

    ``loss`` is the mean squared error. ``r2`` is 1 minus the error over that of always saying the
    mean; the correlations are NaN where one side is constant.
    """
    import pandas as pd

    error = predicted - targets
    spread = ((targets - targets.mean()) ** 2).mean()
    pair = pd.DataFrame({"target": targets, "predicted": predicted})
    return {
        "r2": float(1 - (error**2).mean() / spread) if spread else float("nan"),
        "mean_absolute_error": float(np.abs(error).mean()),
        "pearson": float(pair["target"].corr(pair["predicted"])),
        "spearman": float(pair["target"].corr(pair["predicted"], method="spearman")),
        "loss": float((error**2).mean()),
    }


def confusion(labels: Integers, predicted: Integers, count: int) -> Integers:
    """How often each class `[label]` was taken for each `[predicted]`: counts `[label, label]`."""
    from sklearn.metrics import confusion_matrix

    counts: Integers = confusion_matrix(labels, predicted, labels=range(count))
    return counts


def calibration(labels: Integers, probabilities: Floats, bins: int = 10) -> pd.DataFrame:
    """Confidence against accuracy: one row for each tenth of confidence that occurs.

    Columns ``confidence`` (mean probability of the predicted class), ``accuracy`` and ``count``.
    """
    import pandas as pd

    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    frame = pd.DataFrame({"bin": place, "confidence": confidence, "accuracy": correct})
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


def interval(
    rows: int,
    statistic: Callable[[Integers], float],
    *,
    level: float = 0.95,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (Efron 1979).

    Args:
        rows: how many rows there are.
        statistic: the number for a choice of rows (indices `[row]`, with repeats).
        level: share of resamples inside the interval.
        samples: how many resamples.
        seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    values = [statistic(random.integers(0, rows, rows)) for _ in range(samples)]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float] | Floats, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean."""
    listed = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = listed[random.integers(0, len(listed), (1000, len(listed)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
