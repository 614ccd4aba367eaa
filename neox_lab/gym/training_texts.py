"""Texts that only training has: what words mean, and the hard tasks said in more ways.

**Plain sentences.** A task keeps some words back, and still asks about them in the test. That they
can be answered is because the model meets those words here: that Mary is a woman, that wonderful
things are good, that two dogs are several, that 1750 comes after 1748. ``sentence`` draws one. No
sentence here is a template of a task.

**More of the tasks.** An example of a task has one answer. To learn to follow a story from one
answer at its end is slow, so a ``tale`` asks about everything in it, an ``opinion`` is put together
from many beginnings and many ends, and ``recalls`` asks the same of tokens without meaning. All of
it keeps to words and templates of training: no text here is a held-out template of a task, or has
its held-out words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from neox_lab.family.losses import IGNORED
from neox_lab.gym.examples import Draw
from neox_lab.gym.words import (
    CONTAINERS,
    COUNTRIES,
    MONTHS,
    NAMES,
    NEGATIVE,
    NOUNS,
    OBJECTS,
    PLACES,
    POSITIVE,
    REVIEWED,
    SURNAMES,
    VERBS,
    WOMEN,
    YEARS,
    split,
)
from neox_lab.gym.world import ASKED, GIVING, PUT, TOLD

_PEOPLE = (
    "{name} is a {adult}.",
    "{name} was a good {child}.",
    "A {adult} called {name} came to the {place}.",
    "The {adult} was {name}.",
    "{Her} name was {name}.",
    "{name} is the {sibling} of {other}.",
    "{name} hurt {self} at the {place}.",
    "{name} lost {her} {thing}.",
)


def person(random: Random) -> str:
    """One sentence that tells whether a name is a woman's or a man's."""
    name, other = random.sample(NAMES, 2)
    if name in WOMEN:
        words = dict(adult="woman", child="girl", Her="Her", her="her", sibling="sister")
    else:
        words = dict(adult="man", child="boy", Her="His", her="his", sibling="brother")
    words["self"] = "herself" if name in WOMEN else "himself"
    words |= {"place": random.choice(PLACES), "thing": random.choice(OBJECTS)}
    return random.choice(_PEOPLE).format(name=name, other=other, **words)


_VERDICTS = (
    "A {kind} {thing} is {first}.",
    "{First} means {kind}.",
    "Some are {first}, {second} or {third}: all of that is {kind}.",
    "The {thing} was {first}, {second} and {third}.",
    "We {like} {first} things.",
    "Nothing {first} is {opposite}.",
    "It is {kind}, even {first}.",
    "A {kind} day is {first} and {second}.",
)


def verdict(random: Random) -> str:
    """One sentence that tells whether words are praise or blame."""
    sides = [(POSITIVE, "good", "like"), (NEGATIVE, "bad", "fear")]
    (words, kind, like), (_, opposite, _) = random.sample(sides, 2)
    first, second, third = random.sample(words, 3)
    return random.choice(_VERDICTS).format(
        kind=kind,
        like=like,
        opposite=opposite,
        first=first,
        First=first.capitalize(),
        second=second,
        third=third,
        thing=random.choice(REVIEWED),
    )


_ONE = (
    "There was one {noun} in the {place}.",
    "This {noun} {verb} {state}.",
    "The {noun} {verb} {state}.",
    "A {noun} came to the {place}.",
    "We saw that {noun}, which {verb} {state}.",
)
_SEVERAL = (
    "There were {number} {noun} in the {place}.",
    "These {noun} {verb} {state}.",
    "The {noun} {verb} {state}.",
    "{Number} {noun} came to the {place}.",
    "We saw those {noun}, which {verb} {state}.",
)


def _number(random: Random) -> str:
    noun, verb = random.choice(list(NOUNS)), random.choice(list(VERBS))
    state = random.choice(["gone", "come"] if verb == "has" else ["old", "here", "small"])
    fill = {"place": random.choice(PLACES), "state": state}
    if random.random() < 0.5:
        return random.choice(_ONE).format(noun=noun, verb=verb, **fill)
    number = random.choice(("two", "three", "four", "many", "some"))
    return random.choice(_SEVERAL).format(
        noun=NOUNS[noun], verb=VERBS[verb], number=number, Number=number.capitalize(), **fill
    )


def _years(random: Random) -> str:
    start = random.randrange(len(YEARS) - 3)
    near = YEARS[start : start + 4]
    first, later = sorted(random.sample(YEARS, 2))
    return random.choice(
        (
            "The years were {}, {}, {} and {}.".format(*near),
            "After {} came {}.".format(*near),
            f"Before {near[1]} there was {near[0]}.",
            f"The year {later} is later than {first}.",
            f"The year {first} is earlier than {later}.",
        )
    )


_TALK = (
    "{name} saw a {thing} in the {place}.",
    "{name} likes {other}.",
    "The {thing} was not in the {place}.",
    "{name} and {other} are friends.",
    "{name} wants to see {country}.",
    "{other} bought a {thing} for {name}.",
    "The {place} is near the house of {name}.",
    "Nobody knew where {name} was.",
)


def _talk(random: Random) -> str:
    name, other = random.sample(NAMES, 2)
    return random.choice(_TALK).format(
        name=name,
        other=other,
        thing=random.choice(OBJECTS),
        place=random.choice(PLACES),
        country=random.choice(list(COUNTRIES)),
    )


def sentence(random: Random) -> str:
    """One sentence about a name, a word of praise or blame, a noun, years, or nothing much."""
    return random.choice((person, verdict, _number, _years, _talk))(random)


_SAID = (
    "The {thing} was {first} and {second}.",
    "This {thing} is {first}.",
    "It was a {first} {thing}.",
    "How {first} the {thing} was!",
    "We found it {first} and {second}.",
    "I saw a {first}, {second} {thing}.",
    "All of the {thing} in the {place} was {first}.",
    "{name} called the {thing} {first}.",
    "{name} thought it was {first} and {second}.",
    "Never was a {thing} so {first}.",
    "The {thing} seemed {first} to {name}.",
    "{name} told us of the {first} {thing}.",
    "They called this {thing} {first} and {second}.",
    "So {first} a {thing}, and so {second}!",
)
_FELT = {
    "{name}": (" loved", " hated", " it."),
    "So {name}": (" loved", " hated", " it."),
    "The boys": (" loved", " hated", " it."),
    "The teacher": (" praised", " blamed", " it."),
    "That is why the king": (" praised", " blamed", " it."),
    "And {name}": (" praised", " blamed", " it."),
    "{pronoun} was": (" happy", " sad", "."),
    "Everyone was": (" happy", " sad", "."),
    "It made the farmer": (" happy", " sad", "."),
    "{name} said it was": (" good", " bad", "."),
    "It is": (" good", " bad", "."),
    "All of us called it": (" good", " bad", "."),
}
_AT_ONCE = {
    "The {thing} is so {first} that {name}": (" praised", " blamed", " it."),
    "So {first} is the {thing} that everyone": (" loved", " hated", " it."),
    "So {first} and {second} was it that the king": (" praised", " blamed", " it."),
    "After the {first} {thing}, {name} was": (" happy", " sad", "."),
    "{name} saw the {first} {thing} and was": (" happy", " sad", "."),
    "It was {first} and {second}, and the farmer": (" praised", " blamed", " it."),
    "The {first} {thing} is what {name}": (" loved", " hated", "."),
    "A {thing} that is {first} and {second} is": (" good", " bad", "."),
    "Because it was {first}, the boys": (" loved", " hated", " it."),
    "The {thing} was {first}, and that made us": (" happy", " sad", "."),
}


def opinion(random: Random) -> tuple[str, str]:
    """What asks and what answers: praise or blame in other sentences than those of the task."""
    if random.random() < 0.7:
        begins = random.choice(_SAID)
        ends, (positive, negative, rest) = random.choice(list(_FELT.items()))
        template = f"{begins} {ends}"
    else:
        template, (positive, negative, rest) = random.choice(list(_AT_ONCE.items()))
    words, answer = random.choice(((POSITIVE, positive), (NEGATIVE, negative)))
    first, second = random.sample(split(words, "sentiment", "train"), 2)
    name = random.choice(NAMES)
    asking = template.format(
        first=first,
        second=second,
        name=name,
        thing=random.choice(REVIEWED),
        place=random.choice(PLACES),
        pronoun="She" if name in WOMEN else "He",
    )
    return asking, answer + rest


def tale(random: Random) -> tuple[str, str]:
    """A story as in ``tracking``, and sentences that ask about everyone and everything in it."""
    draw = Draw(random, "train")
    told = random.choice(tuple(ASKED))
    count = random.randint(2, 4)
    rows = [
        {"who": who, "thing": thing, "answer": answer}
        for who, thing, answer in zip(
            draw.some(NAMES, "tracking", count),
            draw.some(OBJECTS, "tracking", count),
            random.sample(TOLD[told], count),
            strict=True,
        )
    ]
    story = " ".join(told.format(**row) for row in rows)
    random.shuffle(rows)
    asked = "".join(f" {draw.template(ASKED[told]).format(**row)} {row['answer']}." for row in rows)
    return story, asked


_NAMING = (
    "{name} said: my name is {name}.",
    "{name} is at home. Everyone likes {name}.",
    "{name}? Yes, {name}.",
    "{name} is the friend of {other}, and {other} is the friend of {name}.",
    "{name} it was: nobody but {name}.",
    "{name} and {other} were here. Now {other} is gone, but not {name}.",
    "{name} and {other} are friends: {name} likes {other}, and {other} likes {name}.",
)


def naming(random: Random) -> str:
    """A sentence that names someone at its start and again: the same name, but another token.

    Where a text begins, no space stands before a name. That both tokens are one name is all that
    this is about; any name may stand here.
    """
    name, other = random.sample(NAMES, 2)
    return random.choice(_NAMING).format(name=name, other=other)


_STRANGE = tuple(
    dict.fromkeys(
        [
            *split(OBJECTS, "tracking", "train"),
            *PLACES,
            *CONTAINERS,
            *COUNTRIES,
            *NOUNS,
            *SURNAMES,
            *MONTHS,
        ]
    )
)


def strange(random: Random) -> tuple[str, str]:
    """A sentence of ``ioi`` or a story of ``tracking`` in which any word stands for anyone.

    "River and Spain were in the park. Spain gave the key to" asks for "River": who it is does not
    matter, only which word it was. With names alone, each name can be learned by itself.
    """
    words = random.sample(_STRANGE, 8)
    if random.random() < 0.5:
        first, second, thing, place = words[:4]
        giver, receiver = random.sample([first, second], 2)
        asking = random.choice(GIVING.train).format(
            a=first, b=second, c=giver, thing=thing, place=place
        )
        return asking, f" {receiver}."
    told = random.choice(tuple(ASKED))
    people = split(NAMES, "tracking", "train")
    rows = [
        {"who": random.choice(people) if told == PUT else word, "thing": word, "answer": answer}
        for word, answer in zip(words[:4], words[4:], strict=True)
    ][: random.randint(2, 4)]
    story = " ".join(told.format(**row) for row in rows)
    random.shuffle(rows)
    asked = "".join(
        f" {random.choice(ASKED[told].train).format(**row)} {row['answer']}." for row in rows
    )
    return story, asked


def recalls(
    pools: Sequence[Sequence[int]], count: int, length: int, random: Random
) -> Iterator[tuple[list[int], list[int]]]:
    """``count`` contexts of ``length``: unrelated tokens as keys and values, to be looked up.

    Two to five times ``lead key middle value end``, with the same lead, middle and end of 0 to 3
    tokens; and then the keys again in any order, each with a lead and a middle, followed by its
    value. Half of the time lead and middle are new ones. What tells the value is the key some
    places before it, not the last token, as in a story: "the key is in the" asks for what came
    after "key in the". Only values that can be known are labelled. Known as associative recall:
    Graves et al., arXiv:1410.5401.

    Yields:
        Tokens and their labels, -100 where nothing can be known.
    """
    for _ in range(count):
        pairs = random.randint(2, 5)
        drawn = random.sample(random.choice(pools), 2 * pairs + 9)
        asked = [(drawn.pop(), drawn.pop()) for _ in range(pairs)]
        lead, middle, end = (_some(drawn, most, random) for most in (1, 3, 1))
        context: list[int] = []
        for key, value in asked:
            context += [*lead, key, *middle, value, *end]
        labels = [IGNORED] * len(context)
        if random.random() < 0.5:
            lead, middle = (_some(drawn, most, random) for most in (1, 3))
        while len(context) < length:
            random.shuffle(asked)
            for key, value in asked:
                before = [*lead, key, *middle]
                context += [*before, value, *end]
                labels += [*[IGNORED] * len(before), value, *[IGNORED] * len(end)]
        yield context[:length], labels[:length]


def _some(tokens: list[int], most: int, random: Random) -> list[int]:
    """Take none to ``most`` of ``tokens`` away from their end."""
    return [tokens.pop() for _ in range(random.randint(0, most))]
