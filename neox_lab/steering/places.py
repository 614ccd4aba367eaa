"""Which positions of a text are steered, said once for prompts, caches and padding.

Positions are absolute: 0 is the first token of each text, wherever it is padded, and what a
key-value cache holds counts. So a run that reads everything at once and one that reads a token at
a time mean the same by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.model.hook_points import LocatedWatcher
from neox_lab.selections import read

WORDS = ("all", "prompt", "generated", "last")
Places = str | int | slice | Sequence[int] | Tensor
"""``"all"``; ``"prompt"`` or ``"generated"`` tokens, in ``generate``; ``"last"``, the last token of
each prompt; or absolute positions: one, a slice, a list."""


@dataclass(frozen=True)
class Where:
    """Places, checked.

    Attributes:
        word: one of ``WORDS``, or "" for numbers.
        start: the first position.
        stop: where to stop before; None for never.
        step: of a slice.
        listed: the positions of a list; None for a slice.
    """

    word: str = ""
    start: int = 0
    stop: int | None = None
    step: int = 1
    listed: tuple[int, ...] | None = None

    @classmethod
    def of(cls, places: object) -> Where:
        """What the user means.

        Args:
            places: see ``Places``.

        Raises:
            InputError: something else, or positions counted from an end that moves as text grows.
        """
        if isinstance(places, str):
            if places not in WORDS:
                raise InputError(
                    f"positions={shown(places)}; expected one of {', '.join(WORDS)}, or absolute "
                    "positions: a whole number, a list of them, or slice(5, None)."
                )
            return cls(word=places)
        found = read("positions", places, InputError)
        if isinstance(found, slice):
            start, stop, step = found.start or 0, found.stop, found.step or 1
            if step < 0 or start < 0 or (stop is not None and stop < 0):
                raise InputError(f"positions={shown(places)}; {_NO_END}")
            return cls(start=start, stop=stop, step=step)
        listed = [found] if isinstance(found, int) else found
        if any(isinstance(at, bool) for at in listed):
            raise InputError(f"positions={shown(places, 80)} is a mask; give the positions.")
        if not listed or min(listed) < 0:
            raise InputError(f"positions={shown(places, 80)}; {_NO_END}")
        return cls(listed=tuple(listed))

    def chosen(self, watcher: LocatedWatcher, length: int) -> Tensor | None:
        """Which positions of a tensor are meant ``[batch or 1, length]``; None for all of them.

        Args:
            watcher: who is called with it, and was told where it stands.
            length: positions of the tensor.

        Raises:
            InputError: a word that means nothing in this run.
        """
        positions = watcher.positions
        if positions is None or positions.shape[1] != length:
            raise InputError(
                f"Nobody said which positions the tensor at {watcher.point.name!r} has; steer "
                "where all positions of a run pass."
            )
        text = positions >= 0
        if self.word == "all":
            return None if bool(text.all()) else text
        if self.word:
            return text & self._named(watcher, positions, length)
        if self.listed is not None:
            return torch.isin(positions, torch.tensor(self.listed, device=positions.device))
        inside = text & (positions >= self.start) & ((positions - self.start) % self.step == 0)
        return inside if self.stop is None else inside & (positions < self.stop)

    def _named(self, watcher: LocatedWatcher, positions: Tensor, length: int) -> Tensor:
        """The positions that a word means, padding perhaps included."""
        point = watcher.point
        if point.step is None and (self.word == "generated" or watcher.past):
            if self.word == "last" or self.word == "generated":
                raise InputError(
                    f"positions={self.word!r} has a meaning in generate() only"
                    + (", and in runs without a cache" if self.word == "last" else "")
                    + ": elsewhere nobody knows where the prompt ends. Give absolute positions, "
                    "such as slice(5, None)."
                )
        before = length - point.generated
        column = torch.arange(length, device=positions.device)
        prompt = (column < before).expand(len(positions), -1)
        if self.word == "prompt":
            return prompt
        if self.word == "generated":
            return ~prompt
        last = torch.where(prompt, positions, -1).amax(dim=1, keepdim=True)
        return prompt & (positions == last)


_NO_END = (
    "positions are absolute, counted from 0: the end of a text moves while it is generated. Use "
    "'last' for the last token of the prompt."
)
