"""The checks, one row each: its name, how bad it is, a function, and what to do.

A function looks at one ``Item`` and yields what it finds; adding a check is adding a row to
``CHECKS``. Severity says what follows from a finding:

    error    questions refuse such a prompt or answer
    warning  they answer, and the number means something else than it seems to
    note     worth knowing
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from neox_lab.checks import shown
from neox_lab.experiments.prompt_doctor.items import Item, Reader

LONGEST = 400
"""Tokens between the first and the last difference of a pair within which shifts are looked for."""
# Control characters but tab and newline, no-break space, soft hyphen, what shows nothing (but the
# joiners within emoji and Indic words), direction and byte order marks, private use, U+FFFD.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xa0\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\ufeff"
    "\ue000-\uf8ff\ufffd]"
)


class Spot(NamedTuple):
    """What a check found.

    Attributes:
        prompt: the name of the prompt; ``pair`` or ``answers`` where it is about these.
        pos: a token of it (of the clean one for a pair); None if it is about no single token.
        wrong: what is wrong, a sentence.
    """

    prompt: str
    pos: int | None
    wrong: str


class Check(NamedTuple):
    """One row of the table.

    Attributes:
        name: what it looks for.
        severity: ``error``, ``warning`` or ``note``.
        find: the function.
        advice: what to do, a sentence.
    """

    name: str
    severity: str
    find: Callable[[Item], Iterator[Spot]]
    advice: str


class Finding(NamedTuple):
    """What a check found in an item; see ``Spot`` and ``Check``."""

    item: int
    check: str
    severity: str
    prompt: str
    pos: int | None
    token: str
    wrong: str
    advice: str


def findings(items: Sequence[Item]) -> list[Finding]:
    """Everything that is found in these items, item by item in the order of the table."""
    found = []
    for item in items:
        for check in CHECKS:
            for spot in check.find(item):
                token = _token(item, spot)
                found.append(Finding(item.number, *check[:2], *spot[:2], token, spot[2], check[3]))
    return found


def _token(item: Item, spot: Spot) -> str:
    """The token that a finding is about; empty if it is about none."""
    if spot.pos is None:
        return ""
    side = next((s for s in item.sides if s.name == spot.prompt), item.sides[0])
    return item.reader.pieces([side.ids[spot.pos]])[0]


def _shown(reader: Reader, ids: Sequence[int]) -> str:
    """Tokens for a message."""
    pieces = ", ".join(map(repr, reader.pieces(ids[:8])))
    return f"[{pieces}{', …' if len(ids) > 8 else ''}]"


# One prompt.


def trailing_space(item: Item) -> Iterator[Spot]:
    """The space before the answer is a token of the prompt, and so none of the answer."""
    reader = item.reader
    if not reader.writes:
        return
    for side in item.sides:
        last = side.ids[side.read]
        before = reader.text([last])
        if not before.endswith(" ") or last in reader.starts:
            continue
        for text in [answer.text for answer in item.answers] or ["a"]:
            joined = reader.encode(before + text)
            apart = (*reader.encode(before), *reader.encode(text))
            if text.startswith(" ") or joined != apart:
                answer = f"the answer {text!r}" if item.answers else "a word that follows"
                wrong = (
                    "would make two spaces"
                    if text.startswith(" ")
                    else f"is spelled {_shown(reader, joined)} together with that space"
                )
                yield Spot(side.name, side.read, f"The prompt ends in a space: {answer} {wrong}.")
                break


def doubled_start(item: Item) -> Iterator[Spot]:
    """Two beginning-of-text tokens in front."""
    for side in item.sides:
        if len(side.ids) > 1 and {*side.ids[:2]} <= item.reader.starts:
            pieces = _shown(item.reader, side.ids[:2])
            yield Spot(side.name, 1, f"The prompt begins with two texts' beginnings, {pieces}.")


def missing_start(item: Item) -> Iterator[Spot]:
    """No beginning-of-text token where other prompts, or the tokenizer's own, have one."""
    reader = item.reader
    own = reader.tokenizer is not None and reader.tokenizer.add_bos_token
    if not (item.others_start or own):
        return
    for side in item.sides:
        if side.ids[0] not in reader.starts:
            who = "other prompts here have" if item.others_start else "the tokenizer puts"
            yield Spot(side.name, 0, f"No beginning-of-text token stands in front; {who} one.")


def padding_read(item: Item) -> Iterator[Spot]:
    """Padding that a metric reads, or that no mask marks."""
    reader = item.reader
    for side in item.sides:
        last = side.ids[side.read]
        if side.reads_padding:
            wrong = "The prompt is padded, and the metric reads logits of its padding."
            yield Spot(side.name, None, wrong)
        elif reader.padding in side.ids:
            at = side.ids.index(reader.padding)
            wrong = f"Token {at} is padding, {reader.pieces([side.ids[at]])[0]!r}, but not masked."
            yield Spot(side.name, at, wrong)
        elif last in reader.starts and side.read > 0:
            piece = reader.pieces([last])[0]
            wrong = f"The answer is read at {piece!r}, behind the text: padding without a mask?"
            yield Spot(side.name, side.read, wrong)


def unknown_ids(item: Item) -> Iterator[Spot]:
    """Ids that the model has no row for."""
    for name, at, token in _tokens(item):
        if not 0 <= token < item.reader.vocab:
            wrong = f"Id {shown(token)} is outside the vocabulary of {item.reader.vocab}."
            yield Spot(name, at, wrong)


def untrained_ids(item: Item) -> Iterator[Spot]:
    """Ids beyond the tokenizer, whose rows no text has trained."""
    if item.reader.tokenizer is None:
        return
    known = len(item.reader.tokenizer)
    for name, at, token in _tokens(item):
        if known <= token < item.reader.vocab:
            wrong = (
                f"Id {token} is beyond the tokenizer's {known} tokens: no text has trained its row."
            )
            yield Spot(name, at, wrong)


def _tokens(item: Item) -> Iterator[tuple[str, int | None, int]]:
    """Every token of an item with the name of its prompt and its position there."""
    for side in item.sides:
        yield from ((side.name, at, token) for at, token in enumerate(side.ids))
    for answer in item.answers:
        yield from (("answers", None, token) for token in answer.ids)


def too_long(item: Item) -> Iterator[Spot]:
    """More tokens than the model was made for."""
    most = item.reader.length
    for side in item.sides:
        if len(side.ids) > most:
            wrong = f"The prompt has {len(side.ids)} tokens; the model was made for {most}."
            yield Spot(side.name, most, wrong)


def odd_characters(item: Item) -> Iterator[Spot]:
    """Characters that nobody sees, or that stand for one that was lost; cut characters."""
    reader = item.reader
    for side in item.sides:
        parts = [reader.bytes_of(token) for token in side.ids]
        text = b"".join(parts).decode("utf-8", "replace")
        if (odd := _ODD.search(text)) is None:
            continue
        ends = list(itertools.accumulate(map(len, parts)))
        # All before it is whole characters, so that its bytes are those of the tokens.
        at = bisect.bisect_right(ends, len(text[: odd.start()].encode("utf-8")))
        at = min(at, len(side.ids) - 1)
        lost = odd[0] == "\ufffd"
        what = "half a character, or one that was lost" if lost else "which print does not show"
        yield Spot(side.name, at, f"Token {at} holds U+{ord(odd[0]):04X}, {what}.")


# Answers.


def answer_tokens(item: Item) -> Iterator[Spot]:
    """Answers of several tokens, or of none."""
    if item.reader.tokenizer is None:
        return
    for answer in item.answers:
        if len(answer.ids) != 1:
            tokens = _shown(item.reader, answer.ids)
            wrong = f"The answer {answer.text!r} is {len(answer.ids)} tokens, {tokens}."
            yield Spot("answers", None, wrong)


def answer_space(item: Item) -> Iterator[Spot]:
    """Answers that go on with the last word, where a word of their own was meant."""
    reader, side = item.reader, item.sides[0]
    before = reader.text([side.ids[side.read]])[-1:]
    if side.ids[side.read] in reader.starts or not (before.isalnum() or before in (*".,;:!?)",)):
        return
    for answer in item.answers:
        first = answer.text[:1]
        number = first.isdigit() and (before.isdigit() or before in ".,:")
        goes_on = number or (before == "." and first.islower())  # 1.5, model.fit, www.example
        if not answer.typed or not first.isalnum() or goes_on:
            continue
        if len(reader.encode(" " + answer.text)) == 1:
            wrong = f"The answer {answer.text!r} would go on with the prompt's last word."
            yield Spot("answers", None, wrong)


def answers_equal(item: Item) -> Iterator[Spot]:
    """Correct and wrong answer are one token."""
    both = {answer.ids for answer in item.correct} & {answer.ids for answer in item.wrong}
    for ids in sorted(both):
        wrong = f"Correct and wrong answer are both {_shown(item.reader, ids)}: no difference."
        yield Spot("answers", None, wrong)


def answer_in_prompt(item: Item) -> Iterator[Spot]:
    """The correct answer can be copied from the clean prompt, the wrong one cannot."""
    side = item.sides[0]
    there = side.ids[: side.read + 1]
    if any(answer.ids[0] in there for answer in item.wrong if answer.ids):
        return
    for answer in item.correct:
        if len(answer.ids) == 1 and answer.ids[0] in there:
            at = there.index(answer.ids[0])
            who = ", the wrong one not" if item.wrong else ""
            yield Spot(side.name, at, f"The answer {answer.text!r} is in the prompt already{who}.")


# Pairs.


def unequal_lengths(item: Item) -> Iterator[Spot]:
    """Prompts of a pair that have another number of tokens."""
    if len(item.sides) < 2 or item.named:
        return
    ours, theirs = (len(side.ids) for side in item.sides)
    if ours != theirs:
        wrong = f"The clean prompt has {ours} tokens and the corrupted one {theirs}."
        yield Spot("pair", None, wrong)


def nothing_differs(item: Item) -> Iterator[Spot]:
    """Prompts of a pair that are the same."""
    if len(item.sides) == 2 and item.sides[0].ids == item.sides[1].ids:
        yield Spot("pair", None, "Clean and corrupted prompt are the same tokens.")


def roles(item: Item) -> Iterator[Spot]:
    """Words that are cut into another number of tokens, or that stand at other positions."""
    reader = item.reader
    if len(item.sides) < 2 or item.named or reader.tokenizer is None:
        return
    clean, corrupted = (side.ids for side in item.sides)
    ours, theirs = _words(reader, clean), _words(reader, corrupted)
    pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ()
    cut = [(a, b) for a, b in pairs if len(a[1]) != len(b[1])]
    if cut:
        told = "; ".join(
            f"{reader.text(a[1])!r} is {_shown(reader, a[1])} and {reader.text(b[1])!r} is "
            f"{_shown(reader, b[1])}"
            for a, b in cut[:3]
        )
        yield Spot("pair", cut[0][0][0], f"Words that correspond are not as many tokens: {told}.")
    elif len(clean) == len(corrupted) and (moved := _moved(clean, corrupted)) is not None:
        at, to = moved
        piece = reader.pieces([clean[at]])[0]
        wrong = f"{piece!r} is token {at} of the clean prompt and token {to} of the corrupted one."
        yield Spot("pair", at, wrong)


def _words(reader: Reader, ids: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Words as the positions at which they begin and their tokens; a blank begins one."""
    words: list[tuple[int, list[int]]] = []
    for at, token in enumerate(ids):
        special = token in reader.starts
        if not words or special or reader.bytes_of(token)[:1] in (b" ", b"\n", b"\t"):
            words.append((at, []))
        words[-1][1].append(token)
    return words


def _moved(clean: Sequence[int], corrupted: Sequence[int]) -> tuple[int, int] | None:
    """The first token that stands elsewhere in the other prompt of as many tokens.

    None where most tokens are others, where the same tokens are in another order (somebody wanted
    that), and where as many stand at their places as could be matched by moving them.
    """
    differ = [at for at, (a, b) in enumerate(zip(clean, corrupted, strict=True)) if a != b]
    if len(differ) < 2 or differ[-1] - differ[0] > LONGEST or sorted(clean) == sorted(corrupted):
        return None
    first, end = differ[0], differ[-1] + 1
    matcher = SequenceMatcher(None, clean[first:end], corrupted[first:end], autojunk=False)
    blocks = matcher.get_matching_blocks()
    matched = len(clean) - (end - first) + sum(block.size for block in blocks)
    if matched <= len(clean) - len(differ) or 3 * matched < 2 * len(clean):
        return None
    return next(((first + b.a, first + b.b) for b in blocks if b.size and b.a != b.b), None)


# What only a run of the model tells.


def wrong_preferred(item: Item) -> Iterator[Spot]:
    """The clean run does not show the effect."""
    if not item.differences or item.differences[0] > 0:
        return
    clean, *rest = item.differences
    wrong = f"After the clean prompt the model does not prefer the correct answer ({clean:.2f})"
    if rest and rest[0] > 0:
        wrong += f", but after the corrupted one ({rest[0]:.2f}), as if the two were swapped"
    yield Spot(item.sides[0].name, item.sides[0].read, f"{wrong}.")


def no_effect(item: Item) -> Iterator[Spot]:
    """The corrupted prompt takes nothing from the clean one's preference."""
    if len(item.differences) == 2 and 0 < item.differences[0] <= item.differences[1]:
        clean, corrupted = item.differences
        wrong = (
            f"The corrupted prompt makes the correct answer no less likely than the clean one "
            f"({corrupted:.2f} against {clean:.2f})."
        )
        yield Spot("pair", None, wrong)


CHECKS: tuple[Check, ...] = (
    Check(
        "trailing_space",
        "warning",
        trailing_space,
        "Leave out the space at the end of the prompt and begin the answer with it: ' Paris'.",
    ),
    Check(
        "doubled_start",
        "warning",
        doubled_start,
        "Leave out one of them: the text or the ids have one already, or it is unmasked padding.",
    ),
    Check(
        "missing_start",
        "note",
        missing_start,
        "Put it in front of all prompts or of none; Pythia was mostly trained without.",
    ),
    Check(
        "padding_read",
        "warning",
        padding_read,
        "Give attention_mask with ids, and use nl.patching.logit_difference, which counts each "
        "text's own tokens.",
    ),
    Check(
        "unknown_ids",
        "error",
        unknown_ids,
        "Make ids with model.to_tokens, the tokenizer of this model.",
    ),
    Check(
        "untrained_ids",
        "warning",
        untrained_ids,
        "Make ids with model.to_tokens, or draw random ids below len(model.tokenizer).",
    ),
    Check(
        "too_long",
        "warning",
        too_long,
        "Shorten the prompt: what the model says beyond that length is not to be trusted.",
    ),
    Check(
        "odd_characters",
        "warning",
        odd_characters,
        "Take the character out, or read the file as the encoding it has.",
    ),
    Check(
        "answer_tokens",
        "error",
        answer_tokens,
        "Choose answers that are one token (model.to_single_token), or leave the item out.",
    ),
    Check(
        "answer_space",
        "warning",
        answer_space,
        "Begin the answer with a space, as words inside a text do.",
    ),
    Check(
        "answers_equal",
        "warning",
        answers_equal,
        "Give two different answers, or leave the item out.",
    ),
    Check(
        "answer_in_prompt",
        "note",
        answer_in_prompt,
        "Make sure that copying is what you study, or take the answer out of the prompt.",
    ),
    Check(
        "unequal_lengths",
        "error",
        unequal_lengths,
        "Exchange words for words of as many tokens, or name positions that correspond: "
        "positions={'subject': (clean, corrupted)}.",
    ),
    Check(
        "nothing_differs",
        "error",
        nothing_differs,
        "Change the word in the corrupted prompt that makes the difference.",
    ),
    Check(
        "roles",
        "warning",
        roles,
        "Exchange words for words of as many tokens, so that each role has one position.",
    ),
    Check(
        "wrong_preferred",
        "warning",
        wrong_preferred,
        "Check the order (correct, wrong); leave out items whose clean run does not show the "
        "effect.",
    ),
    Check(
        "no_effect",
        "warning",
        no_effect,
        "Check which prompt is the clean one, and that what was changed decides the answer.",
    ),
)
"""All checks, in the order in which they are told."""


def as_markdown() -> str:
    """The table of ``docs/prompts.md``."""
    lines = ["| check | severity | what it finds | what to do |", "|---|---|---|---|"]
    for check in CHECKS:
        found = (check.find.__doc__ or "").partition("\n")[0]
        lines.append(f"| `{check.name}` | {check.severity} | {found} | {check.advice} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown())
