"""One measure at many revisions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, Literal

import torch

from neox_lab.checks import SWITCH, check, one_of, plain, several, shown
from neox_lab.dynamics.auditing import warn_of
from neox_lab.dynamics.faults import Faults, find_faults
from neox_lab.dynamics.fetching import Fetcher
from neox_lab.dynamics.measures import Measure, fingerprint, name_of, recorded
from neox_lab.dynamics.records import Record, Records, opened, read_manifest
from neox_lab.dynamics.result import DynamicsResult, gathered
from neox_lab.dynamics.sources import Hub, Revision, Source, source_of
from neox_lab.dynamics.tensors import TensorMeasure
from neox_lab.errors import CheckpointError, InputError, NeoxLabWarning
from neox_lab.executors import EXECUTOR, AnyExecutor, run_pieces
from neox_lab.family.heads import CLASSES
from neox_lab.family.loading import load
from neox_lab.files import path_of
from neox_lab.hub import PathOrId
from neox_lab.interrupts import whole_answers
from neox_lab.progress import Progress
from neox_lab.steps import nearest_revisions

EXPECTED_STEPS = "'log', 'all' or a list of steps and names of revisions"

_ENOUGH = 3  # revisions at which the measure itself fails before it is taken to be wrong

Steps = Literal["log", "all"] | Sequence[int | str]
"""Which revisions: of doubling steps, all with a step, or these steps or names."""


@dataclass(frozen=True)
class Job:
    """What is done at each revision; it can be sent to another process.

    Attributes:
        source: where revisions are.
        measure: what is asked.
        options: how models are loaded.
        keep: False to delete what was downloaded.
        notes: the folder of the run, if it has one.
    """

    source: Source
    measure: Measure
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = True
    notes: Path | None = None

    @property
    def fetches(self) -> bool:
        """Whether a model is needed, and not some of its tensors."""
        return not isinstance(self.measure, TensorMeasure)

    def record(self, revision: Revision, weights: str | None) -> Record:
        """Measure a revision that was fetched; an error becomes part of the record.

        ``measured`` says whether an error is the measure's.

        Raises:
            OSError: the disk is full.
        """
        found: Record = {
            "revision": revision.name,
            "step": revision.step,
            "tokens": revision.tokens,
            "version": revision.version,
            "weights": weights,
            "rows": [],
            "map": None,
            "error": "",
            "measured": False,
        }
        try:
            if isinstance(self.measure, TensorMeasure):
                answer = self.measure.read(self.source, revision)
            else:
                model = self._model(revision)
                found["measured"] = True
                with whole_answers():
                    answer = self.measure(model)
            found["rows"], found["map"] = recorded(answer)
        except Exception as error:  # any measure may fail in any way; the run goes on
            found["error"] = in_words(error)
            found["measured"] |= isinstance(error, InputError)
        return found

    def _model(self, revision: Revision) -> object:
        if isinstance(self.source, Hub):
            return load(self.source.name, revision=revision.place, **self.options)
        if self.source.name is None:
            return load(None, revision=revision.name, **self.options)
        return load(revision.place, **self.options)

    def whole(self, revision: Revision) -> Record:
        """Fetch, measure and release one revision, all by itself."""
        fetcher = Fetcher(self.source, self.keep, self.notes)
        try:
            weights = fetcher.fetch(revision) if self.fetches else None
            return self.record(revision, weights)
        except Exception as error:  # as above
            return failed(revision, in_words(error))
        finally:
            fetcher.release(revision)


def run(
    measure: Measure,
    name: PathOrId | None = None,
    steps: Steps = "log",
    *,
    head: str = "causal-lm",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    keep: Literal["all", "none"] = "all",
    to: str | os.PathLike[str] | None = None,
    executor: AnyExecutor | None = None,
    progress: bool = True,
) -> DynamicsResult:
    """Ask one question at many steps of training.

    One model is in memory at a time, and the next revision is fetched while the present one is
    measured. A revision at which something fails has its error in the frame, and the run goes on.
    A revision that is not what its name says (see ``audit``) is measured too; there is a warning,
    and its rows are marked.

        nl.dynamics.run(nl.gym.evaluate)                                # the built-in model's tasks
        nl.dynamics.run(nl.detect.heads, "EleutherAI/pythia-70m", to="heads")
        nl.dynamics.run(lambda model: nl.tasks.likelihood.perplexity(model, texts), steps="all")

    Several measures are one function that returns a mapping, or several runs. Each revision takes
    as long as the measure: try it on one first (``steps=["main"]``), and make slow ones smaller,
    as in ``lambda model: nl.gym.evaluate(model, count=20)``.

    Args:
        measure: any function of a model that returns a number, a mapping of names to numbers, a
            frame or a result of this package; of a task's result its ``metrics`` are taken. Or what
            ``tensor_measure`` makes. An answer's own ``step`` or ``tokens`` is called
            ``measured_step`` and so on.
        name: an id on the hub, a directory of checkpoints, or None for the built-in model.
        steps: ``"log"`` for steps that double, with the first and the last; ``"all"``; or a list of
            steps and names of revisions.
        head: as for ``nl.load``.
        dtype: as for ``nl.load``.
        device: as for ``nl.load``.
        keep: ``"none"`` deletes what was downloaded for a revision once it is measured; what was in
            the cache before stays.
        to: a folder in which each revision's answer is kept. A run that was stopped goes on from
            there, and ``read`` makes the result of it again. None keeps nothing.
        executor: any ``concurrent.futures.Executor``, or one of submitit, which measures several
            revisions at once, on this machine or on others (``docs/many-machines.md``); its
            processes must be able to import the measure. A revision whose process is lost is
            measured again. None measures here, one after another.
        progress: show a line that says how far it has got.

    Raises:
        InputError: an argument makes no sense, or the measure fails everywhere.
        CheckpointError: no such model or step, the folder is of another run or in use, the disk is
            full.
        LostWorkerError: the executor broke and cannot be replaced.
    """
    if not callable(measure):
        raise InputError(
            f"measure={shown(measure)}; expected a function of a model. Several numbers can be one "
            'answer, a mapping: lambda model: {"norm": model.W_E.norm(), ...}; else one run each.'
        )
    check("keep", keep, one_of("all", "none"), InputError)
    check("head", head, one_of(*CLASSES), InputError)
    check("progress", progress, SWITCH, InputError)
    check("executor", executor, EXECUTOR, InputError)
    to = None if to is None else path_of("to", to)
    source = source_of(name)
    there = source.revisions()
    chosen = choose(source, there, steps)
    options = {"head": head, "dtype": dtype, "device": device}
    notes = None if to is None else to.expanduser()
    job = Job(source, measure, options, keep == "all", notes)
    manifest = {
        "model": source.shown,
        "measure": fingerprint(measure),
        "head": head,
        "dtype": None if dtype is None else shown(dtype),
    }
    before = _faults(source, there) if isinstance(source, Hub) else None
    if before is not None:
        warn_of(source, before, chosen)
    with opened(to, manifest) as records:
        Fetcher(source, job.keep, notes).clean()
        todo = [each for each in chosen if records.get(each) is None]
        bar = Progress(len(chosen), "revision", len(chosen) - len(todo), silent=not progress)
        if before is not None:
            records.put_faults(before.of)
        with bar:
            _measure_all(job, todo, records, executor, bar)
        found = {record["revision"]: record for record in records.all()}
        faults = before or _of_files(job, chosen)  # these have been hashed on the way
        records.put_faults(faults.of)
    ordered = [found[each.name] for each in chosen]
    _warn_of_errors(ordered)
    if before is None:
        warn_of(source, faults, chosen)
    return gathered(source.shown, name_of(measure), ordered, faults.of)


def read(folder: str | os.PathLike[str]) -> DynamicsResult:
    """The result of a run that was kept in a folder, as far as it got.

    Args:
        folder: what was given as ``to``.

    Raises:
        CheckpointError: it is no such folder.
        InputError: it is no path.
    """
    place = path_of("folder", folder).expanduser()
    manifest = read_manifest(place)
    records = Records(place)
    records.read()
    found = records.all()
    if not found:
        raise CheckpointError(f"The run in {str(place)!r} has not measured anything yet.")
    found.sort(key=lambda each: (each["step"] is None, each["step"] or 0, each["revision"]))
    measure = str(manifest.get("measure", "measure")).split(" ")[0]
    return gathered(str(manifest.get("model", "")), measure, found, records.faults())


def choose(source: Source, there: Sequence[Revision], steps: object) -> list[Revision]:
    """The revisions that ``steps`` means.

    Args:
        source: where they are.
        there: all of them, by step.
        steps: see ``run``.

    Raises:
        InputError: it means nothing.
        CheckpointError: there is no such step.
    """
    stepped = [each for each in there if each.step is not None]
    if isinstance(steps, str):
        check("steps", steps, one_of("log", "all"), InputError)
        if not stepped:
            raise CheckpointError(
                f"{source.shown} has no revisions with steps in their names; there are "
                f"{', '.join(each.name for each in there[:10])}."
            )
        return stepped if steps == "all" else _doubling(stepped)
    wanted = plain(several("steps", steps, EXPECTED_STEPS, InputError))
    if not isinstance(wanted, list) or not wanted:
        raise InputError(f"steps={shown(steps)}; expected {EXPECTED_STEPS}.")
    chosen: dict[str, Revision] = {}
    for each in wanted:
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise InputError(f"steps has {shown(each)}; expected {EXPECTED_STEPS}.")
        found = [revision for revision in there if each in (revision.name, revision.step)]
        if not found:
            name = each if isinstance(each, str) else f"step{shown(each)}"
            raise CheckpointError(
                f"{source.shown} has no revision {name!r}."
                f"{nearest_revisions(name, [r.name for r in there])}"
                f"{' A step is a number, not a text.' * name.isdecimal()}"
            )
        chosen |= {revision.name: revision for revision in found}
    return [each for each in there if each.name in chosen]


def _doubling(stepped: Sequence[Revision]) -> list[Revision]:
    """The first, then each time that which is closest to twice the step, then the last."""
    chosen = [stepped[0]]
    while chosen[-1] is not stepped[-1]:
        now = chosen[-1].step or 0
        later = [each for each in stepped if (each.step or 0) > now]
        if not later:  # several of the last step
            break
        aim = 2 * now
        chosen.append(min(later, key=lambda each: abs((each.step or 0) - aim)))
    return chosen


def _faults(source: Source, there: Sequence[Revision]) -> Faults:
    return find_faults(there, source.contents(there), source.expected_steps)


def _of_files(job: Job, chosen: Sequence[Revision]) -> Faults:
    """What the files of a directory say, if they were read."""
    if not job.fetches:
        return Faults()
    faults = find_faults(chosen, job.source.contents(chosen))
    faults.sentences.clear()
    return faults


def _measure_all(
    job: Job,
    todo: Sequence[Revision],
    records: Records,
    executor: AnyExecutor | None,
    bar: Progress,
) -> None:
    """Measure what is left and keep each answer.

    Raises:
        InputError: the measure fails everywhere.
        CheckpointError: the disk is full.
    """
    broken: list[Record] = []
    made = _one_by_one(job, todo) if executor is None else _at_once(job, todo, executor)
    succeeded = bool(records.all())
    try:
        for record in made:
            if _is_full(record["error"]):
                raise OSError(ENOSPC, record["error"])
            records.put(record)
            bar.update(note=str(record["revision"]))
            succeeded = succeeded or not record["error"]
            broken += [record] if record["error"] and record.pop("measured", False) else []
            if not succeeded and len(broken) == _ENOUGH:
                break
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT):
            raise
        raise CheckpointError(
            f"The disk is full ({error}). What was measured is kept where to= is given, and the "
            "same call goes on from there. keep='none' deletes what was downloaded for each "
            "revision."
        ) from error
    finally:
        made.close()
    if todo and not succeeded and not broken:
        raise CheckpointError(
            f"None of the {len(todo)} revisions could be had. {todo[-1].name}: {record['error']}"
        )
    if broken and not succeeded:
        raise InputError(
            f"The measure fails at every revision that was tried ({len(broken)}). At "
            f"{broken[0]['revision']}: {broken[0]['error']}"
        )


def _one_by_one(job: Job, todo: Sequence[Revision]) -> Generator[Record, None, None]:
    """The records of revisions in their order; the next one is fetched meanwhile."""
    fetcher = Fetcher(job.source, job.keep, job.notes)
    fetch = fetcher.fetch if job.fetches else lambda _: None
    with ThreadPoolExecutor(1, "fetching") as thread:
        ahead = [thread.submit(fetch, todo[0])] if todo else []
        try:
            for at, revision in enumerate(todo):
                error, weights = "", None
                try:
                    weights = ahead.pop().result()
                except Exception as failure:  # of any kind, and of this revision only
                    error = in_words(failure)
                if at + 1 < len(todo):
                    ahead.append(thread.submit(fetch, todo[at + 1]))
                yield failed(revision, error) if error else job.record(revision, weights)
                thread.submit(fetcher.release, revision)
        finally:
            for future in ahead:
                future.cancel()
            for revision in todo:
                thread.submit(fetcher.release, revision)


def _at_once(
    job: Job, todo: Sequence[Revision], executor: AnyExecutor
) -> Generator[Record, None, None]:
    """The records of revisions in the order in which they are ready.

    Raises:
        InputError: the executor cannot run the measure.
        LostWorkerError: the executor broke.
    """
    made = run_pieces(executor, job.whole, todo, called=lambda revision: revision.name, lost=failed)
    with closing(made):
        for _, record in made:
            yield record


def failed(revision: Revision, error: str) -> Record:
    """The record of a revision that could not be had.

    Args:
        revision: which.
        error: why.
    """
    return {
        "revision": revision.name,
        "step": revision.step,
        "tokens": revision.tokens,
        "version": revision.version,
        "weights": None,
        "rows": [],
        "map": None,
        "error": error,
    }


def in_words(error: BaseException) -> str:
    """An error for a cell of a table; a full disk is recognisable behind any other.

    Args:
        error: what was raised.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (ENOSPC, EDQUOT):
            return f"{os.strerror(ENOSPC)}: {error}"
        seen = seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {error}"


def _is_full(error: str) -> bool:
    return error.startswith(os.strerror(ENOSPC))


def _warn_of_errors(records: Sequence[Record]) -> None:
    bad = [record for record in records if record["error"]]
    if bad:
        warnings.warn(
            f"{len(bad)} of {len(records)} revisions could not be measured; the column 'error' "
            f"says why. {bad[0]['revision']}: {bad[0]['error']}",
            NeoxLabWarning,
            stacklevel=3,
        )
