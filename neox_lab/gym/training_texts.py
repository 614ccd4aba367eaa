"""What the words of the small world mean, in plain sentences, and small talk.

A task keeps some words back, and still asks about them in the test. That they can be answered is
because the model meets those words here: that Mary is a woman, that wonderful things are good, that
two dogs are several, that 1750 comes after 1748. No sentence here is a template of a task.
"""

from __future__ import annotations

from random import Random

from neox_lab.gym.words import (
    COUNTRIES,
    NAMES,
    NEGATIVE,
    NOUNS,
    OBJECTS,
    PLACES,
    POSITIVE,
    REVIEWED,
    VERBS,
    WOMEN,
    YEARS,
)

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


_OPINIONS = (
    "A {kind} {thing} is {first}.",
    "{First} means {kind}.",
    "Some are {first}, {second} or {third}: all of that is {kind}.",
    "The {thing} was {first}, {second} and {third}.",
    "We {like} {first} things.",
    "Nothing {first} is {opposite}.",
    "It is {kind}, even {first}.",
    "A {kind} day is {first} and {second}.",
)


def opinion(random: Random) -> str:
    """One sentence that tells whether words are praise or blame."""
    sides = [(POSITIVE, "good", "like"), (NEGATIVE, "bad", "fear")]
    (words, kind, like), (_, opposite, _) = random.sample(sides, 2)
    first, second, third = random.sample(words, 3)
    return random.choice(_OPINIONS).format(
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
    return random.choice((person, opinion, _number, _years, _talk))(random)
