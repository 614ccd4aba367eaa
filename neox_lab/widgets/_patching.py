"""Patching at a click: sweep a site, then run one cell again and read what the model writes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import traitlets
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.metrics import logit_difference
from neox_lab.experiments.patching import PatchResult, sweep
from neox_lab.experiments.patching.sites import SITES, Site
from neox_lab.family.contract import LanguageModel
from neox_lab.hooks.hooking import HookList
from neox_lab.model.hook_points import HookFunction, HookPoint
from neox_lab.views import TextView
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job, Stopped

Cell = dict[str, int]
"""An index for each axis of a result."""

CLICK = {"cell": "select"}


class PatchingWidget(LiveWidget):
    """Clean activations patched into the corrupted run, cell by cell; see ``patching.sweep``.

    ``select`` runs one cell again and writes on from there, beside the two unpatched prompts: the
    prompt's activations are patched, everything after it is the model's own.

    Attributes:
        clean: the prompt with the behaviour.
        corrupted: the prompt without it, of as many tokens.
        correct: the token that the clean prompt makes likely.
        wrong: the token that the corrupted prompt makes likely.
        site: what is patched.
        length: how many tokens are written when a cell is chosen.
        cell: what was run again last: an index for each axis.
        differences: logit difference of ``correct`` and ``wrong`` after the prompts run again, by
            name: ``clean``, ``corrupted``, ``patched``.

    Raises:
        InputError: a model that cannot write.
    """

    kinds = ("grid", "trace")
    actions = (*LiveWidget.actions, "select")
    clean = traitlets.Unicode().tag(sync=True, control="text", label="Clean prompt")
    corrupted = traitlets.Unicode().tag(sync=True, control="text", label="Corrupted prompt")
    correct = traitlets.Unicode().tag(sync=True, control="token", label="Correct token")
    wrong = traitlets.Unicode().tag(sync=True, control="token", label="Wrong token")
    site = traitlets.Unicode("resid_pre").tag(sync=True, control="choice", runs=True, label="Site")
    length = traitlets.CInt(12, min=1, max=200).tag(
        sync=True, control="number", step=1, label="Tokens to write"
    )

    def __init__(
        self, model: LanguageModel, clean: str, corrupted: str, correct: str, wrong: str
    ) -> None:
        if getattr(model, "head", None) != "causal-lm":
            raise InputError(
                f"{type(model).__name__} cannot write; expected a GPTNeoXForCausalLM. "
                "nl.patching.sweep patches the other heads too."
            )
        self._model = model
        self._asked: SimpleNamespace | None = None
        self._sweep: PatchResult | None = None
        self.cell: Cell | None = None
        self.differences: dict[str, float] = {}
        parallel = model.config.use_parallel_residual
        sites = [
            site.name
            for site in SITES.values()
            if "source_pos" not in site.axes and not (parallel and site.name == "resid_mid")
        ]
        super().__init__(
            options={"site": sites},
            heading="Activation patching",
            verb="Sweep",
            clean=clean,
            corrupted=corrupted,
            correct=correct,
            wrong=wrong,
        )
        self.run()

    def select(self, row: int, column: int) -> None:
        """Run the cell at a field of the map again.

        Where a field stands for several heads, that is the head that changes most.

        Args:
            row: counted from 0, from the top.
            column: counted from 0, from the left.

        Raises:
            InputError: there is no such field, or it was not measured.
        """
        if self._sweep is None or self._asked is None:
            raise InputError("There is no map yet.")
        result, asked = self._sweep, self._asked
        cell = cell_at(result, row, column)
        self._start(lambda job: self._run_again(job, result, asked, cell))

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        def report(done: int, total: int) -> None:
            if job.stopped:
                raise KeyboardInterrupt  # how a sweep is ended
            self._publish(job, progress=[done, total])

        metric = logit_difference(given.correct, given.wrong)
        result = sweep(
            self._model, given.clean, given.corrupted, metric, given.site, progress=report
        )
        self._sweep, self._asked, self.cell, self.differences = result, given, None, {}
        self._show(job, result, [panel("map", result.view(), CLICK)], now=True)
        if not result.complete:
            raise Stopped
        self._publish(job, message="Click a field to run it again and read on.")

    def _run_again(self, job: Job, result: PatchResult, asked: SimpleNamespace, cell: Cell) -> None:
        site = SITES[result.site[0]]
        name = f"blocks.{cell['layer']}.{site.hook}"
        _, cache = self._model.run_with_cache(asked.clean, names_filter=name)
        hook = (name, replacing(site, cell, cache[name]))
        where = ", ".join(f"{axis} {at}" for axis, at in cell.items())
        views, differences = [], {}
        for title, prompt, hooks in (
            ("clean", asked.clean, []),
            ("corrupted", asked.corrupted, []),
            ("patched", asked.corrupted, [hook]),
        ):
            shown = f"{title.capitalize()} at {where}" if hooks else title.capitalize()
            view, differences[title] = self._written(job, asked, prompt, hooks, shown)
            views.append(view)
        self.cell, self.differences = cell, differences
        names = ("clean", "corrupted", "patched")
        texts = [panel(name, view, beside=True) for name, view in zip(names, views, strict=True)]
        for text in texts:  # what the logit difference is about: the first token written
            text["data"]["position"] = max(0, text["data"]["prompt"] - text["data"]["first"])
        self._show(job, result, [panel("map", result.view(), CLICK), *texts], beside=views)
        self._publish(job, message=f"{result.site[0]}: {where}")

    def _written(
        self, job: Job, asked: SimpleNamespace, prompt: str, hooks: HookList, title: str
    ) -> tuple[TextView, float]:
        """A prompt continued greedily, and the logit difference right after it."""
        model = self._model
        correct, wrong = (model.to_single_token(text) for text in (asked.correct, asked.wrong))
        steps = []
        with model.hooks(hooks):
            for step in model.stream(prompt, max_new_tokens=self.length, do_sample=False):
                job.check()
                steps.append(step)
        difference = float(steps[0].logits[correct] - steps[0].logits[wrong])
        view = TextView(
            model.to_str_tokens(prompt),
            [step.piece for step in steps],
            [step.probability for step in steps],
            alternatives=[[(a.text, a.probability) for a in step.alternatives] for step in steps],
            title=f"{title}: logit difference {difference:.2f}".replace("-", "−"),
        )
        return view, difference


def cell_at(result: PatchResult, row: int, column: int) -> Cell:
    """The cell that a field of ``result.view()`` shows.

    Raises:
        InputError: no such field, or one that was not measured.
    """
    axes = list(result.axes)
    shown = [axis for axis in axes if len(axes) == 2 or axis != "head"]
    rows, columns = (result.values.shape[axes.index(axis)] for axis in shown)
    if not (0 <= row < rows and 0 <= column < columns):
        raise InputError(f"There is no field ({row}, {column}) in a map of {rows} by {columns}.")
    cell = dict(zip(shown, (row, column), strict=True))
    where = tuple(cell.get(axis, slice(None)) for axis in axes)
    effects, computed = result.effect()[where].numpy(), result.is_computed[where].numpy()
    if not computed.any():
        raise InputError("This field was not measured; sweep again.")
    if "head" not in cell and "head" in axes:
        cell["head"] = int(np.where(computed, np.abs(effects), -1).argmax())  # NaN is farthest
    return cell


def replacing(site: Site, cell: Cell, source: Tensor) -> HookFunction:
    """A hook that puts ``source`` at one cell while the prompt is read, and never after it."""
    every = slice(None)
    pos, head = cell.get("pos", every), cell.get("head", every)
    if site.is_pattern:
        where: tuple[Any, ...] = (every, head, pos)
    else:
        where = (every, pos, head) if site.by_head else (every, pos)

    def replace(tensor: Tensor, hook: HookPoint) -> Tensor | None:
        if hook.step:
            return None
        tensor[where] = source[where]
        return tensor

    return replace


def patching(
    model: LanguageModel, clean: str, corrupted: str, correct: str, wrong: str
) -> PatchingWidget:
    """Activation patching as a map; click a field to run it again and read on.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        clean: the prompt with the behaviour.
        corrupted: the prompt without it, of as many tokens.
        correct: the one token that the clean prompt makes likely.
        wrong: the one token that the corrupted prompt makes likely.

    Raises:
        InputError: a model that cannot write.
    """
    return PatchingWidget(model, clean, corrupted, correct, wrong)
