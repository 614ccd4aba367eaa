"""Labelled data of the small world, for the three heads.

    reviews("train", 100)      rows with text and label, for ``tasks.classification``
    questions("train", 100)    SQuAD's frame of questions, for ``tasks.answering``
    sentences("train", 100)    rows with text and entities, for ``tasks.tagging``

Every one keeps words and templates back for ``"held-out"``, as the tasks of ``world`` do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from neox_lab.checks import SEED, check, whole
from neox_lab.errors import InputError
from neox_lab.gym.examples import Draw, Templates
from neox_lab.gym.words import (
    CONTAINERS,
    COUNTRIES,
    MONTHS,
    NAMES,
    NEGATIVE,
    NOUNS,
    OBJECTS,
    PART,
    PLACES,
    POSITIVE,
    REVIEWED,
    SURNAMES,
    YEARS,
    Split,
)

Row = TypeVar("Row")

LABELS = {
    "sequence-classification": ["negative", "positive"],
    "token-classification": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-DATE", "I-DATE"],
}
"""What the heads tell apart."""

_VERDICTS = Templates(
    train=(
        "The {thing} was {first} and {second}.",
        "It was {first}, and the {part} was {second}.",
        "I call that {first}.",
        "What I saw was {first}, even {second}.",
        "The {part} seemed {first} to me.",
        "{name} thought the {part} {first} and {second}.",
    ),
    held_out=(
        "The {part} of the {thing} was {first} and {second}.",
        "{name} found it {first}.",
        "To me the {thing} seemed {first}, even {second}.",
    ),
)
_FRAMES = (
    "I saw the {thing} with {name}.",
    "{name} took me to a {thing}.",
    "The {thing} was in the {place}.",
    "We went to the {place} in {year}.",
    "There was a new {thing} in {city}.",
)
_PARTS = ("story", "end", "beginning", "music", "voice", "hall")


def reviews(part: Split, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Reviews of two to four sentences, with ``text`` and ``label``: negative or positive.

    Raises:
        InputError: another part than ``"train"`` and ``"held-out"``, no count, or no seed.
    """
    return _draw(_review, part, count, seed)


def _review(random: Random, part: Split) -> dict[str, str]:
    label, words = random.choice((("negative", NEGATIVE), ("positive", POSITIVE)))
    draw = Draw(random, part)
    fill = {
        "thing": draw.one(REVIEWED),
        "name": draw.one(NAMES),
        "place": draw.one(PLACES),
        "year": draw.one(YEARS),
        "city": draw.one(list(COUNTRIES.values()))[0],
        "part": draw.one(_PARTS),
    }
    text = random.sample(_FRAMES, random.randint(0, 2))
    for template in [draw.template(_VERDICTS) for _ in range(random.randint(1, 2))]:
        first, second = draw.some(words, "reviews", 2)
        text.append(template.format(first=first, second=second, **fill))
    random.shuffle(text)
    return {"text": " ".join(text).format(**fill), "label": label}


_FACTS: dict[str, Templates] = {
    "{who} put the {thing} in the {box}.": Templates(
        train=("Where is the {thing}?|box", "Where did {who} put the {thing}?|box"),
        held_out=("Where can we find the {thing}?|box",),
    ),
    "{who} went to the {place}.": Templates(
        train=("Where is {who}?|place", "Where did {who} go?|place"),
        held_out=("Where can we find {who}?|place",),
    ),
    "The {thing} was given to {full}.": Templates(
        train=("Who has the {thing}?|full", "To whom was the {thing} given?|full"),
        held_out=("Who was given the {thing}?|full",),
    ),
    "{who} was born in {year}.": Templates(
        train=("When was {who} born?|year", "What year was {who} born in?|year"),
        held_out=("In what year was {who} born?|year",),
    ),
    "{who} came from {country}.": Templates(
        train=("Where did {who} come from?|country", "What country is {who} from?|country"),
        held_out=("From what country did {who} come?|country",),
    ),
}


_OTHERWISE = {
    "{who} put the {thing} in the {box}.": (
        "Where was the {thing} put?|box",
        "Where should we look for the {thing}?|box",
        "In what did {who} put the {thing}?|box",
        "Can you tell where the {thing} is?|box",
        "From where can I take the {thing}?|box",
        "What is the {thing} in?|box",
    ),
    "{who} went to the {place}.": (
        "Where was it that {who} went?|place",
        "Where should we look for {who}?|place",
        "To what place did {who} go?|place",
        "Can you tell where {who} is?|place",
        "From where can I call {who}?|place",
        "What place did {who} go to?|place",
    ),
    "The {thing} was given to {full}.": (
        "Who got the {thing}?|full",
        "Who did they give the {thing} to?|full",
        "With whom is the {thing}?|full",
        "Can you tell who has the {thing}?|full",
        "From whom can I take the {thing}?|full",
        "Who was it that got the {thing}?|full",
    ),
    "{who} was born in {year}.": (
        "What was the year in which {who} was born?|year",
        "Can you tell when {who} was born?|year",
        "From what year on did {who} live?|year",
        "In which year did the life of {who} begin?|year",
        "When did {who} come into the world?|year",
    ),
    "{who} came from {country}.": (
        "In what country did {who} live before?|country",
        "Can you tell where {who} came from?|country",
        "From where did {who} come?|country",
        "Which country did {who} come from?|country",
        "From which country is {who}?|country",
        "What was the country of {who}?|country",
    ),
}


_ANYTHING = (*PLACES, *CONTAINERS, *COUNTRIES, *NOUNS, *MONTHS, *SURNAMES)


def questions(part: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions over short stories: ``id``, ``question``, ``context`` and ``answers``.

    ``answers`` is a list of (first character, text), as in ``tasks.squad``; it is empty for one
    question in eight, which the story does not answer. A GPT-NeoX reads forward only, so what
    tells that a word is the answer always stands before it.

    Raises:
        InputError: another part than ``"train"`` and ``"held-out"``, no count, or no seed.
    """
    rows = _draw(_question, part, count, seed)
    return [{"id": str(number), **row} for number, row in enumerate(rows)]


def rephrased(part: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as those of ``questions``, but asked in other ways that neither part of it has.

    Half of the time any words stand for people and things. For training: with two ways of asking
    and some names, what is learned is the wording, and each name by itself.

    Raises:
        InputError: another part than ``"train"`` and ``"held-out"``, no count, or no seed.
    """
    rows = _draw(_rephrased, part, count, seed)
    return [{"id": f"rephrased {number}", **row} for number, row in enumerate(rows)]


def _rephrased(random: Random, part: Split) -> dict[str, Any]:
    return _question(random, part, _OTHERWISE)


def _question(
    random: Random, part: Split, otherwise: dict[str, tuple[str, ...]] | None = None
) -> dict[str, Any]:
    draw = Draw(random, part)
    count = random.randint(3, 5)
    if otherwise and random.random() < 0.5:
        people, things = (random.sample(_ANYTHING, count) for _ in range(2))
    else:
        people = draw.some(NAMES, "questions", count)
        things = draw.some(OBJECTS, "questions", count)
    surnames = random.sample(SURNAMES, count)
    receivers = random.sample(NAMES, count)
    rows = [
        {
            "who": people[n],
            "thing": things[n],
            "full": f"{receivers[n]} {surnames[n]}" if random.random() < 0.7 else receivers[n],
            "box": random.choice(CONTAINERS),
            "place": random.choice(PLACES),
            "year": str(random.choice(YEARS)),
            "country": random.choice(list(COUNTRIES)),
        }
        for n in range(count)
    ]
    told = [random.choice(tuple(_FACTS)) for _ in rows]
    asked = random.randrange(count)
    template = (
        random.choice(otherwise[told[asked]]) if otherwise else draw.template(_FACTS[told[asked]])
    )
    question, answer = template.format(**rows[asked]).split("|")
    text, spans = "", []
    for n, (template, row) in enumerate(zip(told, rows, strict=True)):
        if n == asked and random.random() < 1 / 8:
            continue
        sentence = template.format(**row)
        if n == asked:
            spans = [(len(text) + sentence.rindex(row[answer]), row[answer])]
        text += sentence + " "
    return {"question": question, "context": text.rstrip(), "answers": spans}


_MARKED = Templates(
    train=(
        "[PER] lives in [LOC].",
        "In [DATE] [PER] came to [LOC].",
        "[PER] and [PER] met in the {place}.",
        "The {thing} was sent from [LOC] to [LOC].",
        "[PER] gave the {thing} to [PER] in [DATE].",
        "The {place} was built in [DATE].",
        "We saw [PER] near the {place}.",
        "Nobody in [LOC] knew [PER].",
        "[PER] was born in [LOC] in [DATE].",
        "The {thing} is in the {box}.",
        "From [DATE] to [DATE] there was a war in [LOC].",
        "Then [PER] went home.",
    ),
    held_out=(
        "[PER] came to [LOC] in [DATE].",
        "In [LOC] the {thing} was given to [PER].",
        "The {place} of [LOC] was open in [DATE].",
        "Then [PER] saw [PER] in [LOC].",
    ),
)


def sentences(part: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts with ``entities``: people with or without surname, places, and dates.

    Each entity has ``start``, ``end`` (characters) and ``label``: PER, LOC or DATE.

    Raises:
        InputError: another part than ``"train"`` and ``"held-out"``, no count, or no seed.
    """
    return _draw(_sentence, part, count, seed)


_PIECES = (
    *("[PER]", "[LOC]", "[DATE]", "in [LOC]", "in [DATE]", "In [DATE]", "In [LOC]", "to [LOC]"),
    *("with [PER]", "from [LOC]", "of [LOC]", "saw [PER]", "to [PER]", "Then [PER]", "and [PER]"),
    *("the {thing}", "the {place}", "in the {place}", "was", "came", "the {box}", "and", ","),
)


def fragments(part: Split, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as those of ``sentences``, but bits of sentences in any order.

    For training: here only the words themselves tell what they are, not the sentence they are in.

    Raises:
        InputError: another part than ``"train"`` and ``"held-out"``, no count, or no seed.
    """
    return _draw(_fragment, part, count, seed)


def _fragment(random: Random, part: Split) -> dict[str, Any]:
    return _marked(Draw(random, part), " ".join(random.choices(_PIECES, k=random.randint(3, 8))))


def _sentence(random: Random, part: Split) -> dict[str, Any]:
    draw = Draw(random, part)
    return _marked(draw, " ".join(draw.template(_MARKED) for _ in range(random.randint(1, 2))))


def _marked(draw: Draw, template: str) -> dict[str, Any]:
    """The template with its words, and where its entities are."""
    fill = {"place": draw.one(PLACES), "thing": draw.one(OBJECTS), "box": draw.one(CONTAINERS)}
    text = ""
    entities = []
    for piece in re.split(r"(\[[A-Z]+\])", template.format(**fill)):
        if piece.startswith("["):
            label = piece[1:-1]
            piece = _entity(draw, label)
            place = {"start": len(text), "end": len(text) + len(piece)}
            entities.append({**place, "label": label})
        text += piece
    return {"text": text, "entities": entities}


def _entity(draw: Draw, label: str) -> str:
    longer = draw.random.random() < 0.5
    if label == "PER":
        name = draw.some(NAMES, "sentences")[0]
        return f"{name} {draw.one(SURNAMES)}" if longer else name
    if label == "LOC":
        country = draw.some(list(COUNTRIES), "sentences")[0]
        city = COUNTRIES[country][0]
        side = f"{draw.one(('North', 'South'))} {country}"
        return side if longer else draw.one((country, city))
    year = str(draw.some(YEARS, "sentences")[0])
    return f"{draw.one(MONTHS)} {year}" if longer else year


def _draw(draw: Callable[[Random, Split], Row], part: Split, count: int, seed: int) -> list[Row]:
    check("part", part, PART, InputError)
    count = check("count", count, whole(least=0), InputError)
    random = Random(f"{draw.__name__}/{part}/{check('seed', seed, SEED, InputError)}")
    return [draw(random, part) for _ in range(count)]
