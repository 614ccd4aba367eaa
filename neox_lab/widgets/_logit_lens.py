"""The logit lens on a text one can change."""

from __future__ import annotations

from types import SimpleNamespace

import traitlets

from neox_lab.errors import InputError
from neox_lab.experiments import lens
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job


class LogitLensWidget(LiveWidget):
    """What the model would say after each layer; see ``lens.logit_lens``.

    Attributes:
        text: what the model reads.
        site: what is read off.

    Raises:
        InputError: a model without an unembedding.
    """

    kinds = ("grid",)
    text = traitlets.Unicode().tag(sync=True, control="text", label="Text")
    site = traitlets.Unicode("resid_pre").tag(
        sync=True, control="choice", runs=True, label="Read off"
    )

    def __init__(self, model: GPTNeoXPreTrainedModel, text: str) -> None:
        if model.get_output_embeddings() is None:
            raise InputError(
                f"The logit lens needs an unembedding; {type(model).__name__} has none."
            )
        self._model = model
        parallel = model.config.use_parallel_residual
        sites = [site for site in lens.LENS_SITES if not (parallel and site == "resid_mid")]
        super().__init__(options={"site": sites}, heading="Logit lens", verb="Read", text=text)
        self.run()

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        result = lens.logit_lens(self._model, given.text, given.site)
        self._show(job, result, [panel("lens", result.view())])


def logit_lens(model: GPTNeoXPreTrainedModel, text: str) -> LogitLensWidget:
    """The logit lens on a text that can be changed.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        text: what it reads first.

    Raises:
        InputError: a model without an unembedding.
    """
    return LogitLensWidget(model, text)
