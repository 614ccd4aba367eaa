"""What probing finds: probes with their scores, their directions as hooks, and the curve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.data.activations import collected
from neox_lab.data.positions import TextPosition
from neox_lab.errors import InputError, nearest
from neox_lab.frames import make_frame
from neox_lab.results import Result
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.model.hook_points import HookPoint
    from neox_lab.views.curves import CurvesView

Array = NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One linear map from activations ``[d]`` to scores ``[label]`` (one score for a number).

    Attributes:
        name: hook name it reads.
        weight: ``[label, d]``, for activations as they are.
        bias: ``[label]``.
        centre: mean activation of the training texts ``[d]``.
        alpha: regularisation chosen; None where there is none.
        score: accuracy on the test texts; for numbers R², NaN where these are all the same.
        low: lower end of its 95 % bootstrap interval; NaN where so few texts give none.
        high: upper end.
        control: score of the same probe trained on shuffled labels, the mean of three shufflings.
        confusion: counts ``[true, predicted]`` on the test texts; None for numbers.
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
class ProbeResult(Result):
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
    where: TextPosition
    counts: tuple[int, int, int]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a site: score with interval, control, selectivity, baseline, alpha."""
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
        return make_frame(rows)

    @property
    def best(self) -> Probe:
        """The probe with the highest score."""
        return max(self.probes, key=lambda probe: probe.score)

    def __getitem__(self, site: str | int) -> Probe:
        """The probe at a hook name, or the one with that number in ``probes``.

        Raises:
            InputError: there is none.
        """
        if not isinstance(site, str):
            return self.probes[entry("site", site, len(self.probes), InputError)]
        for probe in self.probes:
            if probe.name == site:
                return probe
        known = [probe.name for probe in self.probes]
        raise InputError(f"no probe {site!r}; there are {', '.join(known)}")

    def direction(self, site: str | int, label: object = None) -> Tensor:
        """Unit vector ``[d]`` along which the probe's score for ``label`` grows fastest.

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
        self, site: str | int, coefficient: float, label: object = None
    ) -> tuple[str, Callable[[Tensor, HookPoint], Tensor]]:
        """A hook that adds ``coefficient`` times the direction at every position.

        Args:
            site: see ``__getitem__``.
            coefficient: how far; the direction has length 1.
            label: see ``direction``.

        Returns:
            Name and function, for ``model.hooks([...])``.

        Raises:
            InputError: no such site or label.
        """
        direction = self.direction(site, label)

        def add(activation: Tensor, _hook: HookPoint) -> Tensor:
            vector = direction.to(activation).view(activation.shape[2:])
            return activation + coefficient * vector

        return self[site].name, add

    def remove(
        self, site: str | int, label: object = None
    ) -> tuple[str, Callable[[Tensor, HookPoint], Tensor]]:
        """A hook after which nothing varies along the direction: it gets the training mean there.

        Args:
            site: see ``__getitem__``.
            label: see ``direction``.

        Returns:
            Name and function, for ``model.hooks([...])``.

        Raises:
            InputError: no such site or label.
        """
        direction = self.direction(site, label)
        level = float(direction @ torch.tensor(self[site].centre, dtype=torch.float32))

        def project(activation: Tensor, _hook: HookPoint) -> Tensor:
            vector = direction.to(activation)
            flat = activation.flatten(2)
            moved = flat + ((level - flat @ vector)[..., None] * vector)
            return moved.view(activation.shape)

        return self[site].name, project

    def predict(
        self, model: HookedModel, texts: Sequence[str], site: str | int | None = None
    ) -> pd.DataFrame:
        """What the probe at ``site`` (the best one) says of new texts, as a frame.

        Args:
            model: whose activations.
            texts: the texts.
            site: see ``__getitem__``; None for the best one.

        Raises:
            InputError: no such site.
        """
        probe = self.best if site is None else self[site]
        with collected(model, texts, [probe.name], self.where) as found:
            scores = found[probe.name] @ probe.weight.T + probe.bias
        said = [self.labels[n] for n in scores.argmax(axis=1)] if self.labels else scores[:, 0]
        return make_frame({"text": list(texts), "prediction": said})

    def view(self) -> CurvesView:
        """Score by site, with its interval, beside control and baseline; a line for each kind."""
        from neox_lab.views.curves import CurvesView, Line

        frame = self.frame
        score = "accuracy" if self.labels else "R²"
        kinds, places = zip(*(_kind_and_place(name) for name in frame["site"]), strict=True)
        several = len(set(kinds) - {""}) > 1
        names = list(dict.fromkeys(places if several else _short(frame["site"].tolist())))
        frame["at"] = [names.index(place) for place in places] if several else range(len(frame))
        lines = {}
        for kind in dict.fromkeys(kinds if several else [""]):
            part = frame[[one == kind for one in kinds]] if several else frame
            prefix = f"{kind}, " if kind else ""
            lines[prefix + score] = Line(part["at"], part["score"], part["low"], part["high"])
            lines[f"{prefix}control (shuffled labels)"] = Line(part["at"], part["control"])
        level = "commonest class" if self.labels else "always the mean"
        title = f"Probes, {self.counts[2]} test texts"
        axis = "layer" if several else "site"
        return CurvesView(title, lines, axis, score, names, {level: self.baseline})


def _short(names: Sequence[str]) -> list[str]:
    return [name.removeprefix("blocks.").replace(".hook_", " ") for name in names]


def _kind_and_place(name: str) -> tuple[str, str]:
    """What a hook name reads in every layer, and in which one; or "" and the name itself."""
    _, blocks, inside = name.partition("blocks.")
    layer, _, kind = inside.partition(".")
    return (kind.replace("hook_", ""), layer) if blocks else ("", name)
