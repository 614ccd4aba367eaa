"""What is checked: one item is a prompt, or a clean and a corrupted one, with its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

from neox_lab.checks import plain, shown
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import LogitMetric, Metric
from neox_lab.selections import one_each

if TYPE_CHECKING:
    from neox_lab.experiments.patching.prompts import Prompts
    from neox_lab.family.contract import HookedModel

AnswerOf: TypeAlias = "str | int"
"""One token, as text or as id."""
AnswersLike: TypeAlias = (
    "Metric | AnswerOf | tuple[AnswerOf | Sequence[AnswerOf], AnswerOf | Sequence[AnswerOf]]"
    " | list[AnswerOf] | list[tuple[AnswerOf, AnswerOf]]"
)
"""Answers as users give them; see ``nl.check_prompts``."""

_EXPECTED = (
    "expected a token such as ' Mary', a tuple (correct, wrong) of tokens or of a list of tokens "
    "each, a list with a token or a tuple for each item, or a metric"
)


class Reader:
    """What the checks ask of a model: its tokenizer and its sizes. Nothing runs.

    Attributes:
        tokenizer: the model's; None if it has none.
        vocab: rows of the embedding.
        length: tokens that it was made for.
        writes: whether a token is expected to follow the prompt.
        starts: tokens that begin, or separate, texts.
        padding: the token that fills rows up, unless it is one of ``starts``.
    """

    def __init__(self, model: HookedModel) -> None:
        self.tokenizer = tokenizer = model.tokenizer
        self.vocab = model.config.vocab_size
        self.length = model.config.max_position_embeddings
        self.writes = getattr(model, "head", None) == "causal-lm"
        self.starts: set[int] = set()
        self.padding: int | None = None
        if tokenizer is not None:
            named = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            self.starts = {int(token) for token in named if token is not None}
            padding = tokenizer.pad_token_id
            self.padding = None if padding in self.starts else padding
        self._texts: dict[int, bytes] = {}
        self._tokens: dict[str, tuple[int, ...]] = {}

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for; nothing for one that the tokenizer does not have."""
        if self.tokenizer is None:
            return b""
        if token not in self._texts:
            self._texts[token] = self.tokenizer.token_bytes(token) if token >= 0 else b""
        return self._texts[token]

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, also where they cut a character."""
        return b"".join(map(self.bytes_of, tokens)).decode("utf-8", "replace")

    def encode(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, without anything around it."""
        if self.tokenizer is None:
            return ()
        if text not in self._tokens:  # items have answers in common, and encoding takes longest
            self._tokens[text] = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
        return self._tokens[text]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Each token for people, whatever it is."""
        if self.tokenizer is None:
            return [f"⟨{token}⟩" for token in tokens]
        known = [max(0, token) for token in tokens]
        pieces = self.tokenizer.pieces(known)
        return [p if t >= 0 else f"⟨{t}⟩" for p, t in zip(pieces, tokens, strict=True)]


@dataclasses.dataclass(frozen=True)
class Side:
    """One prompt of an item.

    Attributes:
        name: ``clean`` or ``corrupted``, or ``prompt`` where there is only one.
        ids: its own tokens, padding left out.
        read: the position at which the answer is read.
        reads_padding: whether a metric was seen to read logits of its padding.
    """

    name: str
    ids: tuple[int, ...]
    read: int
    reads_padding: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """One token that the metric reads.

    Attributes:
        ids: its tokens, which should be one.
        text: its text.
        typed: whether it was given as text.
        correct: whether it counts for the answer, and not against it.
    """

    ids: tuple[int, ...]
    text: str
    typed: bool
    correct: bool


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt, or a clean and a corrupted one, and the answers.

    Attributes:
        number: its row in the batch.
        reader: the model's tokenizer and sizes.
        sides: its prompts, the clean one first.
        answers: correct and wrong ones.
        named: whether positions that correspond are named, so that lengths may differ.
        others_start: whether a prompt of the batch begins with a beginning-of-text token.
        differences: logit difference of correct and wrong answer after each prompt, where the
            model was run.
    """

    number: int
    reader: Reader
    sides: tuple[Side, ...]
    answers: tuple[Answer, ...] = ()
    named: bool = False
    others_start: bool = False
    differences: tuple[float, ...] = ()

    @property
    def correct(self) -> tuple[Answer, ...]:
        """The answers that count for."""
        return tuple(answer for answer in self.answers if answer.correct)

    @property
    def wrong(self) -> tuple[Answer, ...]:
        """The answers that count against."""
        return tuple(answer for answer in self.answers if not answer.correct)


def make_items(
    reader: Reader,
    sides: Mapping[str, Prompts],
    answers: object = None,
    named: bool = False,
    padding_read: Mapping[str, Sequence[bool]] | None = None,
) -> list[Item]:
    """One item for each row.

    Args:
        reader: the model's tokenizer and sizes.
        sides: the prompts by their names, all with as many rows.
        answers: see ``nl.check_prompts``.
        named: whether positions that correspond are named.
        padding_read: by the names of the prompts, of which rows a metric reads padding.

    Raises:
        InputError: a prompt without tokens, answers that are none, or another number of them.
    """
    owned: dict[str, list[tuple[int, ...]]] = {}
    for name, prompts in sides.items():
        rows = prompts.ids.tolist()
        own = [[True] * len(row) for row in rows] if prompts.mask is None else prompts.own.tolist()
        owned[name] = [
            tuple(token for token, mine in zip(row, mask, strict=True) if mine)
            for row, mask in zip(rows, own, strict=True)
        ]
        if not all(owned[name]):
            raise InputError(f"A {name} prompt has no tokens: its attention_mask is 0 everywhere.")
    count = len(next(iter(owned.values())))
    found = answers_of(reader, answers, count)
    reads = _places(answers, count)
    start = any(ids and ids[0] in reader.starts for rows in owned.values() for ids in rows)
    padded = padding_read or {}

    def side(name: str, row: int) -> Side:
        ids = owned[name][row]
        return Side(name, ids, _read(ids, reads[row]), name in padded and padded[name][row])

    return [
        Item(row, reader, tuple(side(name, row) for name in owned), found[row], named, start)
        for row in range(count)
    ]


def _places(answers: object, count: int) -> list[int]:
    """Where the answer of each row is read; its end, unless a metric says where."""
    if isinstance(answers, LogitMetric) and (where := answers.terms[0].pos) is not None:
        return one_each("pos", where, count, InputError)
    return [-1] * count


def _read(ids: tuple[int, ...], where: int) -> int:
    """A position counted from the start; the last one where a text has no such position."""
    return where % len(ids) if -len(ids) <= where < len(ids) else len(ids) - 1


def answers_of(reader: Reader, given: object, count: int) -> list[tuple[Answer, ...]]:
    """The answers of each item, however many tokens they are.

    Args:
        reader: for their tokens.
        given: see ``nl.check_prompts``.
        count: how many items there are.

    Raises:
        InputError: something else, or another number of them.
    """
    if given is None or (callable(given) and not isinstance(given, LogitMetric)):
        return [()] * count
    if isinstance(given, LogitMetric):
        if given.head != "causal-lm":
            return [()] * count
        columns = [(_column(term.output, count), term.weight > 0) for term in given.terms]
    elif isinstance(given, tuple) and len(given) == 2:
        columns = [(_column(given[0], count), True), (_column(given[1], count), False)]
    elif isinstance(given, list) and given and all(isinstance(one, tuple) for one in given):
        if any(len(one) != 2 for one in given):
            raise InputError(f"answers={shown(given)}; {_EXPECTED}.")
        columns = [
            (_column([one[0] for one in given], count), True),
            (_column([one[1] for one in given], count), False),
        ]
    else:
        columns = [(_column(given, count), True)]
    return [
        tuple(_answer(reader, column[row], correct) for column, correct in columns)
        for row in range(count)
    ]


def _column(given: object, count: int) -> list[AnswerOf]:
    """One answer for each item from one for all or from a list of them.

    Raises:
        InputError: something else, or another number of them.
    """
    given = plain(given)
    listed = given if isinstance(given, list | tuple) else [given] * count
    if not all(isinstance(o, str | int) and not isinstance(o, bool) for o in listed):
        raise InputError(f"answers={shown(given)}; {_EXPECTED}.")
    if len(listed) != count:
        raise InputError(
            f"There are {len(listed)} answers, {shown(given, 80)}, for {count} items; a pair of "
            "answers for every item is a tuple, (correct, wrong)."
        )
    return cast("list[AnswerOf]", list(listed))


def _answer(reader: Reader, given: AnswerOf, correct: bool) -> Answer:
    """One answer with its tokens."""
    if isinstance(given, str):
        return Answer(reader.encode(given), given, True, correct)
    return Answer((given,), reader.text([given]), False, correct)
