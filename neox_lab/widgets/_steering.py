"""Steering by a slider: what the model writes, beside what it writes by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import cast

import traitlets

from neox_lab.errors import InputError
from neox_lab.family.contract import LanguageModel
from neox_lab.model.identity import Identity, identity
from neox_lab.steering.directions import Direction
from neox_lab.steering.edits import MODES
from neox_lab.views import StripView
from neox_lab.views.strips import Piece
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.panels import panel
from neox_lab.widgets.worker import Job

PLACES = ("all", "prompt", "generated", "last")


class SteeringWidget(LiveWidget):
    """A prompt, continued by the model itself and by the model steered.

    Moving the slider writes anew; stopping leaves what has been written.

    Attributes:
        prompt: the text to continue.
        scale: how far along the direction; see ``Direction.steer``.
        mode: what is done with it.
        positions: which tokens are steered.
        length: how many tokens are written; the likeliest each time.

    Raises:
        InputError: no direction, or one of a model that cannot write.
    """

    kinds = ("strip",)
    prompt = traitlets.Unicode().tag(sync=True, control="text", label="Prompt")
    scale = traitlets.CFloat(1.0, min=-4.0, max=4.0).tag(
        sync=True, control="slider", step=0.25, runs=True, label="Scale"
    )
    mode = traitlets.Unicode("add").tag(sync=True, control="choice", runs=True, label="Mode")
    positions = traitlets.Unicode("all").tag(
        sync=True, control="choice", runs=True, label="Positions"
    )
    length = traitlets.CInt(24, min=1, max=2000).tag(
        sync=True, control="number", step=1, label="New tokens"
    )

    def __init__(self, direction: Direction, prompt: str = "", scale: float = 1.0) -> None:
        if not isinstance(direction, Direction):
            raise InputError(
                f"nl.widgets.steering shows what nl.steering.direction returned; got a "
                f"{type(direction).__name__}."
            )
        if direction.model.head != "causal-lm":
            raise InputError(
                f"{type(direction.model).__name__} cannot write; expected a direction of a "
                "GPTNeoXForCausalLM."
            )
        self._direction = direction
        self._plain: list[str] = []  # what the model wrote by itself
        self._plain_of: tuple[str, int, Identity] | None = None  # from what, and with which weights
        super().__init__(
            options={"mode": MODES, "positions": PLACES},
            **{"heading": "Steering", "verb": "Write", "prompt": prompt, "scale": scale},
        )
        if prompt:
            self.run()

    def _answer(self, job: Job, given: SimpleNamespace) -> None:
        if not given.prompt:
            raise InputError("Give a prompt to continue.")
        steering = self._direction.steer(given.scale, given.positions, given.mode)
        wanted = given.prompt, given.length, identity(self._direction.model)
        if self._plain_of != wanted:
            pieces: list[str] = []
            for piece in self._written(given):
                pieces.append(piece)
                job.check()
            self._plain, self._plain_of = pieces, wanted
        steered: list[str] = []
        try:
            with steering:
                for piece in self._written(given):
                    steered.append(piece)
                    if self._due:
                        self._draw(job, given, steered)
                    job.check()
        finally:
            if steered:
                self._draw(job, given, steered, now=True)

    def _written(self, given: SimpleNamespace) -> Iterator[str]:
        """The tokens of a continuation, one after the other."""
        model = cast(LanguageModel, self._direction.model)
        steps = model.stream(given.prompt, max_new_tokens=given.length, do_sample=False)
        with closing(steps) as stream:  # type: ignore[type-var]
            for step in stream:
                yield step.piece

    def _draw(
        self, job: Job, given: SimpleNamespace, steered: list[str], now: bool = False
    ) -> None:
        """Both continuations, side by side."""
        plain = self._plain
        changed = [at >= len(plain) or piece != plain[at] for at, piece in enumerate(steered)]
        said = f"Steered: {given.mode}, scale {given.scale:g}, {given.positions}"
        note = f"{sum(changed)} of {len(steered)} new tokens are others; they are marked."
        views = [
            _strip(given.prompt, plain, [False] * len(plain), "The model itself", "Unsteered."),
            _strip(given.prompt, steered, changed, said, note, plain),
        ]
        panels = [panel(str(at), view, beside=True) for at, view in enumerate(views)]
        done = [len(steered), given.length]
        self._show(job, views[1], panels, now, beside=views[:1], progress=done)


def _strip(
    prompt: str,
    pieces: list[str],
    changed: list[bool],
    title: str,
    note: str,
    plain: Sequence[str] = (),
) -> StripView:
    """A prompt and its continuation, the tokens that differ marked and listed."""
    made = [
        Piece(piece, kind="changed" if other else None, strength=0.5)
        for piece, other in zip(pieces, changed, strict=True)
    ]
    found = [
        {"new token": at, "by itself": one, "steered": other}
        for at, (one, other) in enumerate(zip(plain, pieces, strict=False))
    ]
    return StripView([Piece(prompt), *made], title, note, found, "Token by token")


def steering(direction: Direction, prompt: str = "", scale: float = 1.0) -> SteeringWidget:
    """A slider for the scale; the text it gives beside what the model writes by itself.

    Args:
        direction: what ``nl.steering.direction`` returned, of a GPTNeoXForCausalLM with a
            tokenizer.
        prompt: a text to continue; nothing is written before there is one.
        scale: where the slider stands first.

    Raises:
        InputError: no direction, or one of a model that cannot write.
    """
    return SteeringWidget(direction, prompt, scale)
