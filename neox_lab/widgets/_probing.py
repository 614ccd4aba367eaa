"""Probes, site by site, and what they say of a text."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import traitlets

from neox_lab.errors import InputError, nearest
from neox_lab.experiments.probing_result import ProbeResult
from neox_lab.family.contract import HookedModel
from neox_lab.results import Result
from neox_lab.views import ConfusionView, HeatmapView, View
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job


class ProbingWidget(LiveWidget):
    """Scores by site, the mistakes of one probe, and every probe's answer to a text.

    Args:
        result: the probes, as ``nl.probing.probe`` returns them.
        model: what reads the text that they are asked about; None for no such text.
        text: what stands there first.

    Attributes:
        site: whose mistakes are shown.
        text: for a widget with a model, what the probes are asked about.

    Raises:
        InputError: ``result`` is something else.
    """

    kinds = ("curves", "grid")
    actions = (*LiveWidget.actions, "select")
    site = traitlets.Unicode().tag(sync=True, control="choice", runs=True, label="Probe at")
    text = traitlets.Unicode().tag(sync=True, control="text", label="Ask the probes about a text")

    def __init__(
        self, result: ProbeResult, model: HookedModel | None = None, text: str = ""
    ) -> None:
        if not isinstance(result, ProbeResult):
            raise InputError(
                f"nl.widgets.probing shows what nl.probing.probe returned; got a "
                f"{type(result).__name__}."
            )
        self._probes, self._model = result, model
        names = [probe.name for probe in result.probes]
        super().__init__(
            options={"site": names}, heading="Probes", verb="Ask", site=result.best.name, text=text
        )
        if model is None:
            self.controls = [control for control in self.controls if control["name"] != "text"]
        self.run()

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        names = [probe.name for probe in self._probes.probes]
        if given.site not in names:
            raise InputError(f"no probe {given.site!r}.{nearest(given.site, names)}")
        probe = self._probes[given.site]
        views: list[View] = [self._probes.view()]
        if probe.confusion is not None:
            title = f"Mistakes of the probe at {given.site}"
            kinds = [str(name) for name in self._probes.labels]
            views.append(ConfusionView(probe.confusion, kinds, title=title))
        result: Result | View = self._probes
        if self._model is not None and given.text:
            said = self._said(self._model, given.text)
            result = said
            views.append(said)
        panels = [panel(view.title, view) for view in views]
        beside = views[:-1] if result is views[-1] else views[1:]
        self._show(job, result, panels, beside=beside)

    def _said(self, model: HookedModel, text: str) -> HeatmapView:
        """Each probe's scores for a text, its answer the largest."""
        from neox_lab.data.activations import collected

        probes = self._probes.probes
        names = [probe.name for probe in probes]
        with collected(model, [text], names, self._probes.where) as found:
            scores = np.stack(
                [(found[probe.name] @ probe.weight.T + probe.bias)[0] for probe in probes]
            )
        kinds = [str(name) for name in self._probes.labels] or ["value"]
        return HeatmapView(
            scores,
            names,
            kinds,
            row_axis="site",
            column_axis="label",
            value_name="score",
            title=f"What the probes say of: {text}",
            centre=0.0,
        )


def probing(result: ProbeResult, model: HookedModel | None = None, text: str = "") -> ProbingWidget:
    """Probes site by site: scores, mistakes, and with a model their answers to any text.

    Args:
        result: what ``nl.probing.probe`` returned.
        model: the model that was probed; None for scores and mistakes only.
        text: what the probes are asked about first.
    """
    return ProbingWidget(result, model, text)
