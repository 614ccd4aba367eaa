"""Writing with a language model, one token at a time, and going back to write something else."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import traitlets

from neox_lab.errors import InputError
from neox_lab.family.contract import LanguageModel
from neox_lab.widgets.branches import Branch, Branches
from neox_lab.widgets.branching import Branching
from neox_lab.widgets.panels import choices, panel
from neox_lab.widgets.worker import Job


class GenerationWidget(Branching):
    """A prompt, its continuation as it is written, and at each place what else might have come.

    ``run`` continues the prompt; ``branch`` goes back to a token, puts another one there and writes
    on; ``show`` goes to another branch. Stopping leaves what has been written.

    Attributes:
        prompt: the text to continue.
        temperature: 0 always takes the likeliest token, 1 draws as the model says.
        top_p: draw among the likeliest tokens that together have this probability.
        length: how many tokens a continuation gets.

    Raises:
        InputError: a model that cannot write.
    """

    kinds = ("trace",)
    prompt = traitlets.Unicode().tag(sync=True, control="text", label="Prompt")
    temperature = traitlets.CFloat(0.0, min=0.0, max=2.0).tag(
        sync=True, control="slider", step=0.05, label="Temperature (0: likeliest)"
    )
    top_p = traitlets.CFloat(1.0, min=0.05, max=1.0).tag(
        sync=True, control="slider", step=0.05, label="Top-p"
    )
    length = traitlets.CInt(24, min=1, max=2000).tag(
        sync=True, control="number", step=1, label="New tokens"
    )

    def __init__(self, model: LanguageModel, prompt: str = "") -> None:
        if getattr(model, "head", None) != "causal-lm":
            raise InputError(
                f"{type(model).__name__} cannot write; expected a GPTNeoXForCausalLM, such as "
                "nl.load(name)."
            )
        self._model = model
        super().__init__(heading="Generation", verb="Write", prompt=prompt)

    @property
    def branches(self) -> list[Branch]:
        """All continuations of the prompt."""
        return [] if self._written is None else self._written.branches

    @property
    def shown(self) -> int:
        """Which of them is shown."""
        return 0 if self._written is None else self._written.shown

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        self._written = Branches(self._model, given.prompt)
        self._write(job, self._written, given)

    def _write(self, job: Job, written: Branches, given: SimpleNamespace) -> None:
        """Continue the branch shown until it is long enough, has ended, or is stopped."""
        sampling: dict[str, Any] = {"do_sample": given.temperature > 0}
        if given.temperature > 0:
            sampling |= {"temperature": given.temperature, "top_p": given.top_p, "top_k": 0}
        try:
            for done in written.write(given.length, **sampling):
                if self._due:
                    self._draw(job, written, progress=[done, given.length])
                job.check()
        finally:
            done = len(written.branches[written.shown].tokens)
            if done:
                self._draw(job, written, now=True, progress=[done, given.length])

    def _tell_written(self, job: Job, written: Branches, done: int | None = None) -> None:
        self._draw(job, written, now=True)

    def _draw(
        self, job: Job, written: Branches, now: bool = False, progress: Sequence[int] = (0, 0)
    ) -> None:
        """Show the branch, and a button for each if there are several."""
        view = written.view()
        panels = [panel("text", view, {"branch": "branch"})]
        if len(written.branches) > 1:
            row = choices("branches", "Branches:", written.names(), written.shown, "show")
            panels.insert(0, row)
        self._show(job, view, panels, now, progress=[*progress])


def generation(model: LanguageModel, prompt: str = "") -> GenerationWidget:
    """Continue a prompt token by token; click a token to see what else might have come.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        prompt: a text to begin with; nothing is written until asked for.

    Raises:
        InputError: a model that cannot write.
    """
    return GenerationWidget(model, prompt)
