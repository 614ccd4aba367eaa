"""Pieces of work sent elsewhere: every answer once, whatever becomes of the workers."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from neox_lab import executors
from neox_lab.errors import InputError, LostWorkerError
from neox_lab.executors import EXECUTOR, run_pieces


def square(number: int) -> int:
    return number * number


def dies_at_three(folder: Path, times: int, number: int) -> int:
    """Ends its process at 3, so many times, counted in files."""
    if number == 3:
        deaths = len(list(folder.iterdir()))
        if deaths < times:
            (folder / str(deaths)).touch()
            os._exit(1)
    return square(number)


def refuses(number: int) -> int:
    if number == 2:
        raise InputError("two is too many")
    return number


class AwkwardError(Exception):
    """Cannot be made again from what it holds."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def awkward(number: int) -> int:
    raise AwkwardError(number, 2)


def forked(workers: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"))


SQUARES = [(number, number * number) for number in range(8)]


# --- what lives ------------------------------------------------------------------------------


class Job:
    """A promise as submitit's: no ``Future``, done at the third look."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call, self.looks, self.cancelled = call, 0, False

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 2

    def result(self) -> object:
        return self.call()

    def cancel(self) -> None:
        self.cancelled = True


class Jobs:
    """Has ``submit`` and ``batch`` and is no ``Executor``; what is sent goes through pickle."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.batches = 0

    def submit(self, function: Any, /, *arguments: Any) -> Job:
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        self.jobs.append(Job(functools.partial(function, *arguments)))
        return self.jobs[-1]

    @contextmanager
    def batch(self) -> Iterator[None]:
        self.batches += 1
        yield


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(2), forked])
def test_every_answer_once(make: Callable[[], Executor]) -> None:
    with make() as executor:
        assert sorted(run_pieces(executor, square, range(8))) == SQUARES
        assert list(run_pieces(executor, square, [])) == []


def test_a_worker_that_asks_its_own_executor_is_told_so() -> None:
    """It waited for itself without end."""
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as other:

        def inner(which: Executor) -> list[tuple[int, int]]:
            return sorted(run_pieces(which, square, range(3)))

        with pytest.raises(InputError, match="would wait for itself"):
            list(run_pieces(executor, inner, [executor]))
        with pytest.raises(InputError, match="would wait for itself"):  # by way of another pool
            list(run_pieces(executor, lambda _: list(run_pieces(other, inner, [executor])), [0]))
        with pytest.raises(InputError, match="would wait for itself"):  # a job of one's own
            executor.submit(inner, executor).result(timeout=30)
        assert list(run_pieces(executor, inner, [other])) == [(0, SQUARES[:3])]


def test_what_only_has_submit() -> None:
    jobs = Jobs()
    assert sorted(run_pieces(jobs, square, range(8))) == SQUARES
    assert (len(jobs.jobs), jobs.batches) == (8, 1)


def test_pieces_are_taken_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "AHEAD", 3)
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    made = run_pieces(Jobs(), square, pieces())
    assert taken == []
    next(made)
    assert taken == [0, 1, 2]
    assert len(list(made)) == 9


@pytest.mark.parametrize("error", [GeneratorExit, KeyboardInterrupt])
def test_what_is_left_is_cancelled(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "AHEAD", 3)
    looks = iter([None, error])

    def ready(promises: list[Any]) -> set[int]:
        wrong = next(looks)
        if wrong is not None:
            raise wrong
        return {id(promises[0])}

    monkeypatch.setattr(executors, "_ready", ready)
    jobs = Jobs()
    made = run_pieces(jobs, square, range(10))
    assert next(made) == (0, 0)
    with pytest.raises(error):
        next(made)
    assert [job.cancelled for job in jobs.jobs] == [False, True, True, True]


# --- what does not ---------------------------------------------------------------------------


def test_a_piece_whose_worker_dies_is_done_again(tmp_path: Path) -> None:
    with forked() as pool:
        made = run_pieces(pool, functools.partial(dies_at_three, tmp_path, 2), range(8))
        assert sorted(made) == SQUARES
    assert len(list(tmp_path.iterdir())) == 2


def test_a_piece_that_kills_every_worker_takes_no_other_with_it(tmp_path: Path) -> None:
    deadly = functools.partial(dies_at_three, tmp_path, 100)
    words = r"The worker of piece 3 was lost 3 times; at last: BrokenProcessPool"
    with forked() as pool:
        with pytest.raises(LostWorkerError, match=words):
            list(run_pieces(pool, deadly, range(8), called=lambda piece: f"piece {piece}"))
        assert len(list(tmp_path.iterdir())) == executors.ATTEMPTS
        # The pool is broken now, as it came; another one takes its place.
        made = dict(run_pieces(pool, deadly, range(8), lost=lambda piece, told: -piece))
    assert made == dict(SQUARES) | {3: -3}


def test_an_executor_that_finds_no_new_workers(tmp_path: Path) -> None:
    class Pool(ProcessPoolExecutor):
        """Of a kind that nobody here knows how to make."""

    with Pool(1, multiprocessing.get_context("forkserver")) as pool:
        with pytest.raises(LostWorkerError, match="The executor broke"):
            list(run_pieces(pool, functools.partial(dies_at_three, tmp_path, 9), range(8)))


def test_errors_of_the_function_are_raised_with_what_the_worker_said() -> None:
    with forked(1) as pool:
        with pytest.raises(InputError, match="two is too many") as caught:
            list(run_pieces(pool, refuses, range(8)))
        assert "in refuses" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match="AwkwardError: 0 and 2"):
            list(run_pieces(pool, awkward, range(8)))


def test_what_cannot_be_sent() -> None:
    with forked(1) as pool:
        with pytest.raises(InputError, match=r"cannot send this: .* can import"):
            list(run_pieces(pool, lambda piece: piece, [1]))
    with pytest.raises(InputError, match="takes no work: RuntimeError: cannot schedule"):
        list(run_pieces(pool, square, [1]))


class Wrong:
    """Takes work and gives something else back."""

    def __init__(self, gives: Callable[[], Any]) -> None:
        self.gives = gives

    def submit(self, function: Any, /, *arguments: Any) -> Any:
        return self.gives()


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (lambda: None, "submit gives None; expected something with result"),
        (lambda: 4, "submit gives 4; expected something with result"),
        (lambda: Job(lambda: None), "The executor gave None for an answer"),
        (lambda: Job(lambda: 16), "The executor gave 16 for an answer"),
    ],
)
def test_an_executor_that_gives_something_else(gives: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(run_pieces(Wrong(gives), square, [4]))


def leaves(number: int) -> int:
    raise SystemExit(3)


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(1), lambda: forked(1)])
def test_a_function_that_ends_its_program_does_not_end_this_one(
    make: Callable[[], Executor],
) -> None:
    with make() as executor, pytest.raises(RuntimeError, match="SystemExit: 3"):
        list(run_pieces(executor, leaves, [1]))


def test_an_executor_that_says_it_has_no_workers() -> None:
    jobs = Jobs()
    jobs._max_workers = 0  # type: ignore[attr-defined]
    assert sorted(run_pieces(jobs, square, range(8))) == SQUARES


def test_what_others_cancel_is_sent_again() -> None:
    class Cancelling(ThreadPoolExecutor):
        """Cancels the third call before it is begun."""

        calls = 0

        def submit(self, function: Any, /, *arguments: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                cancelled: Future[Any] = Future()
                cancelled.cancel()
                cancelled.set_running_or_notify_cancel()
                return cancelled
            return super().submit(function, *arguments)

    with Cancelling(2) as executor:
        assert sorted(run_pieces(executor, square, range(8))) == SQUARES
    assert executor.calls == 9


def test_an_executor_that_is_shut_down_in_the_middle() -> None:
    executor = ThreadPoolExecutor(1)
    made = run_pieces(executor, square, range(8))
    assert next(made) == (0, 0)
    executor.shutdown(cancel_futures=True)
    with pytest.raises(InputError, match="takes no work"):
        list(made)


@pytest.mark.parametrize(
    ("value", "right"),
    [(None, True), (Jobs(), True), (ThreadPoolExecutor(1), True), (3, False), (Jobs, False)],
)
def test_what_is_taken_for_an_executor(value: object, right: bool) -> None:
    assert EXECUTOR.accepts(value) is right
