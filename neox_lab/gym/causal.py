"""Causal models of tasks: which variables should be found in a model that can do them.

    task = nl.gym.CAUSAL["ioi"]
    pairs = task.pairs("giver_is_first", 300, part="train")
    held_out = task.pairs("giver_is_first", 100)
    nl.interchange.das(model, pairs, held_out, nl.interchange.Site(("resid_post", 1), "giver"))

Each says how an answer comes about, not how the model computes it: whether the model has such a
variable, and where, is the question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from random import Random
from typing import Any

from neox_lab.checks import SEED, check, whole
from neox_lab.errors import InputError
from neox_lab.gym.examples import Draw
from neox_lab.gym.planting_variable import VARIABLES
from neox_lab.gym.words import NAMES, OBJECTS, PART, PLACES, YEARS, Split
from neox_lab.gym.world import ASKED, BEGINNINGS, GIVING, GOT, SPANS
from neox_lab.interchange import CausalModel, Pairs
from neox_lab.named import Named

_COUNT = whole(least=2, most=100_000)


@dataclasses.dataclass(frozen=True)
class CausalTask:
    """A causal model, with inputs drawn for it.

    Attributes:
        name: short name.
        description: what the variables are.
        model: the causal model.
        draw: makes the fields of one input, of a part of the data.
    """

    name: str
    description: str
    model: CausalModel
    draw: Callable[[Random, Split], dict[str, Any]]

    def inputs(self, count: int, part: Split = "held-out", seed: int = 0) -> list[dict[str, Any]]:
        """``count`` inputs, always the same for the same seed.

        Args:
            count: how many.
            part: ``"train"`` or ``"held-out"``, see ``nl.gym.TASKS``.
            seed: of the draw.

        Raises:
            InputError: no number of inputs, or another part.
        """
        count = check("count", count, _COUNT, InputError)
        check("part", part, PART, InputError)
        random = Random(f"{self.name}/{part}/{check('seed', seed, SEED, InputError)}")
        return [self.draw(random, part) for _ in range(count)]

    def pairs(self, variable: str, count: int, part: Split = "held-out", seed: int = 0) -> Pairs:
        """``count`` pairs with the labels that an exchange of ``variable`` should give.

        Args:
            variable: what is exchanged.
            count: how many.
            part: of the data.
            seed: of the draw.

        Raises:
            InputError: an unknown variable or part, or no number of pairs.
        """
        return self.model.pairs(self.inputs(count, part, seed), variable, count, seed)


def _text(template: str, **fields: Any) -> str:
    return template.format(**fields)


def _giving(random: Random, part: Split) -> dict[str, Any]:
    draw = Draw(random, part)
    giver, receiver = draw.some(NAMES, "ioi", 2)
    first, second = random.sample([giver, receiver], 2)
    fields = {"template": draw.template(GIVING), "a": first, "b": second, "c": giver}
    return fields | {"place": draw.one(PLACES), "thing": draw.one(OBJECTS)}


def _begins(random: Random, part: Split) -> dict[str, Any]:
    draw = Draw(random, part)
    return {
        "template": draw.template(SPANS),
        "year": draw.some(BEGINNINGS, "greater_than")[0],
    }


def _got(random: Random, part: Split) -> dict[str, Any]:
    draw = Draw(random, part)
    things = draw.some(OBJECTS, "tracking", 2)
    one, other = random.sample(list(NAMES), 2)
    fields = {"one": things[0], "other": things[1], "has_one": one, "has_other": other}
    return fields | {"template": draw.template(ASKED[GOT]), "asked": random.choice(things)}


def _story(template: str, one: str, other: str, has_one: str, has_other: str, asked: str) -> str:
    told = [GOT.format(thing=one, answer=has_one), GOT.format(thing=other, answer=has_other)]
    return " ".join([*told, template.format(thing=asked)])


def _letters(random: Random, part: Split) -> dict[str, Any]:
    return {letter: random.choice((letter, letter.upper())) for letter in VARIABLES}


def _is_capital(letter: str) -> Callable[..., bool]:
    """Whether one of the letters is a capital."""
    return lambda **fields: bool(fields[letter].isupper())


def _number(**variables: bool) -> str:
    return f"<{sum(variables[letter + '_is_capital'] << k for k, letter in enumerate(VARIABLES))}>"


_YEARS = [int(year) for year in YEARS]
_MIDDLE = 1780  # of a year before 1764, most later ones are not after it

CAUSAL = Named(
    "causal model",
    {
        task.name: task
        for task in (
            CausalTask(
                "ioi",
                "who receives: giver_is_first says which of the two named gives, receiver is who "
                "is left",
                CausalModel(
                    _text,
                    {
                        "giver_is_first": lambda a, c: c == a,
                        "receiver": lambda a, b, giver_is_first: b if giver_is_first else a,
                    },
                    lambda receiver: f" {receiver}",
                    roles={"first": ("a", 0), "second": ("b", 0), "giver": ("c", -1)},
                ),
                _giving,
            ),
            CausalTask(
                "greater_than",
                f"which year is greater: begins_late says whether most years after begin are after "
                f"{_MIDDLE}",
                CausalModel(
                    _text,
                    {
                        "begin": lambda year: int(year),
                        "begins_late": lambda begin: (
                            2 * sum(each > _MIDDLE for each in _YEARS)
                            > sum(each > begin for each in _YEARS)
                        ),
                    },
                    lambda begins_late: "late" if begins_late else "early",
                    choices={
                        "early": [f" {year}" for year in _YEARS if year <= _MIDDLE],
                        "late": [f" {year}" for year in _YEARS if year > _MIDDLE],
                    },
                    roles={"begin": "year"},
                ),
                _begins,
            ),
            CausalTask(
                "tracking",
                "who holds what: asks_first says which of the two things is asked about, holder "
                "is who has it",
                CausalModel(
                    _story,
                    {
                        "asks_first": lambda one, asked: asked == one,
                        "holder": lambda has_one, has_other, asks_first: (
                            has_one if asks_first else has_other
                        ),
                    },
                    lambda holder: f" {holder}",
                    roles={
                        "first thing": ("one", 0),
                        "first holder": ("has_one", 0),
                        "second thing": ("other", 0),
                        "second holder": ("has_other", 0),
                        "asked": ("asked", -1),
                    },
                ),
                _got,
            ),
            CausalTask(
                "planted",
                "the ten variables of nl.gym.planted_variable(), a_is_capital to j_is_capital",
                CausalModel(
                    "".join(f"{{{letter}}}" for letter in VARIABLES) + "=",
                    {f"{letter}_is_capital": _is_capital(letter) for letter in VARIABLES},
                    _number,
                ),
                _letters,
            ),
        )
    },
)
"""Every causal model by its task's name."""
