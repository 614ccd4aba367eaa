"""The small world: eight things a language model can know, as texts and as pairs of prompts.

Each task is one function that draws an ``Example``: a prompt, its one-token answer, and the same
prompt changed in one respect so that another answer is right. As text (``example.text``) it is
training data; as ``example.pair`` it is what activation patching needs: clean and corrupted prompts
of equal length, a correct and a wrong answer.

Every task keeps something back. ``part="train"`` never uses the words that ``words.split`` keeps
for the task, nor its held-out templates; ``part="held-out"`` always uses one or the other or both,
so that a right answer there was not memorised. What held-out words mean can be learned elsewhere:
in other tasks, and from the plain sentences of ``training_texts``.
"""

from __future__ import annotations

from random import Random

from neox_lab.gym.examples import Draw, Example, Pair, Task, Templates
from neox_lab.gym.words import (
    CONTAINERS,
    COUNTRIES,
    MEN,
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
    Split,
    split,
)
from neox_lab.named import Named

GIVING = Templates(
    train=(
        "When {a} and {b} went to the {place}, {c} gave the {thing} to",
        "{a} and {b} were in the {place}. {c} gave the {thing} to",
        "After {a} and {b} came to the {place}, {c} handed a {thing} to",
        "While {a} and {b} were at the {place}, {c} showed the {thing} to",
        "{a} and {b} had a {thing}. In the {place}, {c} passed it to",
        "Then {a} and {b} went to the {place}, and {c} offered the {thing} to",
        "{a} met {b} at the {place}. Then {c} gave a {thing} to",
        "In the {place}, {a} saw {b}, and {c} sold the {thing} to",
        "As {a} and {b} walked to the {place}, {c} threw the {thing} to",
        "{a} and {b} liked the {place}. So {c} brought a {thing} to",
    ),
    held_out=(
        "When {a} and {b} were in the {place}, {c} offered a {thing} to",
        "{a} and {b} came to the {place}. Then {c} showed a {thing} to",
        "While {a} and {b} walked to the {place}, {c} passed the {thing} to",
    ),
)


def indirect_object(random: Random, part: Split) -> Example:
    """Two names; one of them comes again, so the other is who gets something.

    Held out: names and templates.
    """
    draw = Draw(random, part)
    template = draw.template(GIVING)
    giver, receiver = draw.some(NAMES, "ioi", 2)
    first, second = random.sample([giver, receiver], 2)
    fill = {"a": first, "b": second, "place": draw.one(PLACES), "thing": draw.one(OBJECTS)}
    clean, corrupted = (template.format(c=who, **fill) for who in (giver, receiver))
    pair = Pair(clean, corrupted, f" {receiver}", f" {giver}")
    return Example(pair, ".", template, (giver, receiver))


UNRELATED = tuple(
    dict.fromkeys(
        [*NAMES, *PLACES, *OBJECTS, *CONTAINERS, *COUNTRIES, *NOUNS, *POSITIVE, *NEGATIVE]
    )
)
"""The words of induction."""


def induction(random: Random, part: Split) -> Example:
    """Unrelated words, then some of them again: what came after this one the last time?

    Held out: words. They are also left out of the random tokens that the model is trained to
    repeat (``corpus.repeats``), so it has never seen one of them repeat without meaning.
    """
    words = split(UNRELATED, "induction", part)
    length = random.randint(5, 12)
    *drawn, other = random.sample(words, length + 1)
    again = random.randint(1, length - 2)
    start = random.randint(0, again - 1)
    clean = [*drawn, *drawn[start : again + 1]]
    # The corrupted prompt has another word where the answer stood.
    corrupted = [*drawn[: again + 1], other, *clean[again + 2 :]]
    rest = "".join(f" {word}" for word in drawn[again + 2 :]) + "."
    pair = Pair(" ".join(clean), " ".join(corrupted), f" {drawn[again + 1]}", f" {other}")
    return Example(pair, rest, "", (*drawn, other))


CAPITALS = Templates(
    train=(
        "The capital of {country} is",
        "The king of {country} lives in",
        "A train to {country} goes to",
        "They came to {country} and stayed in",
        "The best school of {country} is in",
        "The largest town in {country} is",
        "The church of {country} is in",
        "From {country} they wrote of",
        "All of {country} is ruled from",
    ),
    held_out=("The capital of {country} is called", "A ship to {country} goes to"),
)
LANGUAGES = Templates(
    train=(
        "People in {country} speak",
        "A book from {country} is written in",
        "In {country} the language is",
        "The king of {country} speaks",
        "At school in {country} they learn",
        "The teacher from {country} speaks",
        "A song from {country} is sung in",
        "In {country} everyone speaks",
    ),
    held_out=("The people of {country} speak", "A letter from {country} is written in"),
)


def facts(random: Random, part: Split) -> Example:
    """Sixteen countries with their capitals and languages.

    What was never said cannot be known, so what is held out here is a way of asking: each
    template of training for a quarter of the countries, and some templates for all.
    """
    draw = Draw(random, part)
    kind = random.randrange(2)
    template = draw.template((CAPITALS, LANGUAGES)[kind])
    if draw.templates == "train":
        asked = split(list(COUNTRIES), f"facts/{template}", draw.words)
    else:
        asked = list(COUNTRIES)
    country = random.choice(asked)
    other = random.choice([name for name in COUNTRIES if name != country])
    clean, corrupted = (template.format(country=name) for name in (country, other))
    answers = (f" {COUNTRIES[name][kind]}" for name in (country, other))
    return Example(Pair(clean, corrupted, *answers), ".", template, (country,))


NEAR = Templates(
    train=(
        "The {noun} near the {other}",
        "The {noun} behind the {other}",
        "The {noun} with the {other}",
        "The old {noun} by the {other}",
        "In the {place}, the {noun} near the {other}",
        "The {noun} in front of the {other}",
        "In the {place}, the {noun} behind the {other}",
        "The young {noun} with the {other}",
    ),
    held_out=("The {noun} by the {other}", "In the {place}, the {noun} with the {other}"),
)
_STATES = {"has": ("gone", "come"), "have": ("gone", "come")}


def agreement(random: Random, part: Split) -> Example:
    """One noun, or several? Another noun stands in between.

    In training it may have either number, so that its own does not tell; in the test it has the
    other number, whose verb would be wrong. Held out: nouns (in both numbers) and templates.
    """
    draw = Draw(random, part)
    template = draw.template(NEAR)
    noun, other = draw.some(list(NOUNS), "agreement", 2)
    verb = draw.one(list(VERBS))
    forms = [(noun, verb), (NOUNS[noun], VERBS[verb])]
    plural = random.randrange(2)
    same = part == "train" and random.random() < 0.5
    distractors = (other, NOUNS[other])
    fill = {"other": distractors[plural if same else 1 - plural], "place": draw.one(PLACES)}
    clean, corrupted = (
        template.format(noun=forms[which][0], **fill) for which in (plural, 1 - plural)
    )
    correct, wrong = forms[plural][1], forms[1 - plural][1]
    rest = f" {random.choice(_STATES.get(correct, ('old', 'here', 'small')))}."
    return Example(Pair(clean, corrupted, f" {correct}", f" {wrong}"), rest, template, (noun,))


PRONOUNS = Templates(
    train=(
        "{name} lost the {thing} because",
        "{name} went to the {place} and then",
        "{name} was happy when",
        "When {name} came to the {place},",
        "{name} said that",
        "{name} took the {thing} before",
        "{name} had the {thing} because",
        "In the {place}, {name} thought that",
        "After {name} lost the {thing},",
    ),
    held_out=(
        "{name} left the {place} because",
        "When {name} took the {thing},",
        "{name} was sad when",
    ),
)
_DID = ("was late", "was in the {place}", "saw the {thing}", "went to the {place}")


def pronouns(random: Random, part: Split) -> Example:
    """Is it a name of a woman or of a man?

    Held out: names, of both, and templates.
    """
    draw = Draw(random, part)
    template = draw.template(PRONOUNS)
    fill = {"place": draw.one(PLACES), "thing": draw.one(OBJECTS)}
    sides = [(draw.some(WOMEN, "pronouns")[0], " she"), (draw.some(MEN, "pronouns")[0], " he")]
    (name, correct), (other, wrong) = random.sample(sides, 2)
    clean, corrupted = (template.format(name=who, **fill) for who in (name, other))
    rest = " " + random.choice(_DID).format(**fill) + "."
    return Example(Pair(clean, corrupted, correct, wrong), rest, template, (name, other))


SPANS = Templates(
    train=(
        "The war lasted from {year} to",
        "The king ruled from {year} to",
        "The school was open from {year} to",
        "The church was built from {year} to",
        "The painter lived in the castle from {year} to",
        "They were in the town from {year} to",
    ),
    held_out=("The museum was open from {year} to", "The doctor lived in the tower from {year} to"),
)
BEGINNINGS = YEARS[4:-4]


def greater_than(random: Random, part: Split) -> Example:
    """What began in one year ends in a later one.

    The corrupted prompt begins before both answers, so that either may follow it. Held out: years
    in which something begins, and templates.
    """
    draw = Draw(random, part)
    template = draw.template(SPANS)
    begin = draw.some(BEGINNINGS, "greater_than")[0]
    end = random.choice([year for year in YEARS if year > begin])
    wrong = random.choice([year for year in YEARS[1:] if year < begin])
    early = random.choice([year for year in YEARS if year < wrong])
    clean, corrupted = (template.format(year=year) for year in (begin, early))
    return Example(Pair(clean, corrupted, f" {end}", f" {wrong}"), ".", template, (str(begin),))


_OPINIONS = {
    "The {thing} was {first} and {second}. {name}": (" loved", " hated", " it."),
    "{name} thought the {thing} was {first}. {pronoun} was": (" happy", " sad", "."),
    "The {first} and {second} {thing} was very": (" good", " bad", "."),
    "The {thing} was {first}. The teacher": (" praised", " blamed", " it."),
    "How {first} this {thing} is! {name} said it was": (" good", " bad", "."),
    "We found the {thing} {first} and {second}. It made us": (" happy", " sad", "."),
    "Everyone called the {thing} {first}, and {name}": (" loved", " hated", " it."),
    "This {thing} is {first} and {second}. {name}": (" loved", " hated", " it."),
    "{name} found the {thing} {first}. {pronoun} was": (" happy", " sad", "."),
    "So {first} was the {thing} that the doctor": (" praised", " blamed", " it."),
}
OPINIONS = Templates(train=tuple(_OPINIONS)[:-3], held_out=tuple(_OPINIONS)[-3:])


def sentiment(random: Random, part: Split) -> Example:
    """Was it praise or blame?

    Held out: words of praise and of blame, and templates.
    """
    draw = Draw(random, part)
    template = draw.template(OPINIONS)
    positive, negative, rest = _OPINIONS[template]
    name = draw.one(NAMES)
    fill = {
        "thing": draw.one(REVIEWED),
        "name": name,
        "pronoun": "She" if name in WOMEN else "He",
    }
    sides = [
        (draw.some(POSITIVE, "sentiment", 2), positive),
        (draw.some(NEGATIVE, "sentiment", 2), negative),
    ]
    (words, correct), (opposite, wrong) = random.sample(sides, 2)
    clean, corrupted = (
        template.format(first=first, second=second, **fill) for first, second in (words, opposite)
    )
    return Example(Pair(clean, corrupted, correct, wrong), rest, template, (*words, *opposite))


PUT, SEEN, GOT = (
    "{who} put the {thing} in the {answer}.",
    "We saw {who} in the {answer}.",
    "The {thing} went to {answer}.",
)
TOLD = {PUT: CONTAINERS, SEEN: PLACES, GOT: NAMES}
"""The sentences of a story, and what they say of something or someone."""
ASKED = {
    PUT: Templates(
        train=(
            "The {thing} is in the",
            "Look for the {thing} in the",
            "Now the {thing} is in the",
            "They found the {thing} in the",
            "And the {thing} is in the",
            "Later the {thing} was in the",
            "We know that the {thing} is in the",
            "Someone left the {thing} in the",
        ),
        held_out=("So the {thing} is in the", "We look for the {thing} in the"),
    ),
    SEEN: Templates(
        train=(
            "Now {who} is in the",
            "They met {who} in the",
            "So {who} is in the",
            "Look for {who} in the",
            "And {who} is in the",
            "Later {who} was in the",
            "We know that {who} is in the",
            "Today {who} is in the",
        ),
        held_out=("Then {who} is in the", "We met {who} in the"),
    ),
    GOT: Templates(
        train=(
            "Now the {thing} is with",
            "The {thing} is with",
            "They saw the {thing} with",
            "Look for the {thing} with",
            "And the {thing} is with",
            "Later the {thing} was with",
            "We know that the {thing} is with",
            "Someone left the {thing} with",
        ),
        held_out=("So the {thing} is with", "We saw the {thing} with"),
    ),
}


def tracking(random: Random, part: Split) -> Example:
    """Where is this thing, where is this person, who has this thing?

    Two or three sentences, one of which answers. People may move on; the last place counts. Held
    out: things and people asked about, and templates.
    """
    draw = Draw(random, part)
    told = random.choice(tuple(ASKED))
    template = draw.template(ASKED[told])
    count = random.randint(2, 3)
    things = draw.some(OBJECTS, "tracking", count)
    people = draw.some(NAMES, "tracking", count)
    answers = random.sample(TOLD[told], 2 * count)
    rows = [
        {"who": who, "thing": thing, "answer": answer}
        for who, thing, answer in zip(people, things, answers, strict=False)
    ]
    story = [told.format(**row) for row in rows]
    if told == SEEN and random.random() < 0.3:
        mover = random.randrange(count)
        rows[mover]["answer"] = answers[count]
        story.append(told.format(**rows[mover]))
    asked, other = random.sample(rows, 2)
    clean, corrupted = (" ".join([*story, template.format(**row)]) for row in (asked, other))
    pair = Pair(clean, corrupted, f" {asked['answer']}", f" {other['answer']}")
    words = tuple(people) if told == SEEN else tuple(things)
    return Example(pair, ".", template, words)


TASKS = Named(
    "task",
    {
        task.name: task
        for task in (
            Task(
                "ioi",
                "who receives, if the giver is named twice",
                "arXiv:2211.00593",
                indirect_object,
            ),
            Task("induction", "what followed this word last time", "arXiv:2209.11895", induction),
            Task("facts", "capitals and languages of countries", "arXiv:2202.05262", facts),
            Task(
                "agreement", "number of the verb across a distractor", "arXiv:1611.01368", agreement
            ),
            Task("pronouns", "he or she, from the name", "arXiv:2004.12265", pronouns),
            Task("greater_than", "a later year", "arXiv:2305.00586", greater_than),
            Task("sentiment", "praise or blame", "arXiv:2310.15154", sentiment),
            Task("tracking", "who or what is where", "arXiv:2310.17191", tracking),
        )
    },
)
"""Every task by name."""
