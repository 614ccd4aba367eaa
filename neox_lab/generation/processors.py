"""Changing scores before a token is chosen: penalties, bans, and what must come.

A processor is anything that can be called with the text so far, token ids ``[batch, pos]``, and
the scores of what might come next, float32 ``[batch, vocab]``, and returns scores of the same
shape. A score of minus infinity means "never".

``processor_order`` says in which order processors run; ``warpers`` are those that only sampling
uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from neox_lab.checks import check, number
from neox_lab.errors import GenerationError

NEVER = float("-inf")
PADDING = -1
"""No token: stands for padding in what is searched."""

Processor = Callable[..., Tensor]
"""From ids ``[batch, pos]`` and scores ``[batch, vocab]`` to scores."""


class LogitsProcessor:
    """Base class for processors; a plain function will do as well."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        raise NotImplementedError


class LogitsProcessorList(list[Processor]):
    """Processors that run one after the other."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: object) -> Tensor:
        """Scores ``[batch, vocab]`` after all of them; ``scores`` itself stays as it is.

        Args:
            input_ids: the text so far ``[batch, pos]``.
            scores: of what might come next ``[batch, vocab]``.
            more: handed on to the processors that take more than these two.
        """
        if self:
            scores = scores.clone()  # a user's processor may write into what it is given
        for processor in self:
            takes_more = more and len(inspect.signature(processor).parameters) > 2
            scores = processor(input_ids, scores, **(more if takes_more else {}))
        return scores


def _banned(scores: Tensor, tokens: Iterable[int]) -> Tensor:
    """``scores`` with the columns ``tokens`` set to minus infinity."""
    index = torch.tensor(sorted(set(tokens)), device=scores.device)
    return scores.index_fill(1, index, NEVER)


def _only(scores: Tensor, tokens: Iterable[int]) -> Tensor:
    """Scores that leave nothing but ``tokens``, all alike."""
    index = torch.tensor(sorted(set(tokens)), device=scores.device)
    return torch.full_like(scores, NEVER).index_fill_(1, index, 0.0)


def without_padding(input_ids: Tensor, padding: Tensor | None) -> Tensor:
    """``input_ids`` ``[batch, pos]`` with ``PADDING`` where ``padding`` is True.

    A padding token may also be one that ends texts; what searches a text must not find it.

    Args:
        input_ids: the prompts and what was written since, or ids of new tokens alone.
        padding: of the prompts ``[batch, prompt_pos]``, or None.
    """
    if padding is None:
        return input_ids
    new = input_ids.shape[1] - padding.shape[1]
    return input_ids.masked_fill(torch.nn.functional.pad(padding, (0, new)), PADDING)


class SequenceBias(LogitsProcessor):
    """Add a number to the score of the last token of a sequence once the others stand there.

    Args:
        biases: from sequences of token ids to numbers; a sequence of one token always applies.
        padding: True where the prompt is padding ``[batch, prompt_pos]``, or None.

    Raises:
        GenerationError: an empty sequence, or one that is not made of token ids.
    """

    def __init__(
        self, biases: Mapping[tuple[int, ...], float], padding: Tensor | None = None
    ) -> None:
        for sequence in biases:
            if not sequence or not all(isinstance(t, int) and t >= 0 for t in sequence):
                raise GenerationError(
                    f"{sequence!r} is not a sequence of token ids, such as (5, 7)."
                )
        self.padding = padding
        by_length = sorted(biases.items(), key=lambda item: len(item[0]))
        self._groups = [list(group) for _, group in groupby(by_length, lambda i: len(i[0]))]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        bias = torch.zeros_like(scores)
        input_ids = without_padding(input_ids, self.padding)
        for group in self._groups:
            sequences = torch.tensor([list(s) for s, _ in group], device=scores.device)
            amounts = torch.tensor(
                [float(a) for _, a in group], device=scores.device, dtype=torch.float32
            )
            if int(sequences.max()) >= scores.shape[1]:
                raise GenerationError(
                    f"A sequence to be biased or banned holds token {int(sequences.max())}; the "
                    f"vocabulary has {scores.shape[1]}."
                )
            before = sequences.shape[1] - 1
            if before > input_ids.shape[1]:
                continue
            end = input_ids[:, input_ids.shape[1] - before :]
            stands = (end[:, None, :] == sequences[None, :, :-1]).all(dim=-1)  # [batch, sequence]
            bias.index_add_(1, sequences[:, -1], torch.where(stands, amounts, 0.0))
        return scores + bias


class FrequencyPenalty(LogitsProcessor):
    """Take from each token's score a number for every time it stands in the text, prompt included.

    Args:
        penalty: the number, at least 0.

    Raises:
        GenerationError: it is negative or no number.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = check("penalty", penalty, number(least=0), GenerationError)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        once = scores.new_full((), -self.penalty).expand(input_ids.shape)
        return scores.scatter_add(1, input_ids, once)


class NoBadWords(SequenceBias):
    """Never complete one of these sequences of token ids; single ending tokens are left alone."""

    def __init__(
        self, words: Sequence[Sequence[int]], eos: Sequence[int], padding: Tensor | None = None
    ) -> None:
        kept = [tuple(w) for w in words if not (len(w) == 1 and w[0] in eos)]
        super().__init__(dict.fromkeys(kept, NEVER), padding)


def _penalised(scores: Tensor, tokens: Tensor, penalty: float, padded: bool) -> Tensor:
    """Scores of ``tokens`` ``[batch, count]`` made less likely by ``penalty`` (> 1).

    With ``padded`` some may be ``PADDING``.
    """
    vocab = scores.shape[1]
    if padded:  # which gets a column of its own that is cut off again
        tokens = tokens.where(tokens != PADDING, vocab)
        scores = torch.nn.functional.pad(scores, (0, 1))
    chosen = scores.gather(1, tokens)
    chosen = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    return scores.scatter(1, tokens, chosen)[:, :vocab]


@dataclass
class RepetitionPenalty(LogitsProcessor):
    """Make what already stands in the text less likely (Keskar et al., CTRL, arXiv:1909.05858).

    Attributes:
        penalty: positive scores are divided by it, negative ones multiplied.
        padding: True where the prompt is padding ``[batch, prompt_pos]``, or None.
    """

    penalty: float
    padding: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        if input_ids.shape[1] == 0:
            return scores
        text, padded = without_padding(input_ids, self.padding), self.padding is not None
        return _penalised(scores, text, self.penalty, padded)


@dataclass
class EncoderRepetitionPenalty(LogitsProcessor):
    """Make what stands in the prompt *more* likely, by ``penalty`` (> 1).

    Attributes:
        penalty: positive scores are multiplied by it, negative ones divided.
        prompt: token ids ``[batch, pos]``, ``PADDING`` where there is no text.
    """

    penalty: float
    prompt: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        copies = scores.shape[0] // self.prompt.shape[0]
        prompt = self.prompt.repeat_interleave(copies, dim=0)
        return _penalised(scores, prompt, 1 / self.penalty, padded=True)


def _ban_completions(scores: Tensor, text: Tensor, end: Tensor, padded: bool) -> Tensor:
    """Ban each token that follows an occurrence of ``end`` ``[batch, size - 1]`` in ``text``.

    With ``padded`` there may be ``PADDING`` in them, which occurs nowhere.
    """
    windows = text.unfold(1, end.shape[1] + 1, 1)  # [batch, window, size]
    same = (windows[..., :-1] == end[:, None, :]).all(dim=-1)
    if padded:
        same &= (windows != PADDING).all(dim=-1)
    vocab = scores.shape[1]
    follower = torch.where(same, windows[..., -1], vocab)
    banned = torch.zeros(scores.shape[0], vocab + 1, dtype=torch.bool, device=scores.device)
    return scores.masked_fill(banned.scatter_(1, follower, True)[:, :vocab], NEVER)


@dataclass
class NoRepeatNGram(LogitsProcessor):
    """Never write the same ``size`` tokens in a row twice.

    Attributes:
        size: how many.
        padding: True where the prompt is padding ``[batch, prompt_pos]``, or None.
    """

    size: int
    padding: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        if input_ids.shape[1] < self.size:
            return scores
        text, padded = without_padding(input_ids, self.padding), self.padding is not None
        return _ban_completions(scores, text, text[:, text.shape[1] + 1 - self.size :], padded)


@dataclass
class EncoderNoRepeatNGram(LogitsProcessor):
    """Never write ``size`` tokens in a row that stand in a prompt.

    Attributes:
        size: how many.
        prompt: token ids ``[batch, pos]``, ``PADDING`` where there is no text.
    """

    size: int
    prompt: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        if min(self.prompt.shape[1], input_ids.shape[1] + 1) < self.size:
            return scores
        prompt = self.prompt.repeat_interleave(scores.shape[0] // self.prompt.shape[0], dim=0)
        end = input_ids[:, input_ids.shape[1] + 1 - self.size :]
        return _ban_completions(scores, prompt, end, padded=True)


@dataclass
class MinLength(LogitsProcessor):
    """No ending token before the text has ``length`` tokens."""

    length: int
    eos: Sequence[int]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return _banned(scores, self.eos) if input_ids.shape[1] < self.length else scores


class MinNewTokens(MinLength):
    """No ending token before ``count`` tokens follow a prompt of ``prompt_length``."""

    def __init__(self, prompt_length: int, count: int, eos: Sequence[int]) -> None:
        super().__init__(prompt_length + count, eos)


@dataclass
class PrefixConstrained(LogitsProcessor):
    """Only tokens that a function of the user's allows.

    Attributes:
        allowed: from the number of the prompt and its text so far ``[pos]`` to token ids.
        beams: rows per prompt.
    """

    allowed: Callable[[int, Tensor], Sequence[int]]
    beams: int

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``.

        Raises:
            GenerationError: the function allows nothing at all.
        """
        ban = torch.full_like(scores, NEVER)
        for row, text in enumerate(input_ids):
            tokens = list(self.allowed(row // self.beams, text))
            if not tokens:
                raise GenerationError(
                    f"prefix_allowed_tokens_fn allows no token for prompt {row // self.beams} "
                    f"after {text.shape[0]} tokens; it must return at least one."
                )
            ban[row, tokens] = 0
        constrained = scores + ban
        # Where processors before this one left none of the allowed tokens, these count alone.
        nothing = constrained.amax(dim=1).isneginf().view(-1, self.beams).all(dim=1)
        return torch.where(nothing.repeat_interleave(self.beams)[:, None], ban, constrained)


@dataclass
class ForcedBOS(LogitsProcessor):
    """The second token of the text is ``token``."""

    token: int

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return _only(scores, [self.token]) if input_ids.shape[1] == 1 else scores


@dataclass
class ForcedEOS(LogitsProcessor):
    """The last token that fits into ``max_length`` is one of ``tokens``."""

    max_length: int
    tokens: Sequence[int]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return _only(scores, self.tokens) if input_ids.shape[1] == self.max_length - 1 else scores


class InfNanRemove(LogitsProcessor):
    """NaN becomes 0, infinities the largest and lowest number there is."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return scores.nan_to_num(nan=0.0)


@dataclass
class ExponentialDecayLengthPenalty(LogitsProcessor):
    """Raise the scores of ending tokens by ``|score| (factor^n - 1)``, n tokens after ``start``."""

    start: int
    factor: float
    eos: Sequence[int]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        late = input_ids.shape[1] - self.start
        if late <= 0:
            return scores
        index = torch.tensor(list(self.eos), device=scores.device)
        rise = scores[:, index].abs() * (self.factor**late - 1)
        rise = rise.masked_fill(~scores[:, index].isfinite(), 0.0)
        return scores.index_add(1, index, rise)


@dataclass
class SuppressTokens(LogitsProcessor):
    """Never write one of ``tokens``; with ``at_length``, only not as the token at that place."""

    tokens: Sequence[int]
    at_length: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        applies = self.at_length in (None, input_ids.shape[1])
        return _banned(scores, self.tokens) if applies and self.tokens else scores


class SuppressTokensAtBegin(SuppressTokens):
    """``SuppressTokens`` for the first new token."""


class LogitNormalization(LogitsProcessor):
    """Scores become log probabilities."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        return scores.log_softmax(dim=-1)


@dataclass
class ClassifierFreeGuidance(LogitsProcessor):
    """Move away from what the model would say without the prompt (Sanchez et al., 2306.17806).

    ``u + scale (c - u)`` with the log probabilities c after the prompt and u after the negative
    prompt (or after nothing but the prompt's last token).

    Attributes:
        scale: 1 leaves the scores as they are.
        without: from the text so far ``[batch, pos]`` to the logits u ``[batch, vocab]``.
    """

    scale: float
    without: Callable[[Tensor], Tensor] = field(repr=False)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``."""
        conditional = scores.log_softmax(dim=-1)
        unconditional = self.without(input_ids).log_softmax(dim=-1)
        return self.scale * (conditional - unconditional) + unconditional
