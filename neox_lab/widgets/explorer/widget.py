"""The explorer as a live widget: a prompt, a second one, and panels that share one selection."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import traitlets

from neox_lab.errors import InputError
from neox_lab.family import GPTNeoXForCausalLM
from neox_lab.family.tree import headline
from neox_lab.results import Result
from neox_lab.views import View, label
from neox_lab.views.explorer import ExplorerView, ReadingView
from neox_lab.views.tokens import sentence
from neox_lab.widgets.branches import Branches
from neox_lab.widgets.branching import Branching
from neox_lab.widgets.explorer import questions
from neox_lab.widgets.explorer.calls import as_python, continued
from neox_lab.widgets.explorer.examples import examples
from neox_lab.widgets.explorer.opened import OPENED, answer
from neox_lab.widgets.explorer.questions import Answer, Asked
from neox_lab.widgets.explorer.reading import Reading, compare, read
from neox_lab.widgets.explorer.revisions import check_writes
from neox_lab.widgets.explorer.saving import FORMS, panel_view
from neox_lab.widgets.explorer.selection import Selection
from neox_lab.widgets.explorer.tools import Tools
from neox_lab.widgets.panels import choices
from neox_lab.widgets.panels import panel as picture
from neox_lab.widgets.worker import Job, Stopped

ANSWERS: dict[str, Callable[[Asked], Answer]] = {
    "ablation": questions.ablation,
    "heads": questions.heads,
    "induction": questions.induction,
    "attribution": questions.attribution,
    "off": questions.switched_off,
    "swap": questions.swapped,
    "resid_pre": lambda asked: questions.patching(asked, "resid_pre"),
    "attn_out": lambda asked: questions.patching(asked, "attn_out"),
    "mlp_out": lambda asked: questions.patching(asked, "mlp_out"),
    **{panel: partial(answer, panel) for panel in OPENED},
}
PARTS = ("compared", "effects", "attribution", "patching", "switched", "writing", *OPENED)
"""Traits with what was asked for, which the browser gets one by one."""
OF_ALL = ("training",)
"""Those that are of all checkpoints, and stay when another one is shown; as in ``explorer.js``."""
WANTED = {name: name for name in ("ask", "save", "branch", "show")} | {
    "state": "select",
    "revision": "go_to",
}
NEW_TOKENS = 16
EXAMPLE_LIMIT = 36


class ExplorerWidget(Branching):
    """One run of a model in linked panels; see ``nl.explore``.

    Attributes:
        prompt: what the model reads.
        second: another prompt to compare with; empty for none.
        state: what is selected, see ``views/assets/explorer.js``.
        compared: the run on the second prompt, or of the other model.
        effects: measures of heads that were asked for, by name.
        attribution: which tokens matter.
        patching: where the difference between the prompts travels.
        switched: what comes next with one head changed.
        writing: the continuation.
        features: which are active, and to what effect.
        tuned: what the tuned lens reads.
        steering: what a direction does.
        circuit: which edges carry the difference between the prompts.
        training: the expected token over checkpoints.
        revision: the checkpoint on show; empty if there is only one.
        reading: what it made of the prompt, if another one is drawn already.
        download: a file for the browser to save.

    Raises:
        InputError: a model that cannot write.
    """

    kinds = ("explorer",)
    actions = (*Branching.actions, "select", "ask", "save", "go_to", "example")
    unwritten = "Nothing is written yet: use the button “write on”."
    prompt = traitlets.Unicode().tag(sync=True, control="text", label="Prompt")
    second = traitlets.Unicode().tag(
        sync=True, control="text", label="Second prompt, to compare (may be empty)"
    )
    state: Any = traitlets.Dict().tag(sync=True)
    compared: Any = traitlets.Dict().tag(sync=True)
    effects: Any = traitlets.Dict().tag(sync=True)
    attribution: Any = traitlets.Dict().tag(sync=True)
    patching: Any = traitlets.Dict().tag(sync=True)
    switched: Any = traitlets.Dict().tag(sync=True)
    writing: Any = traitlets.Dict().tag(sync=True)
    features: Any = traitlets.Dict().tag(sync=True)
    tuned: Any = traitlets.Dict().tag(sync=True)
    steering: Any = traitlets.Dict().tag(sync=True)
    circuit: Any = traitlets.Dict().tag(sync=True)
    training: Any = traitlets.Dict().tag(sync=True)
    reading: Any = traitlets.Dict().tag(sync=True)
    download: Any = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        model: GPTNeoXForCausalLM,
        prompt: str,
        second: str = "",
        against: GPTNeoXForCausalLM | None = None,
        tools: Tools | None = None,
    ) -> None:
        check_writes(model)
        if against is not None:
            check_writes(against)
        self._model, self._against = model, against
        self._tools = Tools() if tools is None else tools
        self._revisions = revisions = self._tools.revisions
        self.revision = "" if revisions is None else revisions.chosen
        self._read_before: dict[str, Reading] = {}
        self._reading: Reading | None = None
        self._other: Reading | None = None
        self._answers: dict[str, Result | View] = {}
        super().__init__(heading="Explorer", verb="Run", prompt=prompt, second=second)
        self.run()

    @property
    def result(self) -> Result | View | None:
        """Everything on show as a view that needs no kernel; waits for the first run.

        Raises:
            Exception: whatever that run raised.
        """
        return self.wait() if self._result is None else self._result

    # What the browser asks for.

    def select(self, state: dict) -> None:  # type: ignore[type-arg]  # checked as it stands
        """Note what is selected; the picture needs no kernel for that."""
        with self._lock:
            self.state = dict(state)
            if isinstance(self._result, ExplorerView):
                self._result = view = self._result.selecting(self.state)
                self._shown = (view,)

    def ask(self, what: str) -> None:
        """Ask a question about what is selected.

        Raises:
            InputError: nothing was read yet, or an unknown question.
        """
        reading = self._read()
        if what == "writing":
            self._written = written = Branches(self._model, reading.prompt)
            given = self._given()
            self._start(lambda job: self._write(job, written, given))
        elif what in ANSWERS:
            chosen, other = self._chosen(), self._other
            self._start(lambda job: self._find(job, what, reading, other, chosen))
        else:
            known = ", ".join([*ANSWERS, "writing"])
            raise InputError(f"unknown question {what!r}; expected one of {known}")

    def go_to(self, name: str) -> None:
        """Show another checkpoint.

        Raises:
            InputError: there is none of this name.
        """
        names = () if self._revisions is None else self._revisions.names
        if name not in names:
            raise InputError(f"There is no revision {name!r}; there are {', '.join(names)}.")
        second = "" if self._other is None else self._other.prompt
        given = SimpleNamespace(prompt=self._read().prompt, second=second)
        self._start(lambda job: self._move(job, given, name))

    def example(self, choice: int) -> None:
        """Read a pair of prompts that the model should do well.

        Raises:
            InputError: there is none with this number.
        """
        pairs = examples(self._model)
        if not 0 <= choice < len(pairs):
            raise InputError(f"There is no example {choice}; there are {len(pairs)}.")
        self.prompt, self.second = pairs[choice]
        self.run()

    def save(self, panel: str, form: str) -> None:
        """Make a file of one panel and hand it to the browser.

        Raises:
            InputError: nothing to save there, or no such form.
        """
        if form not in FORMS:
            raise InputError(f"form={form!r}; expected one of {', '.join(FORMS)}.")
        reading = self._read()
        view = panel_view(panel, reading, self._chosen(), self.effects, self._answers)
        content = base64.b64encode(FORMS[form](view)).decode("ascii")
        asked = str(self.request.get("id"))
        self.download = {"name": f"{panel}.{form}", "content": content, "id": asked}

    # How the work is done.

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        self._publish(job, now=True, message="Reading the prompt …")
        self._read_before = {}
        self._run(job, given, self.revision)
        view = self._view()
        self._publish(job, now=True, message="", reading={})
        pairs = examples(self._model)
        names = [sentence(prompt, EXAMPLE_LIMIT) for prompt, _ in pairs]
        now = (given.prompt, given.second)
        row = choices(
            "examples", "Try:", names, pairs.index(now) if now in pairs else -1, "example"
        )
        self._show(job, view, [row, picture("explorer", view, WANTED)], now=True)

    def _move(self, job: Job, given: SimpleNamespace, name: str) -> None:
        """Another checkpoint on the same prompt, in the panels that are there."""
        measured = "induction score" in self.effects
        self._publish(job, now=True, message=f"Reading with {name} …")
        self._run(job, given, name)
        self._publish(job, now=True, message=name, reading=self._read().view.data())
        if measured:
            self._find(job, "induction", self._read(), self._other, self._chosen())
        self._keep(job)

    def _run(self, job: Job, given: SimpleNamespace, name: str) -> None:
        """Read the prompts with a checkpoint; what was asked of another one is gone."""
        if self._revisions is not None:
            self._model = self._revisions.model(name)
        job.check()
        reading = self._read_before.get(name) or read(self._model, given.prompt)
        job.check()
        other = self._second(reading, given)
        compared = {} if other is None else compare(self._model, reading, self._against, other)
        job.check()
        self._read_before[name] = reading
        kept = () if self.revision == name else OF_ALL
        self._reading, self._other, self._written = reading, other, None
        self._answers = {part: found for part, found in self._answers.items() if part in kept}
        state = dict(self.state)
        if self.revision == name:  # a new prompt: its end
            last = {"position": reading.length - 1, "row": len(reading.view.lens.row_labels) - 1}
            state |= {**last, "key": None}
        self.revision = name
        gone: dict[str, object] = {part: {} for part in PARTS if part not in kept}
        self._publish(job, now=True, **{**gone, "state": state, "compared": compared})

    def _second(self, reading: Reading, given: SimpleNamespace) -> Reading | None:
        """The reading to compare with, if there is one."""
        if not given.second and self._against is None:
            return None
        return read(self._against or self._model, given.second or reading.prompt)

    def _find(
        self, job: Job, what: str, reading: Reading, other: Reading | None, chosen: Selection
    ) -> None:
        """Answer a question and show it; one that was stopped half way is no answer."""

        def report(done: int, total: int) -> None:
            if job.stopped:
                raise KeyboardInterrupt  # how a sweep is ended
            self._publish(job, progress=[done, total])

        alone, effects = self._against is None, dict(self.effects)
        asked = Asked(self._model, reading, other, alone, chosen, effects, report, self._tools)
        try:
            found = ANSWERS[what](asked)
        except KeyboardInterrupt:  # from ``report``, where nobody else took it
            raise Stopped from None
        job.check()
        if not getattr(found.result, "complete", True):
            raise Stopped
        self._answers.pop(found.part, None)
        if found.result is not None:
            self._answers[found.part] = found.result
        told: dict[str, object] = {found.part: found.data}
        if found.part == "effects":
            told["state"] = {**self.state, "measure": list(found.data)[-1]}
        self._publish(job, now=True, **told)
        self._keep(job)

    def _write(self, job: Job, written: Branches, given: SimpleNamespace) -> None:
        """Continue the branch shown."""
        try:
            for done in written.write(NEW_TOKENS, do_sample=False):
                if self._due:
                    self._tell_written(job, written, done)
                job.check()
        finally:
            self._tell_written(job, written)

    def _tell_written(self, job: Job, written: Branches, done: int | None = None) -> None:
        tokens = [
            {
                "text": label(token.piece, 24),
                "share": round(token.probability, 4),
                "alternatives": [
                    [label(other.text, 24), round(other.probability, 4)]
                    for other in token.alternatives
                ],
            }
            for token in written.branches[written.shown].tokens
        ]
        branch = written.branches[written.shown]
        given = 0 if branch.origin is None else branch.start + 1
        code = continued(NEW_TOKENS - given, [token.token for token in branch.tokens[:given]])
        found = {"tokens": tokens, "branches": written.names(), "shown": written.shown}
        found["code"] = code
        self._answers["writing"] = written.view()
        self._publish(job, now=True, writing=found, progress=[done or NEW_TOKENS, NEW_TOKENS])
        self._keep(job)

    def _keep(self, job: Job) -> None:
        """Bring the result up to date; the browser has the new part already."""
        with self._lock:
            if job is self._job:
                self._result = view = self._view()
                self._shown = (view,)

    def _chosen(self) -> Selection:
        return Selection.of(self.state, self._read())

    def _view(self) -> ExplorerView:
        """Everything there is, as a view that needs no kernel."""
        reading = self._read()
        found: Mapping[str, Any] = {name: getattr(self, name) for name in PARTS}
        revised = None if self._revisions is None else self._revisions.by_name
        return ExplorerView(
            reading.view,
            self.state,
            {name: part for name, part in found.items() if part},
            model=headline(self._model),
            code=as_python(self._model, reading, self._other, revised, self._against),
            revision=self.revision,
            others=self._others(),
            title=f"Explorer: {sentence(reading.prompt, 60)}",
        )

    def _others(self) -> dict[str, ReadingView | None]:
        names = () if self._revisions is None else self._revisions.names
        before = {name: reading.view for name, reading in self._read_before.items()}
        return {name: before.get(name) for name in names}

    def _read(self) -> Reading:
        if self._reading is None:
            raise InputError("Nothing is read yet: press Run.")
        return self._reading
