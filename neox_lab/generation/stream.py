"""Generation as a sequence of steps one can look at: ``for step in model.stream(prompt): ...``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.generation.sampling import Step
from neox_lab.generation.text import GrowingText

if TYPE_CHECKING:
    from neox_lab.tokenizer import GPTNeoXTokenizerFast


class Alternative(NamedTuple):
    """A token the model might have written.

    Attributes:
        token: its id.
        text: its text; bytes that are no whole character are shown as in ``⟨E2⟩``.
        probability: what the model gave it, before temperature and the like.
    """

    token: int
    text: str
    probability: float


@dataclass
class StreamStep:
    """One new token.

    Attributes:
        index: number of the token among the new ones, from 0.
        token: its id.
        text: the text it completes: empty while a character is unfinished.
        piece: the token's own text; bytes that are no whole character as in ``⟨E2⟩``.
        probability: what the model gave the token, before temperature and the like.
        alternatives: the likeliest tokens, the likeliest first.
        entropy: of the model's distribution, in nats: 0 is certainty, ln(vocab) ignorance.
        ids: the text so far ``[1, pos]``, prompt included.
        logits: what the model said, float32 ``[vocab]``.
        activations: by hook name, if ``names_filter`` was given.
    """

    index: int
    token: int
    text: str
    piece: str
    probability: float
    alternatives: tuple[Alternative, ...]
    entropy: float
    ids: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    activations: dict[str, Tensor] | None = field(default=None, repr=False)


class Describer:
    """Turns tokens and logits into steps."""

    def __init__(self, tokenizer: GPTNeoXTokenizerFast | None, alternatives: int) -> None:
        """Without a tokenizer texts are empty; ``alternatives`` is how many to name."""
        self.tokenizer = tokenizer
        self.alternatives = alternatives
        self.growing = None if tokenizer is None else GrowingText(tokenizer)
        self.index = 0

    def describe(
        self, step: Step, activations: dict[str, Tensor] | None = None
    ) -> Iterator[StreamStep]:
        """The tokens of one step of a strategy, for a batch of one text."""
        for place, logits in enumerate(step.logits):
            end = step.ids.shape[1] - step.new + place + 1
            is_last = step.last and place == step.new - 1
            yield self._one(step.ids[:, :end], logits[0], is_last, activations)

    def _one(
        self, ids: Tensor, logits: Tensor, is_last: bool, activations: dict[str, Tensor] | None
    ) -> StreamStep:
        """What to say about the last token of ``ids`` ``[1, pos]`` given ``logits`` ``[vocab]``."""
        token = int(ids[0, -1])
        log_probabilities = logits.log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        lowest = torch.finfo(logits.dtype).min  # 0 times minus infinity would be NaN
        entropy = -(probabilities * log_probabilities.clamp(min=lowest)).sum()
        best = probabilities.topk(min(self.alternatives, probabilities.shape[0]))
        made = StreamStep(
            index=self.index,
            token=token,
            text=self._text(token, is_last),
            piece=self._piece(token),
            probability=float(probabilities[token]),
            alternatives=tuple(
                Alternative(other, self._piece(other), probability)
                for other, probability in zip(
                    best.indices.tolist(), best.values.tolist(), strict=True
                )
            ),
            entropy=float(entropy),
            ids=ids,
            logits=logits,
            activations=activations,
        )
        self.index += 1
        return made

    def _text(self, token: int, is_last: bool) -> str:
        if self.growing is None:
            return ""
        text = self.growing.add(token)
        return text + self.growing.end() if is_last else text

    def _piece(self, token: int) -> str:
        return "" if self.tokenizer is None else str(self.tokenizer.pieces([token])[0])
