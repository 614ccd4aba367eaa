"""Pairs of a base and a source, each with the label that a causal model gives after an exchange."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from neox_lab.checks import SEED, check, number, plain, several, shown
from neox_lab.errors import InputError
from neox_lab.experiments.metrics import output_ids
from neox_lab.experiments.patching.prompts import Prompts, read_prompts
from neox_lab.interchange.sites import Roles
from neox_lab.model.output_heads import answers_per_text
from neox_lab.selections import entries, kept_axis

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Labels: TypeAlias = "Sequence[str] | Sequence[int]"
_SHARE = number(above=0, below=1)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What interchange interventions are trained and tested on.

    A causal model makes them (``CausalModel.pairs``); or write them down yourself.

    Attributes:
        base: texts, or rows of token ids, one for each pair.
        source: as many.
        base_labels: the right answer to each base: a token (or class) as text or id, or a name of
            ``choices``.
        labels: the right answer once the variable is what it is in the source.
        choices: for answers that are no single token: the tokens that count as each, by name.
        roles: by name, where the last character of a word stands in each base and each source.
        variable: what was exchanged in the causal model.
    """

    base: Sequence[str] | Sequence[Sequence[int]]
    source: Sequence[str] | Sequence[Sequence[int]]
    base_labels: Labels
    labels: Labels
    choices: Mapping[str, Labels] | None = None
    roles: Roles = dataclasses.field(default_factory=dict)
    variable: str = ""

    def __post_init__(self) -> None:
        """Check that there is one of each for each pair.

        Raises:
            InputError: there is not, or there is no pair.
        """
        for name in ("base", "source", "base_labels", "labels"):
            kinds = (str, int) if "labels" in name else (str, list)
            words = "one for each pair, in a list"
            listed = [plain(one) for one in several(name, getattr(self, name), words, InputError)]
            if wrong := [one for one in listed if type(one) not in kinds]:
                what = "tokens or names" if "labels" in name else "texts or rows of token ids"
                raise InputError(f"{name} holds {shown(wrong[0], 80)}; expected {what}.")
            object.__setattr__(self, name, listed)
        counts = {name: len(getattr(self, name)) for name in ("base", "source", "labels")}
        counts["base_labels"] = len(self.base_labels)
        if len(set(counts.values())) > 1 or not self.base:
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise InputError(f"There are {told}; expected one of each for each pair.")
        if not isinstance(self.roles, Mapping):
            raise InputError(f"roles={shown(self.roles, 80)}; expected positions by name.")
        for role, sides in self.roles.items():
            if not isinstance(sides, tuple) or [len(side) for side in sides] != [len(self)] * 2:
                raise InputError(
                    f"roles[{shown(role)}] must have one position in each base and each source."
                )
            wrong = [at for side in sides for at in side if type(plain(at)) is not int]
            if wrong:
                raise InputError(
                    f"roles[{shown(role)}] holds {shown(wrong[0])}; expected the number of a "
                    "character in each text."
                )
        if not isinstance(self.choices, Mapping | None):
            raise InputError(
                f"choices={shown(self.choices, 80)}; expected the tokens of each answer, "
                "by its name."
            )

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.base)

    @property
    def changing(self) -> list[int]:
        """Numbers of the pairs whose label changes."""
        both = zip(self.base_labels, self.labels, strict=True)
        return [row for row, (own, other) in enumerate(both) if own != other]

    @property
    def chance(self) -> float:
        """Share of the commonest label where labels change: the best guess without reading."""
        labels = [self.labels[row] for row in self.changing]
        return max(map(labels.count, set(labels))) / len(labels) if labels else float("nan")

    def rows(self, which: Sequence[int]) -> Pairs:
        """Some of the pairs.

        Args:
            which: their numbers.

        Raises:
            InputError: there are no such pairs, or none was chosen.
        """
        found = entries("which", kept_axis("which", which, InputError), len(self), InputError)
        numbers = range(len(self))[found] if isinstance(found, slice) else found
        which = [numbers] if isinstance(numbers, int) else list(numbers)
        picked: dict[str, Any] = {
            name: [getattr(self, name)[row] for row in which]
            for name in ("base", "source", "base_labels", "labels")
        }
        roles = {
            name: ([base[row] for row in which], [source[row] for row in which])
            for name, (base, source) in self.roles.items()
        }
        return dataclasses.replace(self, **picked, roles=roles)

    def split(self, held_out: float = 0.5, seed: int = 0) -> tuple[Pairs, Pairs]:
        """Pairs to train on and pairs to test on.

        Args:
            held_out: how large a share is for testing.
            seed: of the order.

        Raises:
            InputError: no such share, or a side without a pair.
        """
        share = check("held_out", held_out, _SHARE, InputError)
        order = list(range(len(self)))
        Random(check("seed", seed, SEED, InputError)).shuffle(order)
        count = len(order) - round(share * len(order))
        if count in (0, len(order)):
            raise InputError(f"held_out={share} of {len(self)} pairs leaves one side empty.")
        return self.rows(sorted(order[:count])), self.rows(sorted(order[count:]))

    def permuted(self, seed: int = 0) -> Pairs:
        """The same pairs with labels of others among them: what is left is no variable.

        Pairs of each label get all labels, in the shares that these have: labels that were merely
        shuffled would, by luck, be the right ones or the wrong ones too often. They are not made to
        differ, either: of two labels the other one would be as good as the right one.

        Args:
            seed: of the order.
        """
        labels: list[Any] = [self.labels[row] for row in self.mixed(seed)]
        return dataclasses.replace(self, labels=labels)

    def mixed(self, seed: int = 0) -> list[int]:
        """Whose label each pair gets in ``permuted``.

        Args:
            seed: of the order.
        """
        random, count = Random(check("seed", seed, SEED, InputError)), len(self)
        order = list(range(count))
        random.shuffle(order)
        number = {label: n for n, label in enumerate(dict.fromkeys(map(self._both, order)))}
        kinds = {label: n for n, (label, _) in enumerate(number)}
        order.sort(key=lambda row: (kinds[self.labels[row]], number[self._both(row)]))
        stride = _stride(count)  # whatever stands together is spread over all
        start, given = random.randrange(count), [0] * count
        for place, row in enumerate(order):
            given[row] = order[(place * stride + start) % count]
        return given

    def _both(self, row: int) -> tuple[str | int, str | int]:
        """Labels of a pair after the exchange and before it."""
        return self.labels[row], self.base_labels[row]


def _stride(count: int) -> int:
    """About 0.618 of ``count``, without a common divisor: its multiples are spread most evenly."""
    near = sorted(range(1, count + 1), key=lambda stride: abs(stride - 0.618034 * count))
    return next(stride for stride in near if math.gcd(stride, count) == 1)


@dataclasses.dataclass(frozen=True)
class ReadPairs:
    """Pairs as one model reads them.

    Attributes:
        base: tokens of the bases.
        source: tokens of the sources.
        answers: ids that can be answered, ``[answer, token]``; -1 fills up. None for every one.
        base_labels: the number of each base's answer ``[pair]``.
        labels: of the answer after the exchange.
        changes: True where they differ.
        roles: positions by name.
    """

    base: Prompts
    source: Prompts
    answers: Tensor | None
    base_labels: Tensor
    labels: Tensor
    changes: Tensor
    roles: Roles


def read_pairs(model: HookedModel, pairs: object, name: str = "pairs") -> ReadPairs:
    """Tokens, labels and positions of pairs.

    Args:
        model: who reads them.
        pairs: ``Pairs``.
        name: of the argument, for errors.

    Raises:
        InputError: no pairs, none whose label changes, a label that is no answer of the model, or
            a model that does not answer a text as a whole.
        TokenizerError: a text and no tokenizer, or a label that is not exactly one token.
    """
    if not isinstance(pairs, Pairs):
        raise InputError(f"{name}={shown(pairs, 80)}; expected nl.interchange.Pairs.")
    if model.head != "causal-lm" and not answers_per_text(model.head):
        raise InputError(
            f"Labels are the next token or the class of a text; {type(model).__name__} gives "
            "neither. Load a language model or a text classifier."
        )
    if not pairs.changing:
        raise InputError(
            f"In none of the {len(pairs)} {name} does the label change, so an exchange has nothing "
            "to show. Pair bases with sources in which the variable decides otherwise."
        )
    base, source = (
        _tokens(model, side, f"{name}.{side_name}")
        for side_name, side in (("base", pairs.base), ("source", pairs.source))
    )
    answers, base_labels, labels = _labels(model, pairs)
    sides = (pairs.base, pairs.source)
    roles = {
        role: tuple(_token_at(model, *each) for each in zip(sides, where, strict=True))
        for role, where in pairs.roles.items()
    }
    device = base.ids.device
    changes = torch.zeros(len(pairs), dtype=torch.bool, device=device)
    changes[pairs.changing] = True
    return ReadPairs(
        base,
        source,
        answers,
        base_labels.to(device),
        labels.to(device),
        changes,
        roles,  # type: ignore[arg-type]
    )


def _tokens(model: HookedModel, side: Sequence[object], name: str) -> Prompts:
    if all(isinstance(text, str) for text in side):
        return read_prompts(model, list(side), name)  # type: ignore[arg-type]
    lengths = {len(row) if isinstance(row, list | tuple) else -1 for row in side}
    if len(lengths) != 1 or -1 in lengths:
        raise InputError(f"{name} must be texts, or rows of token ids of one length.")
    return read_prompts(model, torch.tensor(side), name)


def _labels(model: HookedModel, pairs: Pairs) -> tuple[Tensor | None, Tensor, Tensor]:
    """Ids that can be answered, and the numbers of both labels."""
    sides = [list(pairs.base_labels), list(pairs.labels)]
    known: list[Any] = list(dict.fromkeys([*sides[0], *sides[1]]))
    answers = None
    if pairs.choices is None:
        ids = output_ids(model, known).tolist()
    else:
        groups = {name: output_ids(model, tokens) for name, tokens in pairs.choices.items()}
        if wrong := [label for label in known if label not in groups]:
            raise InputError(
                f"The label {shown(wrong[0])} is none of choices; expected one of "
                f"{', '.join(groups)}."
            )
        every = [token for tokens in groups.values() for token in tokens.tolist()]
        if twice := [token for token in every if every.count(token) > 1]:
            raise InputError(
                f"The token {shown(twice[0])} stands in choices twice, so it would count twice or "
                "for two answers; name each token once."
            )
        ids = [list(groups).index(label) for label in known]
        answers = torch.nn.utils.rnn.pad_sequence(list(groups.values()), True, -1).to(model.device)
    number_of = dict(zip(known, ids, strict=True))
    own, other = (torch.tensor([number_of[label] for label in side]) for side in sides)
    return answers, own, other


def _token_at(model: HookedModel, texts: Sequence[object], where: Sequence[int]) -> list[int]:
    """Which token of each text has a character."""
    found = []
    for text, at in zip(texts, where, strict=True):
        if model.tokenizer is None or not isinstance(text, str):
            raise InputError("Roles stand in texts, which need a model with a tokenizer.")
        spans = model.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        token = next((n for n, (start, end) in enumerate(spans) if start <= at < end), None)
        if token is None:
            raise InputError(f"No token of {text!r} has the character {at}.")
        found.append(token)
    return found
