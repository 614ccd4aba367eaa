"""One thread that does the work of all live widgets, one piece after the other.

A button in a notebook reaches the kernel only while no cell runs, and what it starts would hold up
every later click. So a click only puts a ``Job`` into a queue; this thread does it. Jobs look at
their stop flag between tokens, patches or texts. Hooks belong to the thread that places them, so
cells that use the same model meanwhile are not disturbed.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """Raised inside a job that was asked to stop."""


class Job:
    """A piece of work that can be stopped.

    Attributes:
        finished: set when the work is over, whatever became of it.
        error: what it raised, if it failed.
    """

    def __init__(self, work: Callable[[Job], None]) -> None:
        """``work`` is called with the job in the worker thread; nothing runs yet."""
        self._work = work
        self._stop = threading.Event()
        self.finished = threading.Event()
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Ask the work to end at its next check."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def check(self) -> None:
        """Called by the work wherever it can end: raises Stopped if it was asked to."""
        if self.stopped:
            raise Stopped

    def run(self) -> None:
        """Do the work, in the thread that calls this."""
        try:
            self._work(self)
        except BaseException as error:  # the thread must outlive every job
            self.error = error
        finally:
            self.finished.set()


class Worker:
    """A thread with a queue of jobs; it starts with the first one and ends with the program."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._now: Job | None = None

    def submit(self, job: Job) -> None:
        """Put ``job`` at the end of the queue."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._loop, name="neox_lab", daemon=True)
                self._thread.start()
                atexit.register(self._leave)  # or the program ends in the middle of a computation
        self._jobs.put(job)

    def _loop(self) -> None:
        while True:
            self._now = self._jobs.get()
            self._now.run()

    def _leave(self) -> None:
        """Stop everything and wait a moment for the thread to notice."""
        while not self._jobs.empty():
            self._jobs.get_nowait().stop()
        if self._now is not None:
            self._now.stop()
            self._now.finished.wait(5)


WORKER = Worker()
