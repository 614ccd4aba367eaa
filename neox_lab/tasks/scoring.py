"""Log probabilities of many continuations, batch by batch, here or by an executor's workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.checks import check
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.executors import EXECUTOR, AnyExecutor, run_pieces
from neox_lab.family.origins import Origin, origin_of

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

TOGETHER = 4
"""Batches that a worker is sent at a time."""


class Scored(NamedTuple):
    """A run of tokens to be scored after others.

    Attributes:
        context: token ids that are only read.
        target: token ids that are scored; each is predicted from everything before it.
    """

    context: list[int]
    target: list[int]

    @property
    def read(self) -> list[int]:
        """What the model reads: the last token is predicted and never read."""
        return (self.context + self.target)[:-1]


def log_probabilities(
    model: LanguageModel,
    requests: Sequence[Scored],
    batch_size: int = 16,
    executor: AnyExecutor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Log probability of each target token, and whether it was the likeliest.

    Args:
        model: a GPTNeoXForCausalLM.
        requests: what to score; context and target together within the model's positions, and at
            least one token in all before the first target.
        batch_size: requests in one forward pass; they are sorted by length.
        executor: whose workers score the batches, which are the same with it and without; they load
            the model for themselves. None scores here.

    Returns:
        For each request float32 ``[target]`` in nats and boolean ``[target]``, on the CPU.

    Raises:
        InputError: dropout is on, or workers could not load the model.
        LostWorkerError: the worker of a batch was lost again and again.
    """
    return log_probabilities_of_groups(model, [requests], batch_size, executor)[0]


def log_probabilities_of_groups(
    model: LanguageModel,
    groups: Sequence[Sequence[Scored]],
    batch_size: int,
    executor: AnyExecutor | None,
) -> list[list[tuple[Tensor, Tensor]]]:
    """The same for several groups of requests, none of which shares a batch with another.

    Args:
        model: see ``log_probabilities``.
        groups: several times what it takes.
        batch_size: see there.
        executor: see there.

    Raises:
        InputError: see there.
        LostWorkerError: see there.
    """
    refuse_dropout(model)
    check("executor", executor, EXECUTOR, InputError)
    places = [
        (number, rows)
        for number, group in enumerate(groups)
        for rows in by_length(model, [len(each.read) for each in group], batch_size)
    ]
    batches = [[groups[number][row] for row in rows] for number, rows in places]
    found = [
        [(torch.empty(0, dtype=torch.float32), torch.empty(0, dtype=torch.float32))] * len(group)
        for group in groups
    ]
    made = _here(model, batches) if executor is None else _elsewhere(model, batches, executor)
    for at, answers in made:
        number, rows = places[at]
        for row, answer in zip(rows, answers, strict=True):
            found[number][row] = answer
    return found


def _here(
    model: LanguageModel, batches: Sequence[Sequence[Scored]]
) -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
    for at, batch in enumerate(batches):
        yield at, scored(model, batch)


def _elsewhere(
    model: LanguageModel, batches: Sequence[Sequence[Scored]], executor: AnyExecutor
) -> Iterator[tuple[int, list[tuple[Tensor, Tensor]]]]:
    pieces = [batches[at : at + TOGETHER] for at in range(0, len(batches), TOGETHER)]
    with closing(run_pieces(executor, Scorer(origin_of(model)), pieces, called=_called)) as sent:
        for number, answers in sent:
            for at, answer in enumerate(answers, number * TOGETHER):
                yield at, [(torch.from_numpy(one), torch.from_numpy(two)) for one, two in answer]


@torch.inference_mode()
def scored(model: LanguageModel, batch: Sequence[Scored]) -> list[tuple[Tensor, Tensor]]:
    """``log_probabilities`` of one batch.

    Args:
        model: see there.
        batch: requests of similar length.
    """
    # Padding stands on the right, where causal attention cannot see it.
    ids, mask = pad_rows([each.read for each in batch], 0)
    most = max(len(each.target) for each in batch)
    kept = (mask.sum(dim=1, keepdim=True) - most + torch.arange(most)).clamp(min=0)
    logits = model(ids.to(model.device), logits_to_keep=kept.to(model.device)).logits
    scores = logits.float().log_softmax(dim=-1).cpu()
    found = []
    for each, line in zip(batch, scores, strict=True):
        target = torch.tensor(each.target)
        line = line[most - len(target) :]
        chosen = line.gather(-1, target[:, None])[:, 0]
        # Nothing is likeliest where one of the numbers is none.
        found.append((chosen, (line.argmax(dim=-1) == target) & ~line.isnan().any(dim=-1)))
    return found


@dataclass(frozen=True)
class Scorer:
    """What a worker does with a few batches.

    Attributes:
        origin: of the model.
    """

    origin: Origin

    def __call__(
        self, batches: Iterable[Sequence[Scored]]
    ) -> list[list[tuple[NDArray[np.float32], NDArray[np.bool_]]]]:
        """The scores of each batch, as arrays: tensors would travel through shared memory."""
        model = cast("LanguageModel", self.origin.model())
        return [
            [(values.numpy(), likeliest.numpy()) for values, likeliest in scored(model, batch)]
            for batch in batches
        ]


def _called(piece: Sequence[Sequence[Scored]]) -> str:
    return f"a piece of {sum(map(len, piece))} texts"
