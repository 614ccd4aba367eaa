"""Greedy search and sampling: one token a row and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.checks import name_not_finite
from neox_lab.errors import GenerationError
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.model_stepper import ModelStepper, StepOutput
from neox_lab.generation.processors import LogitsProcessorList
from neox_lab.generation.prompt import eos_tokens, pad_token
from neox_lab.generation.stopping import StoppingCriteriaList


@dataclass
class Step:
    """One step of a strategy.

    Attributes:
        ids: the text so far, new tokens included, ``[batch, pos]``.
        new: how many tokens a row this step added.
        scores: what they were chosen from: a float32 ``[batch, vocab]`` for each.
        logits: what the model said: a float32 ``[batch, vocab]`` for each.
        output: everything the model returned.
        last: whether this was the last step.
    """

    ids: Tensor
    new: int
    scores: tuple[Tensor, ...]
    logits: tuple[Tensor, ...]
    output: StepOutput
    last: bool


def choose(scores: Tensor, sample: bool) -> Tensor:
    """One token a row ``[batch]``: the best, or drawn with probability softmax(scores).

    Raises:
        GenerationError: there is nothing to draw from, because scores are not finite.
    """
    if not sample:
        return scores.argmax(dim=-1)
    try:
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)
    except RuntimeError as error:
        if bool(scores.softmax(dim=-1).isfinite().all()):
            raise
        raise GenerationError(
            f"The score of the next token is NaN or infinite at {', '.join(_not_finite(scores))}: "
            "there is nothing to draw from. model.check() names weights that are not finite."
        ) from error


def _not_finite(scores: Tensor) -> list[str]:
    """The rows of ``[batch, vocab]`` that have NaN, or no probabilities, for people."""
    broken = ~scores.softmax(dim=-1).isfinite().all(dim=-1)
    return [f"text {row}" for row in broken.nonzero().flatten().tolist()]


def one_by_one(
    stepper: ModelStepper,
    ids: Tensor,
    processors: LogitsProcessorList,
    stopping: StoppingCriteriaList,
    settings: GenerationConfig,
) -> Iterator[Step]:
    """Continue every row of ``ids`` ``[batch, pos]`` until each is finished.

    Rows that are finished before others are filled up with the padding token. All rows take
    part in every draw, so that a row's tokens depend on the seed and its place in the batch only.

    Args:
        stepper: the model, which has read nothing of ``ids`` or a beginning.
        ids: the prompts ``[batch, pos]``.
        processors: change the scores before a token is chosen.
        stopping: say which rows are finished.
        settings: resolved.

    Yields:
        Each step, which adds one token to every row.
    """
    pad = pad_token(settings) if eos_tokens(settings) else None
    finished = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    going_on = True
    while going_on:
        output = stepper.step(ids)
        logits = output.logits[:, -1]
        scores = processors(ids, logits)
        tokens = choose(scores, settings.do_sample)
        if pad is not None:
            tokens = tokens.masked_fill(finished, pad)
        ids = torch.cat((ids, tokens[:, None]), dim=1)
        finished = finished | stopping(ids, scores)
        going_on = not bool(finished.all())
        if not going_on:  # what is NaN once stays so in the keys and values that later steps read
            name_not_finite("The score of the next token", _not_finite(scores))
        yield Step(ids, 1, (scores,), (logits,), output, not going_on)
