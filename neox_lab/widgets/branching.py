"""A live widget that writes: going back to a token, putting another one there, writing on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

from neox_lab.errors import InputError
from neox_lab.widgets.branches import Branches
from neox_lab.widgets.live import LiveWidget
from neox_lab.widgets.worker import Job


class Branching(LiveWidget):
    """What every widget with a continuation has: ``branch`` and ``show``.

    Subclasses put the ``Branches`` they write into ``_written``, and implement ``_write`` and
    ``_tell_written``.
    """

    actions = (*LiveWidget.actions, "branch", "show")
    unwritten: ClassVar[str] = "Nothing is written yet."
    """What is said to someone who goes back before anything is written."""

    _written: Branches | None = None

    def branch(self, position: int, rank: int) -> None:
        """Put another token at a place of the branch shown, and write on from there.

        A branch that already begins so is shown instead of writing it again.

        Args:
            position: number of the token to replace, 0 for the first after the prompt.
            rank: which of its alternatives to put there, 0 for the likeliest.

        Raises:
            InputError: nothing is written, or there is no such token or alternative.
        """
        written = self._begun()
        made = written.fork(position, rank)
        known = written.same(made)
        given = self._given()

        def work(job: Job) -> None:
            if known is None:
                written.add(made)
            else:
                written.show(known)
            self._write(job, written, given)

        self._start(work)

    def show(self, choice: int) -> None:
        """Show another branch.

        Args:
            choice: its number, 0 for the first.

        Raises:
            InputError: nothing is written, or there is none with this number.
        """
        written = self._begun()
        written.check(choice)

        def work(job: Job) -> None:
            written.show(choice)
            self._tell_written(job, written)

        self._start(work)

    def _begun(self) -> Branches:
        """What is written.

        Raises:
            InputError: nothing is.
        """
        if self._written is None:
            raise InputError(self.unwritten)
        return self._written

    def _write(self, job: Job, written: Branches, given: SimpleNamespace) -> None:
        """Continue the branch shown, as the controls said (``given``)."""
        raise NotImplementedError

    def _tell_written(self, job: Job, written: Branches, done: int | None = None) -> None:
        """Show the branch shown; ``done`` tokens of it so far, None where nothing is going on."""
        raise NotImplementedError
