"""The words of the small world: who lives there, where, and what can be said about it.

Every word of ``single_tokens`` is one token with a leading space in the built-in tokenizer, so that
a prompt and its corrupted twin have the same length and an answer is one token. ``split`` decides
which words a task may use in training and which it keeps for the test: a name that is held out of
one task still appears in others, so the model knows the name and has only never seen it *there*.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal, TypeVar

from neox_lab.checks import one_of

Split = Literal["train", "held-out"]
PART = one_of("train", "held-out")
"""What ``part=`` takes: another word would mean the words of training, unsaid."""
Item = TypeVar("Item")

WOMEN = tuple(
    "Mary Anna Alice Emma Julia Laura Clara Helen Susan Kate Lucy Rose Nina Ruth Sarah Grace "
    "Ellen Diana Maria Eva Jane Amy Emily Martha Linda Lisa Molly Nancy Olivia Sophie".split()
)
MEN = tuple(
    "John Tom Paul Mark David Peter James Jack Simon Henry Frank Adam Carl Eric Leo Max Sam "
    "Victor Oscar Hugo George Robert Daniel Martin Arthur Philip Joseph Thomas Andrew Bill".split()
)
NAMES = WOMEN + MEN
SURNAMES = tuple("Stone Baker Hill Wood Field Brook Marsh Young Cook Fisher".split())

PLACES = tuple(
    "kitchen garden school park office library station museum market forest castle church "
    "theatre harbour bakery tower".split()
)
OBJECTS = tuple(
    "key coin book ring letter lamp ball knife cup map flower hat bell pen rope stone watch "
    "candle mirror spoon".split()
)
CONTAINERS = tuple("box drawer bag basket chest bucket pocket jar cabinet bottle".split())

COUNTRIES = {
    "France": ("Paris", "French"),
    "Spain": ("Madrid", "Spanish"),
    "Italy": ("Rome", "Italian"),
    "Germany": ("Berlin", "German"),
    "England": ("London", "English"),
    "Russia": ("Moscow", "Russian"),
    "China": ("Beijing", "Chinese"),
    "Japan": ("Tokyo", "Japanese"),
    "Greece": ("Athens", "Greek"),
    "Sweden": ("Stockholm", "Swedish"),
    "Norway": ("Oslo", "Norwegian"),
    "Poland": ("Warsaw", "Polish"),
    "Turkey": ("Ankara", "Turkish"),
    "Denmark": ("Copenhagen", "Danish"),
    "Finland": ("Helsinki", "Finnish"),
    "Hungary": ("Budapest", "Hungarian"),
}
"""From a country to its capital and its language."""

NOUNS = {
    "dog": "dogs",
    "cat": "cats",
    "boy": "boys",
    "girl": "girls",
    "teacher": "teachers",
    "doctor": "doctors",
    "farmer": "farmers",
    "painter": "painters",
    "king": "kings",
    "horse": "horses",
    "bird": "birds",
    "tree": "trees",
    "house": "houses",
    "car": "cars",
    "picture": "pictures",
    "table": "tables",
    "ship": "ships",
    "soldier": "soldiers",
    "chair": "chairs",
    "river": "rivers",
}
"""From singular to plural."""

VERBS = {"is": "are", "was": "were", "has": "have"}
"""From singular to plural."""

POSITIVE = tuple(
    "wonderful brilliant lovely excellent charming delightful superb funny beautiful perfect "
    "pleasant amazing great clever fine splendid".split()
)
NEGATIVE = tuple(
    "terrible boring awful dreadful dull horrible weak ugly poor stupid nasty tedious cruel "
    "dismal silly painful".split()
)
REVIEWED = tuple("film play song meal show novel concert speech".split())

YEARS = tuple(range(1702, 1800, 2))
MONTHS = tuple("January March April May June July August October".split())

ANSWERS = tuple(
    "he she loved hated happy sad good bad praised blamed woman man women men her his him "
    "herself himself sister brother North South".split()
)
"""Words that answer, and a few that tell what others mean."""


def split(items: Sequence[Item], task: str, part: Split, share: float = 0.25) -> list[Item]:
    """Those of ``items`` that ``task`` may use in ``part``; it holds out ``share`` of them.

    A checksum of task and word decides which, so that it is the same everywhere and always. At
    least two are held out, so that two can be drawn.
    """
    ranked = sorted(items, key=lambda item: zlib.crc32(f"{task}/{item}".encode()))
    held = set(ranked[: max(2, round(share * len(ranked)))])
    return [item for item in items if (item in held) == (part == "held-out")]


def single_tokens() -> list[str]:
    """Every word that the tokenizer keeps whole after a space."""
    words = [*NAMES, *SURNAMES, *PLACES, *OBJECTS, *CONTAINERS, *COUNTRIES]
    words += [word for pair in COUNTRIES.values() for word in pair]
    words += [*NOUNS, *NOUNS.values(), *VERBS, *VERBS.values()]
    words += [*POSITIVE, *NEGATIVE, *REVIEWED, *(str(year) for year in YEARS), *MONTHS, *ANSWERS]
    return list(dict.fromkeys(words))
