"""When a text is finished.

A criterion is anything that can be called with the text so far, token ids ``[batch, pos]``, and
the scores of the last step, and returns True or False, or one of these a row ``[batch]``. A row
is finished as soon as one criterion says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.generation.processors import PADDING, without_padding
from neox_lab.generation.text import TokenBytes

if TYPE_CHECKING:
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

Criterion = Callable[..., "Tensor | bool"]


class StoppingCriteria:
    """Base class for criteria; a plain function will do as well."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor | bool:
        """Whether each row is finished: ``[batch]`` or a single answer for all."""
        raise NotImplementedError


class StoppingCriteriaList(list[Criterion]):
    """Criteria of which one is enough."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: object) -> Tensor:
        """Boolean ``[batch]``: which rows are finished."""
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            answer = criterion(input_ids, scores, **more)
            if answer is False:
                continue
            done = done | answer
        return done


@dataclass
class MaxLength(StoppingCriteria):
    """The text, prompt included, has ``length`` tokens."""

    length: int

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> bool:
        """Whether all rows are finished."""
        return input_ids.shape[1] >= self.length


@dataclass
class MaxTime(StoppingCriteria):
    """``seconds`` have passed since this object was made."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> bool:
        """Whether all rows are finished."""
        return time.monotonic() - self.start > self.seconds


class EndToken(StoppingCriteria):
    """The last token is one of ``tokens``."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Which rows are finished, ``[batch]``."""
        last = input_ids[:, -1]
        done = last == self.tokens[0]
        for token in self.tokens[1:]:
            done = done | (last == token)
        return done


class StopStrings(StoppingCriteria):
    """The last token completes one of some strings.

    Strings are compared byte by byte, so that it does not matter where tokens begin and end: a
    string may begin in the middle of a token (also of the prompt) and end in the middle of the
    last one. Padding is no part of a text.

    Args:
        strings: what ends a text.
        tokenizer: says which bytes each token stands for.
        padding: True where the prompt is padding ``[batch, prompt_pos]``, or None.
    """

    def __init__(
        self,
        strings: Sequence[str],
        tokenizer: GPTNeoXTokenizerFast,
        padding: Tensor | None = None,
    ) -> None:
        self.padding = padding
        self.bytes_of = TokenBytes(tokenizer)
        # Half a character is no bytes of any text: surrogatepass makes bytes that never come.
        self.strings = [string.encode("utf-8", "surrogatepass") for string in strings]
        self.longest = max(map(len, self.strings))

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Which rows are finished, ``[batch]``."""
        text = without_padding(input_ids, self.padding)
        rows = text[:, -self.longest - 1 :].tolist()  # a token is a byte at least
        own = [[token for token in row if token != PADDING] for row in rows]
        return torch.tensor([self._completed(row) for row in own], device=input_ids.device)

    def _completed(self, row: Sequence[int]) -> bool:
        last = self.bytes_of(row[-1])
        before = b"".join(map(self.bytes_of, row[:-1]))
        for string in self.strings:
            # Only occurrences that end inside the last token.
            tail = before[max(0, len(before) + 1 - len(string)) :]
            if string in tail + last:
                return True
        return False
