"""Continuations of a prompt, and going back to write something else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from neox_lab.errors import InputError
from neox_lab.family.contract import LanguageModel
from neox_lab.generation.stream import Alternative
from neox_lab.views import TextView, label

ALTERNATIVES = 8  # likeliest tokens shown at each place
LABEL_LIMIT = 18


@dataclass(frozen=True)
class Written:
    """A token of a continuation; the numbers are the model's own, before temperature and top-p.

    Attributes:
        token: its id.
        piece: its text.
        probability: what the model gave it.
        entropy: of the whole prediction, in nats.
        alternatives: the likeliest tokens: id, text, probability.
    """

    token: int
    piece: str
    probability: float
    entropy: float
    alternatives: tuple[Alternative, ...]


@dataclass
class Branch:
    """One continuation.

    Attributes:
        tokens: what was written after the prompt.
        origin: number of the branch it left, None for the first.
        start: number of its first own token; those before it are the origin's.
    """

    tokens: list[Written] = field(default_factory=list)
    origin: int | None = None
    start: int = 0


class Branches:
    """A prompt with its continuations, one of which is shown.

    Args:
        model: a GPTNeoXForCausalLM with a tokenizer.
        prompt: the text they continue.

    Attributes:
        branches: all of them, in the order in which they were begun.
        shown: which of them is shown.
    """

    def __init__(self, model: LanguageModel, prompt: str) -> None:
        self._model = model
        self._ids: list[int] = model.to_tokens(prompt)[0].tolist()
        self._pieces = model.to_str_tokens(prompt)
        self.branches: list[Branch] = [Branch()]
        self.shown = 0

    def fork(self, position: int, rank: int) -> Branch:
        """A branch with another token at a place of the one shown; it is not among them yet.

        Args:
            position: number of the token to replace, 0 for the first after the prompt.
            rank: which of its alternatives to put there, 0 for the likeliest.

        Raises:
            InputError: there is no such token or alternative.
        """
        tokens = self.branches[self.shown].tokens
        if not 0 <= position < len(tokens):
            raise InputError(f"There is no token {position}; this branch has {len(tokens)}.")
        written = tokens[position]
        if not 0 <= rank < len(written.alternatives):
            count = len(written.alternatives)
            raise InputError(f"There is no alternative {rank} at token {position}, only {count}.")
        token, piece, probability = written.alternatives[rank]
        other = Written(token, piece, probability, written.entropy, written.alternatives)
        return Branch([*tokens[:position], other], self.shown, position)

    def same(self, branch: Branch) -> int | None:
        """Number of a branch that begins as ``branch`` does; None if there is none."""
        begins = [written.token for written in branch.tokens]
        for number, other in enumerate(self.branches):
            if [written.token for written in other.tokens[: len(begins)]] == begins:
                return number
        return None

    def add(self, branch: Branch) -> None:
        """Show ``branch`` as a further one."""
        self.branches.append(branch)
        self.shown = len(self.branches) - 1

    def show(self, number: int) -> None:
        """Show another branch.

        Raises:
            InputError: there is none with this number.
        """
        self.check(number)
        self.shown = number

    def check(self, number: int) -> None:
        """Refuse a number that no branch has.

        Raises:
            InputError: there is none with this number.
        """
        if not 0 <= number < len(self.branches):
            raise InputError(f"There is no branch {number}; there are {len(self.branches)}.")

    def write(self, length: int, **sampling: float | bool) -> Iterator[int]:
        """Continue the branch shown until it has ``length`` tokens or has ended.

        Yields:
            How many tokens it has, after each.
        """
        tokens = self.branches[self.shown].tokens
        ends = self._model.generation_config.eos_token_id
        ended = tokens and tokens[-1].token in (ends if isinstance(ends, list) else [ends])
        if ended or len(tokens) >= length:
            return
        ids = torch.tensor([self._ids + [written.token for written in tokens]])
        for step in self._model.stream(
            ids, max_new_tokens=length - len(tokens), alternatives=ALTERNATIVES, **sampling
        ):
            tokens.append(
                Written(step.token, step.piece, step.probability, step.entropy, step.alternatives)
            )
            yield len(tokens)

    def view(self) -> TextView:
        """The branch shown, each token with what else might have come."""
        tokens = self.branches[self.shown].tokens
        return TextView(
            self._pieces,
            [written.piece for written in tokens],
            [written.probability for written in tokens],
            alternatives=[
                [(other.text, other.probability) for other in written.alternatives]
                for written in tokens
            ],
        )

    def names(self) -> list[str]:
        """What the branches are called: a number, and the token with which each left another."""
        return [self._name(number) for number in range(len(self.branches))]

    def _name(self, number: int) -> str:
        branch = self.branches[number]
        if branch.origin is None:
            return "1"
        piece = label(branch.tokens[branch.start].piece, LABEL_LIMIT)
        return f"{number + 1}: {piece}@{len(self._ids) + branch.start}"
