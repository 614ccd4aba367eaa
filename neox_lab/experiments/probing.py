"""Probes: what can be read off activations by a linear map, layer by layer.

    result = nl.probing.probe(model, texts, labels, sites="resid_post")
    result                                   # accuracy by layer, with baseline and control
    with model.hooks([result.steer(2, 5.0)]):    # push along the probe's direction
        model.generate(...)

That a probe succeeds says that the information is there, not that the model uses it (Belinkov 2022,
arXiv:2102.12452). Two things keep its accuracy honest. The *control* is the same probe on shuffled
labels: what it reaches is what memory and chance give, and ``selectivity`` is the difference
(Hewitt and Liang 2019, arXiv:1909.03368). And changing the activations along the probe's
direction shows whether anything downstream listens.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neox_lab.activations.stored import Stored
from neox_lab.checks import COUNT, check, one_of, several, whole
from neox_lab.data.activations import collected, site_names
from neox_lab.data.encoding import token_ids
from neox_lab.data.positions import TextPosition
from neox_lab.data.statistics import Integers, mean_interval, statistic_interval
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import DataError, InputError, NeoxLabWarning
from neox_lab.experiments.probing_result import Array, Probe, ProbeResult
from neox_lab.experiments.probing_stored import of_documents, vectors_of
from neox_lab.family.contract import HookedModel
from neox_lab.selections import one_each

__all__ = ["Probe", "ProbeResult", "probe"]
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Strengths of regularisation tried, on standardised activations."""
FOLDS = 5  # one for the test, one for validation, the others for training
CONTROLS = 3  # shufflings of the labels over which the control is averaged


def probe(
    model: HookedModel,
    texts: Sequence[str] | Stored,
    labels: Sequence[Any],
    sites: str | Sequence[str] = "resid_post",
    pos: TextPosition = -1,
    *,
    method: str = "linear",
    groups: Sequence[Any] | None = None,
    batch_size: int = 32,
    memory: int = 2 * 10**9,
    seed: int = 0,
) -> ProbeResult:
    """Train a probe at every site, from one pass over the texts.

    A fifth of the texts is the test, a fifth chooses the regularisation, the rest trains.

    Args:
        model: any of the classes, with a tokenizer.
        texts: what it reads; or activations of them that were collected before (see
            ``nl.activations``), whose documents are the texts: then nothing is run.
        labels: one for each text: names or whole numbers for classes, floats for a quantity.
        sites: such as ``"resid_post"`` (of every layer), a hook name, a glob, or several.
        pos: position in each text's own tokens (-1 is the last), ``"mean"``, or one for each text.
        method: ``linear`` is ridge regression, on one column a class, with regularisation chosen
            on the validation texts; ``difference`` compares with the mean activation of each class
            (classes only).
        groups: texts with the same group never stand on two sides of a split. Nor do texts that
            are the same up to ``pos``, of which a probe could learn the answers by heart.
        batch_size: texts in one forward pass.
        memory: above so many bytes activations live in files, while this runs.
        seed: of the split, the shuffled labels and the bootstrap.

    Raises:
        DataError: labels and texts differ in number, one class only, or too few texts or groups.
        InputError: dropout is on, an unknown method, or a position that a text does not have.
        CheckpointError: activations of another model.
        HookNameError: no such site.
    """
    refuse_dropout(model)
    check("method", method, one_of("linear", "difference"), InputError)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    memory = check("memory", memory, whole(least=0), InputError)
    seed = check("seed", seed, whole(least=0, most=2**32 - 1), InputError)
    labels = several("labels", labels, "a label for each text", InputError)
    if groups is not None:
        groups = several("groups", groups, "a group for each text", InputError)
    names = site_names(model, sites)
    source, read = _source(model, texts, names, pos, batch_size, memory)
    if isinstance(texts, Stored):
        labels = of_documents("labels", labels, texts)
        groups = None if groups is None else of_documents("groups", list(groups), texts)
    kinds, targets = _targets(labels, len(read))
    if method == "difference" and not kinds:
        raise InputError("method='difference' compares classes; these labels are numbers")
    parts = _parts(targets, kinds, _together(read, groups), seed)
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(targets[parts[0]]) for _ in range(CONTROLS)]
    probes = []
    with source as found:
        for name in names:
            probes.append(_fitted(name, found[name], targets, kinds, parts, shuffled, method))
    test = targets[parts[2]]
    baseline = float(np.bincount(test.astype(int)).max() / len(test)) if kinds else 0.0
    counts = (len(parts[0]), len(parts[1]), len(parts[2]))
    return ProbeResult(probes, kinds, baseline, pos, counts)


def _source(
    model: HookedModel,
    texts: Sequence[str] | Stored,
    names: Sequence[str],
    pos: TextPosition,
    batch_size: int,
    memory: int,
) -> tuple[AbstractContextManager[Mapping[str, NDArray[np.float32]], bool | None], NDArray[Any]]:
    """Where the vectors of each site come from, and which texts were read alike."""
    if isinstance(texts, Stored):
        vectors = vectors_of(model, texts, names, pos)
        return nullcontext(vectors), vectors.as_read()
    texts = several("texts", texts, "a list of texts", InputError)
    found = collected(model, texts, names, pos, batch_size=batch_size, memory=memory)
    return found, _as_read(model, texts, pos)


def _targets(labels: Sequence[Any], count: int) -> tuple[list[Any], Array]:
    """Names of the classes (none for numbers), and class numbers or values ``[text]``."""
    listed = [value.item() if isinstance(value, np.generic) else value for value in labels]
    if len(listed) != count:
        raise DataError(f"{count} texts and {len(listed)} labels; expected one for each")
    if all(isinstance(value, float) for value in listed):
        values = np.array(listed)
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise DataError("the numbers to predict must be finite and not all the same")
        return [], values
    kinds = sorted(set(listed), key=str)
    if len(kinds) < 2:
        raise DataError(f"all labels are {kinds[0]!r}; a probe needs two classes at least")
    number = {kind: at for at, kind in enumerate(kinds)}
    return kinds, np.array([number[value] for value in listed])


def _parts(
    targets: Array, kinds: list[Any], groups: Sequence[Any] | None, seed: int
) -> tuple[NDArray[np.intp], ...]:
    """Indices of the training, validation and test texts."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    together = np.arange(len(targets)) if groups is None else _numbers(groups, len(targets))
    if len(np.unique(together)) < FOLDS:
        raise DataError(
            f"{len(np.unique(together))} texts or groups; expected {FOLDS} at least, to train, "
            "choose and test on different ones"
        )
    few = [kind for at, kind in enumerate(kinds) if (targets == at).sum() < FOLDS]
    if few:
        raise DataError(f"fewer than {FOLDS} texts for {few}; leave these classes out")
    shared = None if groups is None else together
    alone, grouped = (StratifiedKFold, StratifiedGroupKFold) if kinds else (KFold, GroupKFold)
    splitter = (alone if groups is None else grouped)(FOLDS, shuffle=True, random_state=seed)
    folds = [test for _, test in splitter.split(targets, targets, shared)]
    train = np.concatenate(folds[2:])
    if kinds and len(np.unique(targets[train])) < len(kinds):
        raise DataError("a class is in one group only; it cannot be trained on and tested")
    return train, folds[1], folds[0]


def _as_read(model: HookedModel, texts: Sequence[str], pos: TextPosition) -> Array:
    """The same number for texts of which the model has read the same at ``pos``, ``[text]``."""
    ids = token_ids(model, texts)
    if not isinstance(pos, str):
        wanted = one_each("pos", pos, len(ids), InputError)
        ids = [row[: at + 1 or None] for row, at in zip(ids, wanted, strict=True)]
    number: dict[tuple[int, ...], int] = {}
    return np.array([number.setdefault(tuple(row), len(number)) for row in ids])


def _together(read: Array, groups: Sequence[Any] | None) -> Sequence[Any] | None:
    """Groups that hold the user's groups and everything that was read alike, or None."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    kinds = int(read.max()) + 1
    if kinds == len(read):
        return groups
    warnings.warn(
        f"Of {len(read)} texts only {kinds} differ up to the position that is read. Equal ones "
        "stay on one side of the split.",
        NeoxLabWarning,
        stacklevel=3,
    )
    if groups is None:
        return list(read)
    own = _numbers(groups, len(read))
    size = kinds + int(own.max()) + 1
    links = coo_array((np.ones(len(read)), (read, kinds + own)), shape=(size, size))
    return list(connected_components(links, directed=False)[1][read])


def _numbers(groups: Sequence[Any], count: int) -> NDArray[np.intp]:
    if len(groups) != count:
        raise DataError(f"{count} texts and {len(groups)} groups; expected one for each")
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def _fitted(
    name: str,
    activations: Array,
    targets: Array,
    kinds: list[Any],
    parts: Sequence[NDArray[np.intp]],
    shuffled: list[Array],
    method: str,
) -> Probe:
    """One site's probe, with its control."""
    from sklearn.metrics import confusion_matrix

    train, validation, test = (activations[part].astype(np.float64) for part in parts)
    right = [targets[part] for part in parts]
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1.0

    def score(weight: Array, bias: Array, part: Array, wanted: Array) -> float:
        return _score(part @ weight.T + bias, wanted, bool(kinds))

    def chosen_by(weight: Array, bias: Array) -> float:
        outputs = validation @ weight.T + bias
        return _score(outputs, right[1], True) if kinds else -_error(outputs, right[1])

    def fit(wantings: list[Array]) -> list[tuple[Array, Array, float | None]]:
        """A probe for each labelling; those of one strength are one regression."""
        if method == "difference":
            return [(*_means(train, wanted, len(kinds)), None) for wanted in wantings]
        columns = [_columns(wanted, len(kinds)) for wanted in wantings]
        tried = _ridge((train - centre) / spread, np.concatenate(columns, axis=1))
        # From weights for standardised activations to weights for activations as they are.
        maps = [(w / spread, b - (w / spread) @ centre, alpha) for w, b, alpha in tried]
        size = columns[0].shape[1]
        mine = [slice(at * size, (at + 1) * size) for at in range(len(wantings))]
        return [
            max(
                ((w[part], b[part], alpha) for w, b, alpha in maps),
                key=lambda found: chosen_by(found[0], found[1]),
            )
            for part in mine
        ]

    (weight, bias, alpha), *controls = fit([right[0], *shuffled])
    outputs = test @ weight.T + bias
    low, high = _interval(outputs, right[2], bool(kinds))
    counts = None
    if kinds:
        counts = confusion_matrix(
            right[2].astype(int), outputs.argmax(axis=1), labels=range(len(kinds))
        )
    return Probe(
        name,
        weight,
        bias,
        centre,
        alpha,
        _score(outputs, right[2], bool(kinds)),
        low,
        high,
        float(np.mean([score(w, b, test, right[2]) for w, b, _ in controls])),
        counts,
    )


def _columns(wanted: Array, classes: int) -> Array:
    """What the regression aims at ``[text, column]``: ±1 for each class, or the numbers."""
    return 2.0 * np.eye(classes)[wanted.astype(int)] - 1 if classes else wanted[:, None]


def _ridge(x: Array, columns: Array) -> list[tuple[Array, Array, float]]:
    """Ridge regression of every column for every alpha: weight ``[column, d]``, bias, alpha.

    With X Xᵀ or Xᵀ X, whichever is smaller, taken apart into eigenvectors once, each alpha is a
    division (Hoerl and Kennard 1970, doi:10.1080/00401706.1970.10488634).
    """
    mean, level = x.mean(axis=0), columns.mean(axis=0)
    x, columns = x - mean, columns - level
    if len(x) >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        back, seen = vectors, vectors.T @ (x.T @ columns)
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        back, seen = x.T @ vectors, vectors.T @ columns
    values = values.clip(min=0)[:, None]
    weights = [(back @ (seen / (values + alpha))).T for alpha in ALPHAS]
    return [(w, level - w @ mean, alpha) for w, alpha in zip(weights, ALPHAS, strict=True)]


def _means(x: Array, wanted: Array, classes: int) -> tuple[Array, Array]:
    """The linear map whose highest score is the nearest class mean: weight and bias."""
    means = np.stack([x[wanted == number].mean(axis=0) for number in range(classes)])
    return means, -0.5 * (means**2).sum(axis=1)


def _score(outputs: Array, wanted: Array, classes: bool) -> float:
    """Accuracy, or R² for numbers, which numbers that are all the same do not have: NaN."""
    if classes:
        return float((outputs.argmax(axis=1) == wanted).mean())
    if np.ptp(wanted) == 0:
        return math.nan
    return float(1 - _error(outputs, wanted) / ((wanted - wanted.mean()) ** 2).sum())


def _error(outputs: Array, wanted: Array) -> float:
    return float(((outputs[:, 0] - wanted) ** 2).sum())


def _interval(outputs: Array, wanted: Array, classes: bool) -> tuple[float, float]:
    if classes:
        return mean_interval((outputs.argmax(axis=1) == wanted).astype(float))
    if np.ptp(wanted) == 0:
        return math.nan, math.nan

    def score(rows: Integers) -> float:
        found = _score(outputs[rows], wanted[rows], False)
        return -math.inf if math.isnan(found) else found

    with np.errstate(invalid="ignore"):
        low, high = statistic_interval(len(wanted), score)
    return low if math.isfinite(low) else math.nan, high
