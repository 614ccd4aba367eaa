"""Circuits run by an executor's workers, which load the model for themselves."""

from __future__ import annotations

import functools
import pickle
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.circuits.runs import CircuitRuns
from neox_lab.errors import InputError
from neox_lab.executors import AnyExecutor, run_pieces
from neox_lab.experiments.prompt_pairs import Batch, Pair
from neox_lab.family.origins import Origin, origin_of


@dataclass(frozen=True)
class Measurer:
    """What a worker does with some circuits; small, and can be pickled.

    Attributes:
        origin: of the model.
        question: the prompts of both sides, their metrics and what stands outside, pickled: tensors
            would travel through memory that ends with the process that sent them.
    """

    origin: Origin
    question: bytes

    def __call__(self, kept: tuple[tuple[int, ...], NDArray[np.uint8]]) -> NDArray[np.generic]:
        """The metric under each circuit, from the shape of their table and its bits."""
        shape, bits = kept
        table = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape)
        runs = runs_there(self.origin, self.question)
        return runs.measure(torch.from_numpy(table).bool()).numpy()


def sendable(both: Pair, ablation: str) -> bytes:
    """What workers need to know for ``CircuitRuns``, see ``Measurer.question``.

    Raises:
        InputError: the metric cannot be sent.
    """
    sides = [(side.prompts, side.metric) for side in (both.clean, both.corrupted)]
    try:
        return pickle.dumps((*sides, ablation))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"metric={shown(both.corrupted.metric)} cannot be sent to workers ({error}); expected "
            "one that nl.patching makes, or a function of a module that they can import."
        ) from error


@functools.lru_cache(maxsize=1)
def runs_there(origin: Origin, question: bytes) -> CircuitRuns:
    """The runs of a question, in a worker: made once."""
    clean, corrupted, ablation = pickle.loads(question)
    model = origin.model()
    return CircuitRuns(Pair(Batch(model, *clean), Batch(model, *corrupted), None, None), ablation)


def measured_elsewhere(
    executor: AnyExecutor, both: Pair, ablation: str, kept: Tensor, at_once: int
) -> Tensor:
    """``CircuitRuns.measure`` by workers; the same circuits share a forward pass.

    Args:
        executor: who does the work.
        both: see ``CircuitRuns``.
        ablation: see there.
        kept: ``[circuit, writer, reader]``.
        at_once: circuits in one forward pass, and in one piece of work.

    Returns:
        ``[circuit, sample]``, on the CPU.

    Raises:
        InputError: workers could not load the model, or the metric cannot be sent.
        LostWorkerError: the worker of some circuits was lost again and again.
    """
    tables = [kept[start : start + at_once].cpu() for start in range(0, len(kept), at_once)]
    pieces = [(tuple(table.shape), np.packbits(table.numpy())) for table in tables]
    measure = Measurer(origin_of(both.corrupted.model), sendable(both, ablation))
    found: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * len(pieces)
    with closing(
        run_pieces(executor, measure, pieces, called=lambda piece: f"{piece[0][0]} circuits")
    ) as sent:
        for number, samples in sent:
            found[number] = torch.from_numpy(samples)
    return torch.cat(found)
