"""Several tokens a step: guess cheaply, then check all guesses in one forward pass.

Reading k tokens at once costs the model hardly more than reading one, because the weights are
read once. So something cheap drafts k tokens; the model reads them and says what it would have
written after each. Drafts it agrees with stay, the first one it does not agree with is replaced,
and one more token comes for free. The text is the one the model would have written alone: the
same tokens in greedy search, the same distribution in sampling.

Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318; prompt lookup: Saxena, 2023.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.model_stepper import ModelStepper
from neox_lab.generation.processors import LogitsProcessorList
from neox_lab.generation.prompt import eos_tokens
from neox_lab.generation.sampling import Step, choose
from neox_lab.generation.stopping import StoppingCriteriaList


@dataclass
class Draft:
    """Tokens somebody guesses will come next.

    Attributes:
        tokens: ``[guess]``.
        probabilities: what each was drawn from, ``[guess, vocab]``; None if they are certain.
    """

    tokens: Tensor
    probabilities: Tensor | None = None


class Drafter(Protocol):
    """Where guesses come from."""

    def draft(self, ids: Tensor, room: int) -> Draft:
        """At most ``room`` tokens to come after ``ids`` ``[1, pos]``."""

    def learn(self, drafted: int, accepted: int) -> None:
        """Hear how many of the guesses were right."""


class PromptLookup:
    """Guess that what followed the last few tokens earlier in the text follows them again."""

    def __init__(self, settings: GenerationConfig) -> None:
        self.count = settings.prompt_lookup_num_tokens
        self.longest = settings.max_matching_ngram_size
        self.eos = eos_tokens(settings)

    def draft(self, ids: Tensor, room: int) -> Draft:
        """What followed the earliest occurrence of the longest n-gram that occurs earlier."""
        text = ids[0].tolist()
        for size in range(min(self.longest, len(text) - 1), 0, -1):
            end = text[-size:]
            for start in range(len(text) - size):
                if text[start : start + size] == end:
                    follow = text[start + size : start + size + min(self.count, room)]
                    return Draft(ids.new_tensor(self._before_end(follow)))
        return Draft(ids.new_empty(0))

    def _before_end(self, tokens: list[int]) -> list[int]:
        """``tokens`` up to the first one that ends a text: only the model may end it."""
        stops = [place for place, token in enumerate(tokens) if token in self.eos]
        return tokens[: stops[0]] if stops else tokens

    def learn(self, drafted: int, accepted: int) -> None:
        """Nothing to learn."""


class Assistant:
    """Guesses of a smaller model with the same vocabulary."""

    def __init__(
        self, stepper: ModelStepper, processors: LogitsProcessorList, settings: GenerationConfig
    ) -> None:
        self.stepper, self.processors = stepper, processors
        self.settings = settings
        self.count = settings.num_assistant_tokens
        self.eos = eos_tokens(settings)

    def draft(self, ids: Tensor, room: int) -> Draft:
        """Tokens until the assistant is unsure, ends the text, or has made its number."""
        length = ids.shape[1]
        self.stepper.forget_beyond(ids)
        drawn_from = []
        while ids.shape[1] - length < min(self.count, room):
            scores = self.processors(ids, self.stepper.step(ids).logits[:, -1])
            chances = scores.softmax(dim=-1)
            token = choose(scores, self.settings.do_sample)
            ids = torch.cat((ids, token[:, None]), dim=1)
            drawn_from.append(chances)
            sure = float(chances[0, token]) >= self.settings.assistant_confidence_threshold
            if not sure or int(token) in self.eos:
                break
        probabilities = torch.cat(drawn_from) if drawn_from else None
        return Draft(ids[0, length:], probabilities if self.settings.do_sample else None)

    def learn(self, drafted: int, accepted: int) -> None:
        """Guess more after a full success, less after a failure, if the schedule says so."""
        if self.settings.num_assistant_tokens_schedule == "constant" or drafted == 0:
            return
        self.count = self.count + 2 if accepted == drafted else max(1, self.count - 1)


def draft_and_check(
    stepper: ModelStepper,
    drafter: Drafter,
    ids: Tensor,
    processors: LogitsProcessorList,
    stopping: StoppingCriteriaList,
    settings: GenerationConfig,
) -> Iterator[Step]:
    """Continue one text, several tokens a step.

    Args:
        stepper: the model, which has read nothing of ``ids`` or a beginning.
        drafter: where guesses come from.
        ids: the prompt ``[1, pos]``.
        processors: change the scores before a token is chosen.
        stopping: say whether the text is finished.
        settings: resolved.

    Yields:
        Each step, which adds the guesses the model agrees with and one token of its own.
    """
    going_on = True
    while going_on:
        draft = drafter.draft(ids, settings.max_length - ids.shape[1] - 1)
        drafted = draft.tokens.shape[0]
        tried = torch.cat((ids, draft.tokens[None]), dim=1)
        output = stepper.step(tried, keep=drafted + 1)
        logits = output.logits[0]  # [drafted + 1, vocab]
        scores = _processed(processors, tried, logits)
        accepted, tokens = _check(draft, scores, settings.do_sample)
        drafter.learn(drafted, accepted)
        # A text that ends in the middle of what was accepted ends there.
        new = 0
        while going_on and new < tokens.shape[0]:
            ids = torch.cat((ids, tokens[None, new : new + 1]), dim=1)
            going_on = not bool(stopping(ids, scores[new : new + 1]).all())
            new += 1
        stepper.forget_beyond(ids)
        yield Step(ids, new, _rows(scores, new), _rows(logits, new), output, not going_on)


def _rows(tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    """The first ``count`` rows of ``[row, vocab]``, each ``[1, vocab]``."""
    return tuple(tensor[row : row + 1] for row in range(count))


def _processed(processors: LogitsProcessorList, text: Tensor, logits: Tensor) -> Tensor:
    """Processed scores ``[kept, vocab]`` of the last positions, each after its own text."""
    kept = logits.shape[0]
    first = text.shape[1] - kept + 1
    rows = [processors(text[:, : first + i], logits[i : i + 1]) for i in range(kept)]
    return torch.cat(rows)


def _check(draft: Draft, scores: Tensor, sample: bool) -> tuple[int, Tensor]:
    """How many guesses hold, and the new tokens: those, and the model's own next one."""
    drafted = draft.tokens.shape[0]
    if sample and draft.probabilities is not None:
        return _check_sampled(draft, scores.softmax(dim=-1))
    chosen = choose(scores, sample)  # [drafted + 1]
    right = chosen[:drafted] == draft.tokens
    accepted = int(right.long().cumprod(dim=0).sum())
    return accepted, chosen[: accepted + 1]


def _check_sampled(draft: Draft, p: Tensor) -> tuple[int, Tensor]:
    """Accept guess x drawn from q with probability min(1, p(x) / q(x)); see 2211.17192, 2.3.

    The first one refused is replaced by a draw from max(0, p - q), normalised.
    """
    q, tokens = draft.probabilities, draft.tokens
    assert q is not None
    each = torch.arange(tokens.shape[0], device=tokens.device)
    keep = (
        torch.rand(tokens.shape[0], device=p.device, dtype=torch.float32) * q[each, tokens]
        <= p[each, tokens]
    )
    accepted = int(keep.long().cumprod(dim=0).sum())
    rest = p[accepted]
    if accepted < tokens.shape[0]:
        rest = (p[accepted] - q[accepted]).clamp(min=0)
    own = torch.multinomial(rest, num_samples=1)
    return accepted, torch.cat((tokens[:accepted], own))
