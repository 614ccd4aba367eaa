"""What a task of the small world gives: examples, each a text and a pair of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from neox_lab.checks import SEED, check, whole
from neox_lab.errors import InputError
from neox_lab.gym.words import PART, Item, Split, split


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two prompts that differ in what decides the answer.

    Attributes:
        clean: the prompt.
        corrupted: the prompt with that one thing changed, as many tokens.
        correct: the next token of ``clean``, with its leading space.
        wrong: what would follow ``corrupted``; for years, what may follow only there.
    """

    clean: str
    corrupted: str
    correct: str
    wrong: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One draw of a task.

    Attributes:
        pair: clean and corrupted prompt with their answers.
        rest: how the text goes on after the answer.
        template: the sentence with places for words.
        words: those words of the prompt that the task splits into train and held-out.
    """

    pair: Pair
    rest: str
    template: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The clean prompt with its answer, as training text."""
        return self.pair.clean + self.pair.correct + self.rest


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing the built-in model can do.

    Attributes:
        name: short name.
        description: what has to be known to answer.
        source: the paper that studied it.
        draw: makes one example of a part of the data.
    """

    name: str
    description: str
    source: str
    draw: Callable[[Random, Split], Example]

    def examples(self, count: int, part: Split = "held-out", seed: int = 0) -> list[Example]:
        """``count`` different examples, always the same for the same seed.

        They are fewer if the task has fewer.

        Args:
            count: how many.
            part: ``"train"`` or ``"held-out"``: whose words.
            seed: of the draw.

        Raises:
            InputError: no number of examples, another part, or no seed.
        """
        count = check("count", count, whole(least=0, most=100_000), InputError)
        check("part", part, PART, InputError)
        random = Random(f"{self.name}/{part}/{check('seed', seed, SEED, InputError)}")
        found: dict[Pair, Example] = {}
        for _ in range(50 * count):
            example = self.draw(random, part)
            found.setdefault(example.pair, example)
            if len(found) == count:
                break
        return list(found.values())

    def pairs(self, count: int, part: Split = "held-out", seed: int = 0) -> list[Pair]:
        """``count`` different pairs of prompts, fewer if the task has fewer.

        Args:
            count: see ``examples``, as for the rest.
            part: likewise.
            seed: likewise.

        Raises:
            InputError: no number of examples, another part, or no seed.
        """
        return [example.pair for example in self.examples(count, part, seed)]


class Templates(NamedTuple):
    """Sentences with places for words: those of training, and those kept for the test."""

    train: Sequence[str]
    held_out: Sequence[str]


class Draw:
    """The choices of one example: which words, which template.

    In training both are those of training. In the test words, template or both are held out,
    each a third of the time.
    """

    def __init__(self, random: Random, part: Split) -> None:
        new = random.choice(("words", "template", "both")) if part == "held-out" else ""
        self.random = random
        self.words: Split = "held-out" if new in ("words", "both") else "train"
        self.templates: Split = "held-out" if new in ("template", "both") else "train"

    def template(self, templates: Templates) -> str:
        """One of the sentences."""
        chosen = templates.train if self.templates == "train" else templates.held_out
        return self.random.choice(chosen)

    def some(self, items: Sequence[Item], task: str, count: int = 1) -> list[Item]:
        """``count`` different ones of those items that the task may use here."""
        return self.random.sample(split(items, task, self.words), count)

    def one(self, items: Sequence[Item]) -> Item:
        """Any of the items."""
        return self.random.choice(items)
