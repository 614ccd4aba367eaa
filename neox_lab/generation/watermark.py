"""A mark in the text that is invisible to readers and visible to statistics.

The token before decides, through a seeded permutation, which part of the vocabulary is "green";
green tokens are made a little more likely. A marked text has more green tokens than chance
allows. Kirchenbauer et al., arXiv:2301.10226 (``lefthash``) and arXiv:2306.04634 (``selfhash``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from neox_lab.errors import GenerationError, nearest
from neox_lab.generation.processors import PADDING, LogitsProcessor, without_padding
from neox_lab.generation.settings import HasDict

_DEFAULTS: dict[str, Any] = {
    "greenlist_ratio": 0.25,
    "bias": 2.0,
    "hashing_key": 15485863,
    "seeding_scheme": "lefthash",
    "context_width": 1,
}
_TABLE = 1_000_003
_CANDIDATES = 40


class Watermark(LogitsProcessor):
    """Add ``bias`` to the scores of green tokens; the marks are those of transformers.

    Args:
        vocab: size of the vocabulary.
        greenlist_ratio: share of the vocabulary that is green.
        bias: added to the scores of green tokens.
        hashing_key: whoever knows it can find the mark.
        seeding_scheme: ``lefthash`` looks at the last token; ``selfhash`` at the last few and the
            candidate itself.
        context_width: how many tokens ``selfhash`` looks at.
        padding: True where the prompt is padding ``[batch, prompt_pos]``, or None.

    Raises:
        GenerationError: a share or a scheme that does not exist.
    """

    def __init__(
        self,
        vocab: int,
        greenlist_ratio: float,
        bias: float,
        hashing_key: int,
        seeding_scheme: Literal["lefthash", "selfhash"],
        context_width: int,
        padding: Tensor | None = None,
    ) -> None:
        if not 0 < greenlist_ratio < 1 or seeding_scheme not in ("lefthash", "selfhash"):
            raise GenerationError(
                f"watermarking_config has greenlist_ratio={greenlist_ratio} and seeding_scheme="
                f"{seeding_scheme!r}; expected a ratio between 0 and 1, and 'lefthash' or "
                "'selfhash'."
            )
        self.vocab, self.green = vocab, int(vocab * greenlist_ratio)
        self.bias, self.key = bias, hashing_key
        self.scheme, self.width, self.padding = seeding_scheme, context_width, padding
        self._generator = torch.Generator().manual_seed(hashing_key)
        self._table = torch.randperm(_TABLE, generator=self._generator)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | HasDict, vocab: int, padding: Tensor | None = None
    ) -> Watermark:
        """From a dict, or an object with ``to_dict``, holding some of the arguments.

        Raises:
            GenerationError: an unknown name, or a value that does not exist.
        """
        values = dict(config) if isinstance(config, Mapping) else config.to_dict()
        for name in values:
            if name not in _DEFAULTS:
                raise GenerationError(
                    f"watermarking_config has no {name!r}.{nearest(name, _DEFAULTS)}"
                )
        return cls(vocab, **{**_DEFAULTS, **values}, padding=padding)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """New scores ``[batch, vocab]``; unchanged for texts shorter than the context."""
        if input_ids.shape[1] < self.width:
            return scores
        marked = scores.clone()
        for row, text in enumerate(without_padding(input_ids, self.padding).cpu()):
            if bool((text[-self.width :] == PADDING).any()):
                continue
            choose = self._green_after if self.scheme == "lefthash" else self._green_with_itself
            green = choose(text, scores[row].cpu()).to(scores.device)
            marked[row, green] += self.bias
        return marked

    def _green_after(self, text: Tensor, scores: Tensor | None = None) -> Tensor:
        """Ids of the green tokens after ``text`` ``[pos]``."""
        self._generator.manual_seed(self._seed(text[-self.width :]) % (2**64 - 1))
        return torch.randperm(self.vocab, generator=self._generator)[: self.green]

    def _seed(self, context: Tensor) -> int:
        if self.scheme == "lefthash":
            return self.key * int(context[-1])
        hashes = self._table[context % _TABLE] + 1
        own = self._table[context[-1] % _TABLE] + 1
        return int((self.key * hashes * own).min())

    def _green_with_itself(self, text: Tensor, scores: Tensor) -> Tensor:
        """The likeliest tokens that are green if they themselves belong to the context."""
        likeliest = scores.argsort(descending=True)[:_CANDIDATES]
        green = [t for t in likeliest if (self._green_after(torch.cat((text, t[None]))) == t).any()]
        return torch.stack(green) if green else likeliest[:0]
