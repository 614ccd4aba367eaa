"""How far a sweep has got: a bar, or whoever wants to be told; interrupts end it quietly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from neox_lab.checks import SWITCH, check
from neox_lab.errors import InputError
from neox_lab.interrupts import part_is_welcome, whole_answers
from neox_lab.progress import Progress

ProgressReport = Callable[[int, int], None]
"""Told how much of the work is done, and how much there is; may raise KeyboardInterrupt."""


@dataclass
class Watch:
    """How far work has got.

    Attributes:
        report: to be told.
        complete: False once the work was interrupted.
        at: where it is, in words.
    """

    report: ProgressReport
    complete: bool = True
    at: str = ""

    def climb(self, layers: int) -> Iterator[int]:
        """The numbers of so many layers; says in which one it is."""
        for layer in range(layers):
            self.at = f"in layer {layer} of 0 to {layers - 1}"
            yield layer


@contextmanager
def watched(wanted: bool | ProgressReport, unit: str) -> Iterator[Watch]:
    """A progress bar for the duration of a ``with`` block; interrupts end it quietly.

    Args:
        wanted: show the bar; or who is told instead.
        unit: what is counted.

    Raises:
        InputError: ``wanted`` is something else.

    Yields:
        What the work reports to, and what knows afterwards whether it was interrupted.
    """
    if not callable(wanted):
        check("progress", wanted, SWITCH, InputError)
    silent = callable(wanted) or not wanted
    with Progress(unit=unit, silent=silent, delay=1) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.done, watch.at)

        watch, welcome = Watch(wanted if callable(wanted) else report), part_is_welcome()
        with whole_answers():  # of a metric that asks a question itself
            try:
                yield watch
            except KeyboardInterrupt:
                if not welcome:
                    raise
                watch.complete = False
