"""Sending independent pieces of work to other processes and other machines.

A question that is a set of pieces takes ``executor=``: a ``concurrent.futures.Executor`` (a pool of
processes, ``client.get_executor()`` of Dask, ``MPIPoolExecutor`` of mpi4py) or whatever else has
``submit`` and gives something with ``result``, such as the executors of submitit. All of them send
through ``run_pieces``::

    for number, answer in run_pieces(executor, function, pieces):
        ...

A piece is small (names, revisions, ranges), never a model. One whose worker is lost is sent again.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from neox_lab.checks import Kind, or_none, shown
from neox_lab.errors import InputError, LostWorkerError
from neox_lab.interrupts import whole_answers

Piece = TypeVar("Piece")
Answer = TypeVar("Answer")
Chain: TypeAlias = tuple[tuple[int, int], ...]
"""Executors that wait for a piece, each by its process and its ``id`` there."""

ATTEMPTS = 3
"""How often a piece is sent whose worker is lost."""
AHEAD = 128
"""Pieces under way where an executor does not say how many workers it has."""
_LONGEST_PAUSE = 1.0  # seconds between two looks at what cannot be waited for


class Promise(Protocol):
    """What sending gives: a ``Future``, or a job of submitit."""

    def result(self) -> object:
        """The answer, or the error instead of one."""


class Submits(Protocol):
    """Whatever takes work and is no ``concurrent.futures.Executor``."""

    def submit(self, function: Callable[..., object], /, *arguments: object) -> Promise:
        """Send a call."""


AnyExecutor = Executor | Submits
"""Who does the work."""
EXECUTOR: Kind[AnyExecutor | None] = or_none(
    Kind(
        "an executor: one of concurrent.futures, client.get_executor() of Dask, or another object "
        "with submit",
        lambda value: not isinstance(value, type) and callable(getattr(value, "submit", None)),
    )
)


@dataclass
class _Sent(Generic[Piece]):
    """A piece, its number, and how often its worker was lost."""

    number: int
    piece: Piece
    losses: int = 0


@dataclass(frozen=True)
class _Answered:
    """What the function returned; anything else comes from the executor."""

    answer: Any


@dataclass(frozen=True)
class _Failure:
    """An error of the function itself, which is no loss of a worker."""

    error: Exception


def run_pieces(
    executor: AnyExecutor,
    function: Callable[[Piece], Answer],
    pieces: Iterable[Piece],
    *,
    called: Callable[[Piece], str] = str,
    lost: Callable[[Piece, str], Answer] | None = None,
) -> Generator[tuple[int, Answer], None, None]:
    """The answers of a function for every piece, in the order in which they are ready.

    Pieces are taken from the iterable as workers need them. One that was lost with its worker is
    sent again, after a second loss alone, so that it takes no other with it; a pool of processes
    that broke is replaced by one of the same kind. When the generator is closed, or an interrupt
    comes, what is left is cancelled.

    Args:
        executor: who does the work.
        function: of a piece; the workers must be able to import it, or the executor to send it.
        pieces: small descriptions that can be pickled.
        called: what a piece is called in messages.
        lost: the answer of a piece that is lost again and again, from the piece and a sentence
            that says so; None raises.

    Yields:
        The number of a piece, and its answer.

    Raises:
        InputError: the executor cannot send the function, a piece or an answer, or is shut down;
            or this is one of its own threads.
        LostWorkerError: a piece was lost again and again.
        Exception: whatever the function raised for a piece.
    """
    _refuse_own_worker(executor)
    post = _Post(executor)
    fresh = (_Sent(number, piece) for number, piece in enumerate(pieces))
    again: deque[_Sent[Piece]] = deque()
    under_way: list[tuple[Promise, _Sent[Piece]]] = []
    try:
        while True:
            group = _next(fresh, again, len(under_way), post.room)
            post.send(function, group, under_way)
            if not under_way:
                return
            ready = _ready([promise for promise, _ in under_way])
            finished = [each for each in under_way if id(each[0]) in ready]
            under_way = [each for each in under_way if id(each[0]) not in ready]
            for promise, sent in finished:
                try:
                    found = promise.result()
                except Exception as error:
                    _refuse_unsendable(error)
                    sent.losses += 1
                    post.mend(error)
                    if sent.losses < ATTEMPTS:
                        again.append(sent)
                        continue
                    told = _told(called(sent.piece), error)
                    if lost is None:
                        raise LostWorkerError(told) from error
                    found = _Answered(lost(sent.piece, told))
                yield sent.number, _opened(found)
    finally:
        for promise, _ in under_way:
            with suppress(Exception):  # it may have ended by now
                promise.cancel()  # type: ignore[attr-defined]
        post.close()


def _refuse_own_worker(executor: AnyExecutor) -> None:
    """Refuse a pool of threads that this one belongs to, or that waits for it.

    Raises:
        InputError: with all of its threads here, they would wait for themselves without end.
    """
    if not isinstance(executor, ThreadPoolExecutor):
        return
    # A piece knows who sent it; what a user gave to the pool himself is known by its thread.
    its_threads = getattr(executor, "_threads", ())
    if _name_here(executor) in _WORKING.sent_by or threading.current_thread() in its_threads:
        raise InputError(
            "This runs in a thread of the executor that it is to give work to, and would wait for "
            "itself. Give what a worker does no executor=, or another one."
        )


class _Working(threading.local):
    """The executors, by ``_name_here``, that wait for the piece which this thread is doing."""

    sent_by: Chain = ()


_WORKING = _Working()


def _name_here(executor: AnyExecutor) -> tuple[int, int]:
    """What tells an executor from others in all processes, while it lives."""
    return os.getpid(), id(executor)


class _Post:
    """An executor, and what takes its place when it breaks."""

    def __init__(self, executor: AnyExecutor) -> None:
        self._executor, self._own = executor, False
        workers = getattr(executor, "_max_workers", None)
        self.room = 2 * workers if isinstance(workers, int) and workers > 0 else AHEAD

    def send(
        self,
        function: Callable[[Piece], object],
        group: Sequence[_Sent[Piece]],
        under_way: list[tuple[Promise, _Sent[Piece]]],
    ) -> None:
        """Send pieces; together, where the executor makes one array of several jobs.

        Args:
            function: what is done with each.
            group: the pieces.
            under_way: each is put there once it is sent.

        Raises:
            InputError: it does not take them.
        """
        batch = getattr(self._executor, "batch", None)
        together: AbstractContextManager[object] = nullcontext()
        if len(group) > 1 and callable(batch):
            together = batch()
        with together:
            for sent in group:
                under_way.append((self._sent(function, sent), sent))

    def _sent(self, function: Callable[[Piece], object], sent: _Sent[Piece]) -> Promise:
        try:
            promise = self._submitted(function, sent)
        except BrokenExecutor as error:
            self.mend(error)
            return self._submitted(function, sent)
        except Exception as error:
            _refuse_unsendable(error)
            raise InputError(
                f"The executor takes no work: {type(error).__name__}: {error}"
            ) from error
        if not callable(getattr(promise, "result", None)):
            raise InputError(
                f"The executor's submit gives {shown(promise)}; expected something with result(), "
                "such as a concurrent.futures.Future."
            )
        return promise

    def _submitted(self, function: Callable[[Piece], object], sent: _Sent[Piece]) -> Promise:
        chain = (*_WORKING.sent_by, _name_here(self._executor))
        return self._executor.submit(_attempt, function, sent.piece, sent.losses, chain)

    def mend(self, error: Exception) -> None:
        """Replace a pool of processes that broke; others find new workers themselves.

        Raises:
            LostWorkerError: it is of another kind, and broke.
        """
        if not isinstance(error, BrokenExecutor) or not _is_broken(self._executor):
            return
        if type(self._executor) is not ProcessPoolExecutor:
            raise LostWorkerError(
                f"The executor broke ({error}). Make another one and call again: what was done is "
                "kept where a folder was given."
            ) from error
        broken: Any = self._executor  # its settings have no public names
        self.close()
        self._own = True
        self._executor = ProcessPoolExecutor(
            broken._max_workers,
            broken._mp_context,
            broken._initializer,
            broken._initargs,
            max_tasks_per_child=broken._max_tasks_per_child,
        )

    def close(self) -> None:
        """Let go of a pool that was made here."""
        if self._own and isinstance(self._executor, Executor):
            self._executor.shutdown(cancel_futures=True)


def _is_broken(executor: object) -> bool:
    """Whether a pool of processes is one that takes no work any more; True of other executors."""
    return bool(getattr(executor, "_broken", True))


def _next(
    fresh: Iterable[_Sent[Piece]], again: deque[_Sent[Piece]], under_way: int, room: int
) -> list[_Sent[Piece]]:
    """What is sent now: what was lost once, then new pieces; what was lost twice goes alone."""
    suspect = next((sent for sent in again if sent.losses > 1), None)
    if suspect is not None:
        if under_way:
            return []
        again.remove(suspect)
        return [suspect]
    group: list[_Sent[Piece]] = []
    while again and under_way + len(group) < room:
        group.append(again.popleft())
    if under_way + len(group) < room:
        for sent in fresh:
            group.append(sent)
            if under_way + len(group) >= room:
                break
    return group


def _ready(promises: Sequence[Promise]) -> set[int]:
    """Which have an answer, by their ids; waits for the first."""
    futures = [promise for promise in promises if isinstance(promise, Future)]
    if len(futures) == len(promises):
        return {id(future) for future in wait(futures, return_when=FIRST_COMPLETED).done}
    pause = 0.02
    while True:
        done = {id(each) for each in promises if not hasattr(each, "done") or each.done()}
        if done:
            return done
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _opened(found: object) -> Any:
    """The answer in what an executor gave.

    Raises:
        InputError: it gave something else.
        Exception: the function's own error.
    """
    if isinstance(found, _Failure):
        raise found.error
    if not isinstance(found, _Answered):
        raise InputError(
            f"The executor gave {shown(found)} for an answer; expected what the function that it "
            "was sent returns, as it is."
        )
    return found.answer


def _attempt(
    function: Callable[[Piece], object], piece: Piece, losses: int, chain: Chain
) -> _Answered | _Failure:
    """What a worker does; ``losses`` makes each attempt a call of its own.

    The function's own errors are answers, so any other error is of the worker or of the way there.
    """
    before, _WORKING.sent_by = _WORKING.sent_by, chain
    try:
        with whole_answers():  # Ctrl-C in a terminal reaches its workers, too
            return _Answered(function(piece))
    except (Exception, SystemExit) as error:  # an exit would end the process that asked
        told = "".join(traceback.format_exception(error))
        sent = error if isinstance(error, Exception) and _survives(error) else None
        sent = sent or RuntimeError(f"{type(error).__name__}: {error}")
        sent.add_note(f"In a worker:\n{told}")
        return _Failure(sent)
    finally:
        _WORKING.sent_by = before


def _survives(error: Exception) -> bool:
    """Whether an error can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


def _refuse_unsendable(error: Exception) -> None:
    """Refuse what an executor cannot send; an error that says something else is a loss.

    Raises:
        InputError: it is such an error.
    """
    if isinstance(error, pickle.PicklingError | AttributeError | TypeError | ImportError):
        raise InputError(
            f"The executor cannot send this: {type(error).__name__}: {error}. What other processes "
            "do must be a function that they can import: one of a module, or functools.partial of "
            "it."
        ) from error


def _told(name: str, error: Exception) -> str:
    said = str(error).strip().partition("\n")[0]
    return (
        f"The worker of {name} was lost {ATTEMPTS} times; at last: {type(error).__name__}: {said}. "
        "Its memory may not be enough, or it cannot import what it was sent."
    )
