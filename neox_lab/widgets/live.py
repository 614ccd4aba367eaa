"""The life of every live widget: a request, work in another thread, a state that is shown.

The browser sets traits: values of the controls, and ``request``, which says what to do. A request
starts a job in the one worker thread (see ``worker``); the job publishes what it has at most twenty
times a second, through ``phase``, ``message``, ``progress`` and ``panels``. A newer request stops
an older one. Whatever a job raises is shown in the widget, in words, and raised by ``wait``.

The same from Python, for tests and for notebooks that run without a browser::

    widget = nl.widgets.attention(model, "The cat sat")
    widget.set_state({"text": "The dog", "request": {"id": 1, "action": "run"}})    # as a browser
    widget.wait()                                                                   # the result

What a widget shows is also kept in the notebook as an ordinary output, see ``static_output``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, get_type_hints

import anywidget
import traitlets

from neox_lab.errors import InputError, NeoxLabError
from neox_lab.notices import gathered
from neox_lab.results import Result
from neox_lab.views import View
from neox_lab.widgets.panels import script
from neox_lab.widgets.static_output import Kept, Shown, together
from neox_lab.widgets.worker import WORKER, Job, Stopped

INTERVAL = 0.05  # seconds between two updates of the browser
FIRST_RESULT = 5.0  # seconds


class LiveWidget(anywidget.AnyWidget):
    """A form, buttons to run, stop and pin, a line of words, and pictures.

    Subclasses declare their controls as traits tagged ``sync=True, control="text"`` (or ``area``,
    ``number``, ``slider``, ``choice``) with a ``label``, and implement ``_answer``. With
    ``runs=True`` a new value starts a run.

    Args:
        options: what can be chosen from, by the name of a choice.
        values: of the traits.

    Attributes:
        phase: ``idle``, ``waiting`` (for the worker), ``running``, ``done``, ``stopped`` or
            ``failed``.
        message: what is going on, or went wrong, in words.
        progress: how much is done, and of how much; zeros where nobody knows.
        unit: what ``progress`` counts, in the singular.
        panels: what is drawn, see ``panels.panel``.
        pins: how many results are pinned below.
        request: what the browser asks for: ``{"id": …, "action": …}`` and arguments.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    """The kinds of views it draws, see ``views.live.kinds``."""

    heading = traitlets.Unicode().tag(sync=True)
    verb = traitlets.Unicode("Run").tag(sync=True)
    controls: Any = traitlets.List().tag(sync=True)
    phase = traitlets.Unicode("idle").tag(sync=True)
    message = traitlets.Unicode("").tag(sync=True)
    progress: Any = traitlets.List([0, 0]).tag(sync=True)
    unit = traitlets.Unicode("token").tag(sync=True)
    panels: Any = traitlets.List().tag(sync=True)
    slot = traitlets.Unicode().tag(sync=True)
    request = traitlets.Dict().tag(sync=True)

    pins = traitlets.Int().tag(sync=True)

    actions: ClassVar[tuple[str, ...]] = ("run", "stop", "pin", "unpin")
    """What a browser may ask for: names of methods."""

    _job: Job | None = None  # also of a widget whose making failed, which Python closes

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kinds" in cls.__dict__:
            cls._esm = script(cls.kinds)

    def __init__(
        self, options: Mapping[str, Sequence[str]] | None = None, **values: object
    ) -> None:
        self._lock = threading.RLock()
        self._result: Result | View | None = None
        self._shown: Shown = ()
        self._pending: dict[str, object] = {}
        self._sent = 0.0
        self._kept = Kept()
        traits = type(self).class_traits(control=lambda kind: kind is not None)
        order = [name for kind in reversed(type(self).__mro__) for name in vars(kind)]
        names = sorted(traits, key=order.index)  # as they are written down
        controls = [_control(name, traits[name], options or {}) for name in names]
        super().__init__(controls=controls, slot=self._kept.name, **values)
        self.observe(self._on_request, "request")

    # What users call.

    @property
    def result(self) -> Result | View | None:
        """The answer so far as an ordinary result with a static view; None before the first."""
        return self._result

    def run(self) -> None:
        """Start anew with the values the controls have now; returns at once."""
        given = self._given()
        self._start(lambda job: self._answer(job, given))

    def stop(self) -> None:
        """Stop what is going on; what is there so far stays."""
        if self._job is not None:
            self._job.stop()

    def wait(self, timeout: float | None = None) -> Result | View | None:
        """Wait until nothing is going on.

        Returns:
            ``result``.

        Raises:
            TimeoutError: it took longer than ``timeout`` seconds.
            Exception: whatever the work raised.
        """
        job = self._job
        if job is not None:
            try:
                if not job.finished.wait(timeout):
                    raise TimeoutError(f"still {self.phase} after {timeout} seconds")
            except KeyboardInterrupt:
                job.stop()
                raise
            if job.error is not None:
                raise job.error
        self._kept.refresh(self._shown)
        return self._result

    def pin(self) -> None:
        """Leave the present result below the widget, as an ordinary output that stays.

        Raises:
            InputError: there is no result yet, or the widget is not shown by itself in a cell.
        """
        if self._result is None:
            raise InputError("There is no result to pin yet.")
        self._kept.pin(self._shown)
        self.pins = self._kept.count
        self.message = "Pinned below."

    def unpin(self, number: int) -> None:
        """Remove a pinned result.

        Args:
            number: which of them, 0 for the first.

        Raises:
            InputError: there is none with this number.
        """
        self._kept.unpin(number)
        self.pins = self._kept.count
        self.message = ""

    def close(self) -> None:
        """Stop, and take the widget out of the page; ``result`` stays."""
        self.stop()
        super().close()

    # What subclasses do.

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        """Do the work with what the controls said (``given.text`` and so on); see ``_show``."""
        raise NotImplementedError

    def _given(self) -> SimpleNamespace:
        """The values of the controls, by name."""
        return SimpleNamespace(**{c["name"]: getattr(self, c["name"]) for c in self.controls})

    def _start(self, work: Callable[[Job], None]) -> None:
        """Stop what is going on and let the worker do ``work``."""
        job = Job(lambda job: self._lead(job, work))
        with self._lock:
            self.stop()
            self._job = job
            self._pending.clear()
            self._set({"phase": "waiting", "message": "", "progress": [0, 0]})
        WORKER.submit(job)

    def _lead(self, job: Job, work: Callable[[Job], None]) -> None:
        """One job from its first to its last change of state; in the worker thread."""
        try:
            job.check()
            self._publish(job, now=True, phase="running")
            with gathered() as notices:
                work(job)
            if notices:
                said = str(self._pending.get("message", self.message))
                self._publish(job, message=" ".join([said, *notices]).strip())
            self._publish(job, now=True, phase="done")
        except Stopped:
            self._publish(job, now=True, phase="stopped", message="Stopped.")
        except BaseException as error:
            self._publish(job, now=True, phase="failed", message=in_words(error))
            raise
        finally:
            if job is self._job:
                self._kept.refresh_soon(lambda: self._shown)

    def _show(
        self,
        job: Job,
        result: Result | View,
        panels: list[dict[str, Any]],
        now: bool = False,
        beside: Sequence[Result | View] = (),
        **state: object,
    ) -> None:
        """Make ``result`` the widget's result, and draw it; called in the worker thread.

        ``beside`` is what else is kept and pinned with it, ``state`` goes to ``_publish``.
        """
        with self._lock:
            if job is self._job:
                self._result, self._shown = result, (result, *beside)
                self._publish(job, now, panels=panels, **state)

    @property
    def _due(self) -> bool:
        """Whether the browser may get another update now."""
        return time.monotonic() - self._sent >= INTERVAL

    def _publish(self, job: Job, now: bool = False, **state: object) -> None:
        """Set traits, at most every ``INTERVAL`` seconds unless ``now``; the latest value wins.

        Nothing happens if ``job`` is no longer the widget's: its successor has the word.
        """
        with self._lock:
            if job is not self._job:
                return
            self._pending |= state
            if now or self._due:
                self._set(self._pending)
                self._pending = {}

    def _set(self, state: Mapping[str, object]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._sent = time.monotonic()

    # What comes from the browser.

    def set_state(self, sync_data: dict[str, object]) -> None:
        """Take over what the browser sends; a value that does not fit is refused, in words.

        A browser sets controls and asks for actions; everything else is the kernel's to set.
        """
        known = {"request", *type(self).class_traits(control=lambda kind: kind is not None)}
        taken = {name: value for name, value in sync_data.items() if name in known}
        with self._lock:
            try:
                super().set_state(taken)
            except traitlets.TraitError:
                self.message = self._refused(taken)
                self.send_state(list(taken))
            if refused := [n for n in sync_data if n not in known and n in self.keys]:
                self.message = self._refused({})
                self.send_state(refused)

    def _refused(self, sync_data: Mapping[str, object]) -> str:
        """Which control got a value that it cannot have, in its own words."""
        for control in self.controls:
            name, label = control["name"], control["label"]
            try:
                if name in sync_data:
                    self.traits()[name]._validate(self, sync_data[name])
            except traitlets.TraitError:
                least, most = control.get("min"), control.get("max")
                ends = [f"from {least}"] * (least is not None) + [f"to {most}"] * (most is not None)
                wanted = " ".join(["a number", *ends]) if ends else "something else"
                return f"“{label}” must be {wanted}; it stays {getattr(self, name)!r}."
        return "The page sent something that this widget does not know. Run the cell again."

    def _on_request(self, change: object) -> None:
        """Do what the browser asks for; what goes wrong at once is shown."""
        arguments = dict(self.request)
        arguments.pop("id", None)
        action = arguments.pop("action", None)
        try:
            if action not in self.actions:
                raise InputError(f"unknown request {action!r}; expected one of {self.actions}")
            method = getattr(self, str(action))
            check_arguments(method, arguments)
            method(**arguments)
        except Exception as error:
            self.message = in_words(error)

    # How it is shown.

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The live widget, and for readers without a kernel the present result."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, **together(self._shown)}, metadata

    def _ipython_display_(self) -> None:
        """Show the live widget and, below it, the place for what is kept of it."""
        from IPython.display import display

        if self.comm is None:  # closed
            display(self._result)  # type: ignore[no-untyped-call]
            return
        bundle = super()._repr_mimebundle_()
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        display({**(data or {}), "text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]
        self._kept.display(type(self).__name__, self._shown)
        self.pins = self._kept.count
        self._show_in_this_cell()

    def _show_in_this_cell(self) -> None:
        """Wait a moment for the first result, so that it is kept in the cell that asked for it.

        What comes later is kept when the kernel has time, which nobody waits for in a run without
        a browser.
        """
        job = self._job
        if job is not None and job.finished.wait(FIRST_RESULT):
            self._kept.refresh(self._shown)

    def __repr__(self) -> str:
        """Its name, and how it stands."""
        return f"{self.heading} (live widget: {self.phase})"


def in_words(error: BaseException) -> str:
    """An error as a sentence: ours say everything themselves, others need their name."""
    if isinstance(error, NeoxLabError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def check_arguments(method: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Check what a browser sent for a method against the types that the method declares.

    Raises:
        InputError: an argument that the method does not have, or a value of another type.
    """
    kinds = get_type_hints(method)
    for name, value in arguments.items():
        if name not in kinds:
            raise InputError(f"unknown argument {name!r} of {method.__name__!r}")
        kind = kinds[name]
        if not isinstance(value, kind):
            raise InputError(f"{name} is {value!r}; expected {getattr(kind, '__name__', kind)}")


def _control(
    name: str, trait: traitlets.TraitType[Any, Any], options: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What the browser has to know to draw a control."""
    told = {key: value for key, value in trait.metadata.items() if key != "sync"}
    limits = {key: getattr(trait, key, None) for key in ("min", "max")}
    told |= {k: v for k, v in limits.items() if v is not None and abs(v) != float("inf")}
    if name in options:
        told["options"] = list(options[name])
    return {"name": name, **told}
