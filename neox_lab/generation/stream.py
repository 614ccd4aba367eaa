"""Generation as a sequence of steps one can look at: ``for step in model.stream(prompt): ...``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neox_lab.generation.text import GrowingText


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
    probability: float
    alternatives: tuple[Alternative, ...]
    entropy: float
    ids: Tensor = field(repr=False)
    logits: Tensor = field(repr=False)
    activations: dict[str, Tensor] | None = field(default=None, repr=False)


class Describer:
    """Turns tokens and logits into steps."""

    def __init__(self, tokenizer: Any, alternatives: int) -> None:
        """Without a tokenizer texts are empty; ``alternatives`` is how many to name."""
        self.tokenizer = tokenizer
        self.alternatives = alternatives
        self.growing = None if tokenizer is None else GrowingText(tokenizer)
        self.index = 0

    def step(self, token: int, ids: Tensor, logits: Tensor, is_last: bool) -> StreamStep:
        """The step that added ``token`` to make ``ids`` ``[1, pos]``; ``logits`` is ``[vocab]``."""
        log_probabilities = logits.log_softmax(dim=-1)
        probabilities = log_probabilities.exp()
        lowest = torch.finfo(logits.dtype).min
        entropy = -(probabilities * log_probabilities.clamp(min=lowest)).sum()
        best = probabilities.topk(min(self.alternatives, probabilities.shape[0]))
        made = StreamStep(
            index=self.index,
            token=token,
            text=self._text(token, is_last),
            probability=float(probabilities[token]),
            alternatives=tuple(
                Alternative(i, self._piece(i), p)
                for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ),
            entropy=float(entropy),
            ids=ids,
            logits=logits,
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
