"""Two lenses beside each other: two prompts, or two models or revisions on one prompt."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.experiments.lens.result import LensResult
from neox_lab.frames import make_frame
from neox_lab.results import Result
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import LensPairView


@dataclasses.dataclass(frozen=True)
class LensComparison(Result):
    """Two lenses, and how far their predictions are apart.

    The distance is total variation: the largest difference in the probability of anything, from 0
    to 1. Of two results only the likeliest tokens are known, so it lies between two numbers; with
    a larger ``top_k`` of the lens these come closer, and with all tokens they are equal.

    Attributes:
        first: one lens.
        second: the other.
        names: what they are called in the picture.
        pairs: for each text, which positions are compared, ``(of the first, of the second)``: the
            same where both texts have as many tokens, else what a comparison of the tokens matches.
        least: the least that the distance can be, for each text ``[layer, pair]``.
        most: the most.
    """

    first: LensResult
    second: LensResult
    names: tuple[str, str]
    pairs: list[list[tuple[int, int]]]
    least: list[Tensor]
    most: list[Tensor]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each layer, text and pair of positions.

        ``differs`` says whether another token is the likeliest; ``difference_least`` and
        ``difference_most`` are the ends of the total variation distance. For tokens that both
        lenses watched there is the change in their probability, second minus first.
        """
        shared = [token for token in self.first.watched if token in self.second.watched]
        rows = [
            self._record(index, text, at, shared)
            for index in range(len(self.first.labels))
            for text in range(len(self.pairs))
            for at in range(len(self.pairs[text]))
        ]
        return make_frame(rows)

    def _record(self, index: int, text: int, at: int, shared: list[int]) -> dict[str, object]:
        """One line of the frame."""
        record: dict[str, object] = {"layer": self.first.labels[index], "text": text}
        chances = []
        sides = zip(
            ("first", "second"), (self.first, self.second), self.pairs[text][at], strict=True
        )
        for side, of, pos in sides:
            here = (index, text, pos)
            probability = of.top_probability[here][0]
            record[f"pos_{side}"], record[f"token_{side}"] = pos, of.pieces[text][pos]
            record[f"prediction_{side}"] = (
                None if probability.isnan() else of.piece_of[int(of.top[here][0])]
            )
            record[f"probability_{side}"] = float(probability)
            record[f"entropy_bits_{side}"] = float(of.entropy[here]) / math.log(2)
            record[f"surprise_bits_{side}"] = float(of.surprise_bits[here])
            columns = [of.watched.index(one) for one in shared]
            chances.append(of.watched_probability[here][columns])
        record["differs"] = record["prediction_first"] != record["prediction_second"]
        record["difference_least"] = float(self.least[text][index, at])
        record["difference_most"] = float(self.most[text][index, at])
        for token, change in zip(shared, (chances[1] - chances[0]).tolist(), strict=True):
            record[f"change of p({self.first.piece_of[token]})"] = change
        return record

    def view(self, text: int = 0) -> LensPairView:
        """Both grids of one text beside each other.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import LensPairView

        text = entry("text", text, len(self.pairs), InputError)
        places = [_places(side, text) for side in (self.first, self.second)]
        return LensPairView(
            self.first.view(text),
            self.second.view(text),
            [(places[0].index(a), places[1].index(b)) for a, b in self.pairs[text]],
            self.least[text],
            self.most[text],
            self.names,
            f"Two lenses on {self.first.site}: {self.names[0]} and {self.names[1]}",
        )


def compare(
    first: LensResult, second: LensResult, names: tuple[str, str] = ("first", "second")
) -> LensComparison:
    """Two lenses beside each other: of two prompts, two models or revisions, or two kinds of lens.

    Args:
        first: one lens.
        second: the other, of the same site, layers and vocabulary, with as many texts.
        names: what to call them in the picture.

    Returns:
        Both, with how far their predictions are apart, layer by layer.

    Raises:
        InputError: these are no two lenses, or have other sites, layers, vocabularies or numbers of
            texts.
    """
    for name, given in (("first", first), ("second", second)):
        if not isinstance(given, LensResult):
            raise InputError(
                f"{name}={shown(given)}; expected what nl.lens.logit_lens or nl.lens.tuned_lens "
                "returned. nl.dynamics.compare compares two models."
            )
    if (
        not isinstance(names, tuple | list)
        or len(names) != 2
        or not all(isinstance(name, str) for name in names)
    ):
        raise InputError(f"names={shown(names)}; expected two texts.")
    _check_alike(first, second)
    pairs, least, most = [], [], []
    for text in range(len(first.pieces)):
        found = _matched(first, second, text)
        columns = [
            torch.tensor([pair[side] for pair in found], dtype=torch.long) for side in (0, 1)
        ]
        ends = _distance(
            *(
                (of.top[:, text, at], of.top_probability[:, text, at])
                for of, at in zip((first, second), columns, strict=True)
            )
        )
        pairs.append(found)
        least.append(ends[0])
        most.append(ends[1])
    return LensComparison(first, second, (names[0], names[1]), pairs, least, most)


def _check_alike(first: LensResult, second: LensResult) -> None:
    """Refuse lenses whose rows or tokens do not mean the same.

    Raises:
        InputError: they do not.
    """
    if first.site != second.site:
        raise InputError(
            f"The first lens reads {first.site} and the second {second.site}; both must read the "
            "same site."
        )
    if first.labels != second.labels:
        raise InputError(
            f"The first lens has {len(first.labels)} rows and the second {len(second.labels)}; "
            "only models with as many layers can be laid beside each other."
        )
    if first.vocab_size != second.vocab_size:
        raise InputError(
            f"The first lens predicts one of {first.vocab_size} tokens and the second one of "
            f"{second.vocab_size}; both models must have the same vocabulary."
        )
    both = first.piece_of.keys() & second.piece_of.keys()
    other = [token for token in sorted(both) if first.piece_of[token] != second.piece_of[token]]
    if other:
        names = [repr(side.piece_of[other[0]]) for side in (first, second)]
        raise InputError(
            f"Token {other[0]} is {names[0]} in the first lens and {names[1]} in the second; both "
            "models must have the same tokenizer."
        )
    if len(first.pieces) != len(second.pieces):
        raise InputError(
            f"The first lens has {len(first.pieces)} texts and the second {len(second.pieces)}; "
            "both must have as many."
        )


def _places(lens: LensResult, text: int) -> list[int]:
    """Positions of a text's own tokens."""
    return lens.mask[text].nonzero().flatten().tolist()


def _matched(first: LensResult, second: LensResult, text: int) -> list[tuple[int, int]]:
    """Which positions of a text are compared."""
    from neox_lab.views.pairs import matched

    places = [_places(lens, text) for lens in (first, second)]
    tokens = [
        [lens.pieces[text][pos] for pos in own]
        for lens, own in zip((first, second), places, strict=True)
    ]
    found = matched(*tokens)
    return [(places[0][a], places[1][b]) for a, b in found if a is not None and b is not None]


def _distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Between what numbers the total variation distance lies.

    Args:
        first: ids and probabilities of the likeliest tokens, ``[layer, pair, top_k]``.
        second: of the other side.

    Returns:
        The least and the most that it can be, ``[layer, pair]``; NaN where a prediction is.
    """
    ids, chances = (first[0], second[0]), (first[1].double(), second[1].double())
    same = ids[0][..., :, None] == ids[1][..., None, :]
    in_both = torch.minimum(chances[0][..., :, None], chances[1][..., None, :]).where(same, 0)
    most = 1 - in_both.sum(dim=(-2, -1))
    least = torch.maximum(
        _surplus(same, chances[0], chances[1]),
        _surplus(same.transpose(-2, -1), chances[1], chances[0]),
    )
    unknown = chances[0][..., 0].isnan() | chances[1][..., 0].isnan()
    least, most = least.clamp(0, 1), most.clamp(0, 1)
    ends = (end.masked_fill(unknown, math.nan) for end in (least, torch.maximum(least, most)))
    low, high = (end.to(first[1].dtype) for end in ends)
    return low, high


def _surplus(same: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """By how much tokens are likelier on their own side, in all and at least, ``[layer, pair]``.

    A token that is not among the likeliest of the other side is no likelier there than the last of
    these, nor than all that they leave.
    """
    rest = (1 - other.sum(dim=-1)).clamp(min=0)
    ceiling = torch.minimum(other[..., -1], rest)[..., None]
    there = other[..., None, :].where(same, 0).sum(dim=-1)
    there = torch.where(same.any(dim=-1), there, ceiling)
    return (own - there).clamp(min=0).sum(dim=-1)
