"""Attention of a text one can change."""

from __future__ import annotations

from types import SimpleNamespace

import traitlets

from neox_lab import views
from neox_lab.family.contract import HookedModel
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job


class AttentionWidget(LiveWidget):
    """Attention patterns of a model on a text; see ``views.attention``.

    Attributes:
        text: what the model reads.
        selected: what was locked last: ``{"layer": …, "head": … or "mean", "token": … or None}``.
    """

    kinds = ("attention",)
    actions = (*LiveWidget.actions, "select")
    text = traitlets.Unicode().tag(sync=True, control="text", label="Text")
    selected = traitlets.Dict().tag(sync=True)

    def __init__(self, model: HookedModel, text: str) -> None:
        self._model = model
        super().__init__(heading="Attention", verb="Read", text=text)
        self.run()

    def select(
        self, layer: int, head: int | str, token: int | None = None, panel: str = ""
    ) -> None:
        """Note which head and token are locked; the picture itself needs no kernel for that."""
        self.selected = {"layer": layer, "head": head, "token": token}

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        view = views.attention(self._model, given.text)
        self._show(job, view, [panel("maps", view, {"select": "select"})])


def attention(model: HookedModel, text: str) -> AttentionWidget:
    """Attention maps of a text that can be changed.

    Args:
        model: any of the classes, with a tokenizer.
        text: what it reads first.
    """
    return AttentionWidget(model, text)
