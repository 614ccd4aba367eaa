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

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.errors import DataError, InputError, nearest
from neox_lab.experiments.activations import Where, collected, site_names
from neox_lab.tasks import metrics

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views.curves import CurvesView

Array = NDArray[np.floating[Any]]
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Strengths of regularisation tried, on standardised activations."""
FOLDS = 5  # one for the test, one for validation, the others for training


@dataclasses.dataclass(frozen=True)
class Probe:
    """One linear map from activations `[d]` to scores `[label]` (one score for a number).

    Attributes:
        name: hook name it reads.
        weight: `[label, d]`, for activations as they are.
        bias: `[label]`.
        centre: mean activation of the training texts `[d]`.
        alpha: regularisation chosen; None where there is none.
        score: accuracy (R² for numbers) on the test texts.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        control: score of the same probe trained on shuffled labels.
        confusion: counts `[true, predicted]` on the test texts; None for numbers.
    """

    name: str
    weight: Array
    bias: Array
    centre: Array
    alpha: float | None
    score: float
    low: float
    high: float
    control: float
    confusion: Any


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Probes at several sites, trained and measured on the same texts.

    Attributes:
        probes: one for each site, in the order of the forward pass.
        labels: names of the classes; empty for numbers.
        baseline: score of always saying the commonest class, or the mean.
        where: the position that was read.
        counts: how many texts for training, validation and test.
    """

    probes: list[Probe]
    labels: list[Any]
    baseline: float
    where: Where
    counts: tuple[int, int, int]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a site: score with interval, control, selectivity, baseline, alpha."""
        import pandas as pd

        rows = [
            {
                "site": probe.name,
                "score": probe.score,
                "low": probe.low,
                "high": probe.high,
                "control": probe.control,
                "selectivity": probe.score - probe.control,
                "baseline": self.baseline,
                "alpha": probe.alpha,
            }
            for probe in self.probes
        ]
        return pd.DataFrame(rows)

    @property
    def best(self) -> Probe:
        """The probe with the highest score."""
        return max(self.probes, key=lambda probe: probe.score)

    def __getitem__(self, site: str | int) -> Probe:
        """The probe at a hook name, or the one with that number in ``probes``.

        Raises:
            InputError: there is none.
        """
        if isinstance(site, int) and -len(self.probes) <= site < len(self.probes):
            return self.probes[site]
        for probe in self.probes:
            if probe.name == site:
                return probe
        known = [probe.name for probe in self.probes]
        raise InputError(f"no probe {site!r}; there are {', '.join(known)}")

    def direction(self, site: str | int, label: Any = None) -> Tensor:
        """Unit vector `[d]` along which the probe's score for ``label`` grows fastest.

        Args:
            site: see ``__getitem__``.
            label: for several classes, which one against the others; for two, the second one if
                not given. Numbers have one direction only.

        Raises:
            InputError: no such site or label.
        """
        weight = self[site].weight
        if len(weight) == 1:
            vector = weight[0]
        else:
            if label is None and len(self.labels) == 2:
                label = self.labels[1]
            if label not in self.labels:
                known = [str(name) for name in self.labels]
                raise InputError(
                    f"label={label!r}; expected one of {', '.join(known)}."
                    f"{nearest(str(label), known)}"
                )
            number = self.labels.index(label)
            vector = weight[number] - np.delete(weight, number, axis=0).mean(axis=0)
        return torch.tensor(vector / np.linalg.norm(vector), dtype=torch.float32)

    def steer(
        self, site: str | int, coefficient: float, label: Any = None
    ) -> tuple[str, Callable[[Tensor, Any], Tensor]]:
        """A hook that adds ``coefficient`` times the direction at every position.

        Returns:
            Name and function, for ``model.hooks([...])``.
        """
        direction = self.direction(site, label)

        def add(activation: Tensor, _hook: Any) -> Tensor:
            vector = direction.to(activation).view(activation.shape[2:])
            return activation + coefficient * vector

        return self[site].name, add

    def remove(
        self, site: str | int, label: Any = None
    ) -> tuple[str, Callable[[Tensor, Any], Tensor]]:
        """A hook after which nothing varies along the direction: it gets the training mean there.

        Returns:
            Name and function, for ``model.hooks([...])``.
        """
        direction = self.direction(site, label)
        level = float(direction @ torch.tensor(self[site].centre, dtype=torch.float32))

        def project(activation: Tensor, _hook: Any) -> Tensor:
            vector = direction.to(activation)
            flat = activation.flatten(2)
            moved = flat + ((level - flat @ vector)[..., None] * vector)
            return moved.view(activation.shape)

        return self[site].name, project

    def predict(self, model: Any, texts: Sequence[str], site: str | int | None = None) -> Any:
        """What the probe at ``site`` (the best one) says of new texts, as a frame."""
        import pandas as pd

        probe = self.best if site is None else self[site]
        with collected(model, texts, [probe.name], self.where) as found:
            scores = found[probe.name] @ probe.weight.T + probe.bias
        said = [self.labels[n] for n in scores.argmax(axis=1)] if self.labels else scores[:, 0]
        return pd.DataFrame({"text": list(texts), "prediction": said})

    def view(self) -> CurvesView:
        """Score by site, with its interval, beside control and baseline."""
        from neox_lab.views.curves import CurvesView, Line

        frame = self.frame
        at = np.arange(len(frame))
        kind = "accuracy" if self.labels else "R²"
        lines = {
            kind: Line(at, frame["score"], frame["low"], frame["high"]),
            "control (shuffled labels)": Line(at, frame["control"]),
        }
        level = "commonest class" if self.labels else "always the mean"
        names = [name.removeprefix("blocks.").replace(".hook_", " ") for name in frame["site"]]
        title = f"Probes, {self.counts[2]} test texts"
        return CurvesView(title, lines, "site", kind, names, {level: self.baseline})

    def __repr__(self) -> str:
        """The view's text."""
        return repr(self.view())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return self.view()._repr_mimebundle_(include, exclude)

    def __getattr__(self, name: str) -> Any:
        """``to_png`` and the like are those of the view."""
        if name.startswith("to_"):
            return getattr(self.view(), name)
        raise AttributeError(f"ProbeResult has no attribute {name!r}")


def probe(
    model: Any,
    texts: Sequence[str],
    labels: Sequence[Any],
    sites: str | Sequence[str] = "resid_post",
    pos: Where = -1,
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
        texts: what it reads.
        labels: one for each text: names or whole numbers for classes, floats for a quantity.
        sites: such as ``"resid_post"`` (of every layer), a hook name, a glob, or several.
        pos: position in each text's own tokens (-1 is the last), ``"mean"``, or one for each text.
        method: ``linear`` is ridge regression, on one column a class, with regularisation chosen
            on the validation texts; ``difference`` compares with the mean activation of each class
            (classes only).
        groups: texts with the same group never stand on two sides of a split.
        batch_size: texts in one forward pass.
        memory: above so many bytes activations live in files, while this runs.
        seed: of the split, the shuffled labels and the bootstrap.

    Raises:
        DataError: labels and texts differ in number, one class only, or too few texts or groups.
        InputError: an unknown method, or a position that a text does not have.
        HookNameError: no such site.
    """
    if method not in ("linear", "difference"):
        raise InputError(f"method={method!r}; expected 'linear' or 'difference'")
    names = site_names(model, sites)
    kinds, targets = _targets(labels, len(texts))
    if method == "difference" and not kinds:
        raise InputError("method='difference' compares classes; these labels are numbers")
    parts = _parts(targets, kinds, groups, seed)
    shuffled = np.random.default_rng(seed).permutation(targets[parts[0]])
    probes = []
    with collected(model, texts, names, pos, batch_size=batch_size, memory=memory) as found:
        for name in names:
            probes.append(_fitted(name, found[name], targets, kinds, parts, shuffled, method))
    test = targets[parts[2]]
    baseline = float(np.bincount(test.astype(int)).max() / len(test)) if kinds else 0.0
    counts = (len(parts[0]), len(parts[1]), len(parts[2]))
    return ProbeResult(probes, kinds, baseline, pos, counts)


def _targets(labels: Sequence[Any], count: int) -> tuple[list[Any], Array]:
    """Names of the classes (none for numbers), and class numbers or values `[text]`."""
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
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    together = np.arange(len(targets)) if groups is None else _numbers(groups, len(targets))
    if len(np.unique(together)) < FOLDS:
        raise DataError(
            f"{len(np.unique(together))} texts or groups; expected {FOLDS} at least, to train, "
            "choose and test on different ones"
        )
    few = [kind for at, kind in enumerate(kinds) if (targets == at).sum() < FOLDS]
    if few:
        raise DataError(f"fewer than {FOLDS} texts for {few}; leave these classes out")
    if kinds:
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    else:
        splitter = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    folds = [test for _, test in splitter.split(targets, targets, together)]
    train = np.concatenate(folds[2:])
    if kinds and len(np.unique(targets[train])) < len(kinds):
        raise DataError("a class is in one group only; it cannot be trained on and tested")
    return train, folds[1], folds[0]


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
    shuffled: Array,
    method: str,
) -> Probe:
    """One site's probe, with its control."""
    train, validation, test = (activations[part].astype(np.float64) for part in parts)
    right = [targets[part] for part in parts]
    centre, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1.0

    def score(weight: Array, bias: Array, part: Array, wanted: Array) -> float:
        return _score(part @ weight.T + bias, wanted, bool(kinds))

    def fit(wanted: Array) -> tuple[Array, Array, float | None]:
        if method == "difference":
            return (*_means(train, wanted, len(kinds)), None)
        found = _ridge((train - centre) / spread, wanted, len(kinds))
        maps = [(w / spread, b - (w / spread) @ centre, alpha) for w, b, alpha in found]
        return max(maps, key=lambda m: score(m[0], m[1], validation, right[1]))

    weight, bias, alpha = fit(right[0])
    control_weight, control_bias, _ = fit(shuffled)
    outputs = test @ weight.T + bias
    low, high = _interval(outputs, right[2], bool(kinds))
    counts = None
    if kinds:
        counts = metrics.confusion(right[2].astype(int), outputs.argmax(axis=1), len(kinds))
    return Probe(
        name,
        weight,
        bias,
        centre,
        alpha,
        _score(outputs, right[2], bool(kinds)),
        low,
        high,
        score(control_weight, control_bias, test, right[2]),
        counts,
    )


def _ridge(x: Array, wanted: Array, classes: int) -> list[tuple[Array, Array, float]]:
    """Ridge regression on ±1 columns (or the numbers) for every alpha: weight, bias, alpha."""
    from sklearn.linear_model import Ridge

    columns = 2.0 * np.eye(classes)[wanted.astype(int)] - 1 if classes else wanted[:, None]
    found = []
    for alpha in ALPHAS:
        ridge = Ridge(alpha=alpha, solver="cholesky").fit(x, columns)
        found.append((np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_), alpha))
    return found


def _means(x: Array, wanted: Array, classes: int) -> tuple[Array, Array]:
    """The linear map whose highest score is the nearest class mean: weight and bias."""
    means = np.stack([x[wanted == number].mean(axis=0) for number in range(classes)])
    return means, -0.5 * (means**2).sum(axis=1)


def _score(outputs: Array, wanted: Array, classes: bool) -> float:
    """Accuracy, or R² for numbers."""
    if classes:
        return float((outputs.argmax(axis=1) == wanted).mean())
    error = ((outputs[:, 0] - wanted) ** 2).sum()
    return float(1 - error / max(1e-12, ((wanted - wanted.mean()) ** 2).sum()))


def _interval(outputs: Array, wanted: Array, classes: bool) -> tuple[float, float]:
    if classes:
        return metrics.mean_interval((outputs.argmax(axis=1) == wanted).astype(float))
    return metrics.interval(len(wanted), lambda rows: _score(outputs[rows], wanted[rows], False))
