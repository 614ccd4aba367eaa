"""Attention of a text one can change."""

from __future__ import annotations

from types import SimpleNamespace

import traitlets

from neox_lab import views
from neox_lab.checks import check, one_of
from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job

EVERY = "all"


class AttentionWidget(LiveWidget):
    """Attention patterns of a model on a text; see ``views.attention``.

    Attributes:
        text: what the model reads.
        layer: the layer whose heads are shown, as text, or ``all``; of long texts one layer shows
            heads that all of them together leave no room for.
        selected: what was locked last: ``{"layer": …, "head": … or "mean", "token": … or None}``.
    """

    kinds = ("attention",)
    actions = (*LiveWidget.actions, "select")
    text = traitlets.Unicode().tag(sync=True, control="text", label="Text")
    layer = traitlets.Unicode(EVERY).tag(sync=True, control="choice", runs=True, label="Layer")
    selected = traitlets.Dict().tag(sync=True)

    def __init__(self, model: HookedModel, text: str) -> None:
        self._model = model
        layers = [EVERY, *map(str, range(model.config.num_hidden_layers))]
        super().__init__(options={"layer": layers}, heading="Attention", verb="Read", text=text)
        self.run()

    def select(
        self, layer: int, head: int | str, token: int | None = None, panel: str = ""
    ) -> None:
        """Note which head and token are locked; the picture itself needs no kernel for that.

        Args:
            layer: its number in the model.
            head: likewise, or ``"mean"``.
            token: from which, counted from 0; None for none.
            panel: has no meaning; the picture has one.
        """
        self.selected = {"layer": layer, "head": head, "token": token}

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        layers = [str(layer) for layer in range(self._model.config.num_hidden_layers)]
        number = None
        if given.layer != EVERY:
            number = layers.index(check("Layer", given.layer, one_of(*layers), InputError))
        view = views.attention(self._model, given.text, layer=number)
        self._show(job, view, [panel("maps", view, {"select": "select"})])


def attention(model: HookedModel, text: str) -> AttentionWidget:
    """Attention maps of a text that can be changed.

    Args:
        model: any of the classes, with a tokenizer.
        text: what it reads first.
    """
    return AttentionWidget(model, text)
