"""What a pass over texts found of every feature."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.checks import COUNT, check
from neox_lab.errors import InputError
from neox_lab.family.contract import HookedModel
from neox_lab.features.corpus import Corpus
from neox_lab.features.heaps import Highest
from neox_lab.features.logits import logit_effects
from neox_lab.features.page_reading import Look, Looked, counts_again, values_again
from neox_lab.features.sources import Source
from neox_lab.features.tables import bin_edges
from neox_lab.features.together import Pairs
from neox_lab.frames import make_frame
from neox_lab.results import FrameResult
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import View

NEARLY = 0.05
"""Relative difference of an activation computed again, in another batch or dtype."""


class Split(NamedTuple):
    """Examples of some of the documents; -1 as a place where there is none.

    Attributes:
        top_value: activation of the highest, ``[latent, rank]``, the highest first.
        top_place: number of the token in the corpus, of the same shape.
        sample_value: of windows drawn at random, ``[latent, drawn]``, the highest first.
        sample_place: of the same shape.
    """

    top_value: Tensor
    top_place: Tensor
    sample_value: Tensor
    sample_place: Tensor

    @classmethod
    def of(cls, top: Highest, sample: Highest) -> Split:
        """From the tables of a pass."""
        value = sample.value.where(sample.place >= 0, -torch.inf)
        order = value.argsort(dim=1, descending=True, stable=True)
        drawn = [table.gather(1, order).cpu() for table in (sample.value, sample.place)]
        return cls(top.value.cpu(), top.place.cpu(), *drawn)


class Example(NamedTuple):
    """A token at which a feature is active, with the text around it.

    Attributes:
        split: ``"train"`` or ``"held-out"``.
        group: ``"top"`` or ``"quantile"``.
        quantile: share of the windows in which the feature is higher; NaN for the highest.
        value: the activation.
        document: number of the document.
        position: of the token in it.
        pieces: the tokens around.
        values: the activation at each of them, ``[token]``; NaN where it was not computed.
        at: which of them is the token.
    """

    split: str
    group: str
    quantile: float
    value: float
    document: int
    position: int
    pieces: list[str]
    values: NDArray[np.float32]
    at: int


class _Entry(NamedTuple):
    split: str
    group: str
    quantile: float
    value: float
    place: int


@contextmanager
def _known(looked: dict[int, Looked], found: Looked) -> Iterator[None]:
    looked[found.latent] = found
    try:
        yield
    finally:
        looked.pop(found.latent, None)


@dataclass(frozen=True)
class TopExamples(FrameResult):
    """Examples and statistics of every feature.

    Attributes:
        model_name: which model read the texts.
        source: whose features they are.
        splits: examples of the documents ``"train"`` and, if asked for, ``"held-out"``.
        active: tokens at which each feature is active, ``[latent]``; these numbers and those below
            are of all documents.
        mean: of its activations there, ``[latent]``.
        highest: of its activations, ``[latent]``; 0 for features that never are active.
        histogram: tokens by activation, ``[latent, bin]``, two bins for each factor of 2.
        counted: tokens that count.
        pairs: at how many of them features are active together, of those asked for.
        corpus: the tokens that were read.
        held_out_documents: how many documents are held out.
        window: tokens of a window.
        quantiles: how many examples at quantiles.
        skip_first: positions at the start of every chunk that do not count.
        context: tokens that the model read together.
        seed: of what was drawn.
    """

    model_name: str
    source: Source = field(compare=False)
    splits: dict[str, Split]
    active: Tensor
    mean: Tensor
    highest: Tensor
    histogram: Tensor
    counted: int
    pairs: Pairs
    corpus: Corpus
    held_out_documents: int
    window: int
    quantiles: int
    skip_first: int
    context: int
    seed: int
    _model: HookedModel = field(repr=False)
    _what: object = field(repr=False, compare=False, default=None)  # as it was given
    _looked: dict[int, Looked] = field(repr=False, compare=False, default_factory=dict)

    @property
    def density(self) -> Tensor:
        """Share of the tokens at which each feature is active, ``[latent]``."""
        return self.active.double() / self.counted

    @property
    def frame(self) -> pd.DataFrame:
        """A row for each feature: how often it is active, how much, and its highest example."""
        train = self.splits["train"]
        places = train.top_place[:, 0].tolist()
        spots = [None if place < 0 else self.corpus.spot(place) for place in places]
        missing = [spot is None for spot in spots]
        numbers = [(-1, -1) if spot is None else (spot.document, spot.position) for spot in spots]
        tokens = ["" if spot is None else self._pieces([spot.ids[spot.at]])[0] for spot in spots]
        columns: dict[str, object] = {
            "latent": np.arange(self.source.latents),
            "name": [self.source.name_of(at) for at in range(self.source.latents)],
            "tokens": self.active.numpy(),
            "density": self.density.numpy(),
            "mean": np.where(self.active.numpy() == 0, np.nan, self.mean.numpy()),
            "max": np.where(self.active.numpy() == 0, np.nan, self.highest.numpy()),
            "top": np.where(missing, np.nan, train.top_value[:, 0].numpy()),
            "document": [document for document, _ in numbers],
            "position": [position for _, position in numbers],
            "token": tokens,
        }
        return make_frame(columns)

    def examples(self, latent: int) -> pd.DataFrame:
        """The examples of one feature, of ``train`` documents first, the highest first.

        Args:
            latent: which feature.

        Returns:
            ``split``, ``group`` (``top`` or ``quantile``), ``quantile`` (share of the windows with
            the feature in which it is higher), ``value``, ``document``, ``position``, ``token`` and
            the ``text`` around it.

        Raises:
            InputError: there is no such feature.
        """
        rows = []
        for one in self._entries(self._latent(latent)):
            spot = self.corpus.spot(one.place)
            low, high = self._around(spot.at, len(spot.ids))
            text = self._text(spot.ids[low:high])
            token = self._pieces([spot.ids[spot.at]])[0]
            where = (one.split, one.group, one.quantile, one.value, spot.document, spot.position)
            rows.append((*where, token, text))
        names = ["split", "group", "quantile", "value", "document", "position", "token", "text"]
        return make_frame(rows, columns=names)

    def strips(self, latent: int) -> list[Example]:
        """The examples of one feature with its activation at each token around; the model runs.

        Args:
            latent: which feature.

        Raises:
            InputError: there is no such feature, or the model no longer is what it was.
        """
        latent = self._latent(latent)
        entries = list(self._entries(latent))
        found = []
        for one, values in zip(entries, self._again(entries, latent), strict=True):
            spot = self.corpus.spot(one.place)
            low, high = self._around(spot.at, len(spot.ids))
            where = (one.split, one.group, one.quantile, one.value, spot.document, spot.position)
            shown = values[low:high].copy()
            shown[: max(0, self.skip_first - low)] = np.nan
            found.append(Example(*where, self._pieces(spot.ids[low:high]), shown, spot.at - low))
        return found

    def together(self, latent: int, count: int = 10) -> pd.DataFrame:
        """Which features are active at the same tokens.

        Counted at every token that counts, if ``top_examples`` was asked to, as it is by itself of
        up to 4,096 features. Of other features this is an estimate, for which the model runs: from
        the highest tokens of the windows of ``train`` that were drawn for the quantiles, some
        dozens, and of their stronger activations.

        Args:
            latent: which feature.
            count: how many others, those that are there most often.

        Returns:
            ``latent``, ``name``, ``tokens`` (at how many tokens both are active), ``of`` (how many
            tokens were looked at, all with the feature), ``share`` of these, ``density``, which is
            what ``share`` would be if one had nothing to do with the other, and ``exact``: these
            are all tokens with the feature.

        Raises:
            InputError: there is no such feature, or the model no longer is what it was.
        """
        latent = self._latent(latent)
        count = check("count", count, COUNT, InputError)
        row = int(self.pairs.row[latent])
        if row >= 0:
            counts, looked_at = self.pairs.counts[row].clone(), int(self.active[latent])
        else:
            counts, looked_at = self._estimated(latent)
        counts[latent] = 0
        order = counts.argsort(descending=True, stable=True)[:count]
        order = order[counts[order] > 0]
        columns: dict[str, object] = {
            "latent": order.numpy(),
            "name": [self.source.name_of(int(at)) for at in order],
            "tokens": counts[order].numpy(),
            "of": [looked_at] * len(order),
            "share": counts[order].double().numpy() / max(1, looked_at),
            "density": self.density[order].numpy(),
            "exact": [row >= 0] * len(order),
        }
        return make_frame(columns)

    def _estimated(self, latent: int) -> tuple[Tensor, int]:
        """At how many drawn tokens each feature is active, ``[latent]``, and of how many."""
        drawn = self._to_estimate(latent)
        if latent in self._looked:
            return self._looked[latent].counts.clone(), len(drawn)
        return counts_again(self._model, self.source, drawn), len(drawn)

    def _to_estimate(self, latent: int) -> list[list[int]]:
        """Chunks up to the drawn tokens of ``train``."""
        spots = [self.corpus.spot(one.place) for one in self._drawn("train", latent)]
        return [spot.ids[: spot.at + 1] for spot in spots]

    def look_for(self, latent: int) -> Look:
        """What the model reads for a page of one feature, so that somebody else can."""
        entries = list(self._entries(latent))
        estimated = int(self.pairs.row[latent]) < 0
        drawn = self._to_estimate(latent) if estimated else []
        return Look(latent, [self._to_show(one) for one in entries], drawn)

    def looked(self, found: Looked) -> AbstractContextManager[None]:
        """Inside, the model is not asked again what somebody else found of a feature."""
        return _known(self._looked, found)

    def logit_effects(self, latent: int, count: int = 10) -> pd.DataFrame:
        """Which tokens a feature speaks for and against, if nothing between stood in the way.

        What the feature adds to the residual stream goes through the final layer norm's centring
        and weight and through the unembedding. The norm's division, which differs from token to
        token, is left out, and so is what is added to all tokens alike.

        Args:
            latent: which feature.
            count: how many tokens of each kind.

        Returns:
            ``token``, ``text``, ``effect`` for an activation of 1, the highest first; no rows where
            the model has no unembedding or nobody can say what the feature adds.

        Raises:
            InputError: there is no such feature.
        """
        latent = self._latent(latent)
        count = check("count", count, COUNT, InputError)
        directions = self.source.directions
        effects = None if directions is None else logit_effects(self._model, directions[latent])
        if effects is None:
            return make_frame([], columns=["token", "text", "effect"])
        order = effects.argsort(descending=True, stable=True)
        if len(order) > 2 * count:
            order = torch.cat((order[:count], order[-count:]))
        ids: list[int] = order.tolist()
        columns: dict[str, object] = {"token": ids, "text": self._pieces(ids)}
        return make_frame(columns | {"effect": effects[order].tolist()})

    def nearest(self, latent: int, count: int = 5) -> pd.DataFrame:
        """The features whose directions are most alike.

        Args:
            latent: which feature.
            count: how many others.

        Returns:
            ``latent``, ``name``, ``cosine``; no rows where nobody can say what features add.

        Raises:
            InputError: there is no such feature.
        """
        latent = self._latent(latent)
        count = check("count", count, COUNT, InputError)
        directions = self.source.directions
        if directions is None or len(directions) < 2:
            return make_frame([], columns=["latent", "name", "cosine"])
        own = directions[latent].float()
        lengths = directions.float().norm(dim=1) * own.norm()
        cosines = (directions.float() @ own / lengths.clamp(min=1e-12)).detach().cpu()
        cosines[latent] = -torch.inf
        order = cosines.argsort(descending=True, stable=True)[: min(count, len(cosines) - 1)]
        names = [self.source.name_of(int(at)) for at in order]
        columns: dict[str, object] = {"latent": order.numpy(), "name": names}
        return make_frame(columns | {"cosine": cosines[order].numpy()})

    def activations(self, latent: int) -> pd.DataFrame:
        """How high one feature is: tokens in each bin, two bins for each factor of 2.

        Args:
            latent: which feature.

        Returns:
            ``low``, ``high`` (the bin), ``tokens``, from the lowest bin with a token to the
            highest. Activations below 0, which few kinds of dictionaries have, are in none.

        Raises:
            InputError: there is no such feature.
        """
        counts = self.histogram[self._latent(latent)].numpy()
        there = np.flatnonzero(counts)
        edges = bin_edges().numpy()
        part = slice(there[0], there[-1] + 1) if len(there) else slice(0)
        columns: dict[str, object] = {"low": edges[:-1][part], "high": edges[1:][part]}
        return make_frame(columns | {"tokens": counts[part]})

    def view(self, latent: int | None = None) -> View:
        """The examples of one feature, or, without one, how many features are how often active.

        Args:
            latent: which feature.

        Raises:
            InputError: there is no such feature.
        """
        from neox_lab.features.pictures import densities, examples

        if latent is None and self.source.latents > 1:
            return densities(self)
        return examples(self, 0 if latent is None else self._latent(latent))

    def _latent(self, latent: int) -> int:
        return entry("latent", latent, self.source.latents, InputError)

    def _entries(self, latent: int) -> Iterator[_Entry]:
        """What is shown of a feature."""
        for name, split in self.splits.items():
            yield from _listed(name, "top", split.top_value[latent], split.top_place[latent])
            drawn = self._drawn(name, latent)
            shown = min(self.quantiles, len(drawn))
            for step in range(shown):
                share = (step + 0.5) / shown
                one = drawn[int(share * len(drawn))]
                yield one._replace(quantile=share)

    def _drawn(self, name: str, latent: int) -> list[_Entry]:
        """The windows drawn of a feature, the highest first."""
        split = self.splits[name]
        value, place = split.sample_value[latent], split.sample_place[latent]
        return list(_listed(name, "quantile", value, place))

    def _before(self) -> int:
        """Tokens shown before an example: three quarters of a window."""
        return (self.window - 1) * 3 // 4

    def _around(self, at: int, length: int) -> tuple[int, int]:
        """The tokens of a chunk that are shown with one of them."""
        low = max(0, at - self._before())
        return low, min(length, low + self.window)

    def _again(self, entries: list[_Entry], latent: int) -> list[NDArray[np.float32]]:
        """Activations at the tokens of each example's chunk, as far as they are shown.

        Raises:
            InputError: the model no longer is what it was.
        """
        if latent in self._looked:
            found = self._looked[latent].values
        else:
            read = [self._to_show(one) for one in entries]
            found = values_again(self._model, self.source, latent, read)
        spots = [self.corpus.spot(one.place) for one in entries]
        now = [float(found[row][spot.at]) for row, spot in enumerate(spots)]
        then = [one.value for one in entries]
        wrong = sum(not abs(a - b) <= NEARLY * abs(b) for a, b in zip(now, then, strict=True))
        if 2 * wrong > len(entries):
            raise InputError(
                f"{wrong} of {len(entries)} examples now have another activation: the model, its "
                "hooks or what is spliced in are not what they were when the texts were read"
            )
        return found

    def _to_show(self, one: _Entry) -> list[int]:
        """A chunk as far as it is shown."""
        spot = self.corpus.spot(one.place)
        return spot.ids[: self._around(spot.at, len(spot.ids))[1]]

    def _pieces(self, ids: list[int]) -> list[str]:
        """The text of each token, or its number where there is no tokenizer."""
        tokenizer = self._model.tokenizer
        return [str(token) for token in ids] if tokenizer is None else tokenizer.pieces(ids)

    def _text(self, ids: list[int]) -> str:
        tokenizer = self._model.tokenizer
        return " ".join(map(str, ids)) if tokenizer is None else str(tokenizer.decode(ids))


def _listed(split: str, group: str, values: Tensor, places: Tensor) -> Iterator[_Entry]:
    """The entries of a row of a table, ``[rank]``; there may be fewer than it has room for."""
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        if place >= 0:
            yield _Entry(split, group, float("nan"), value, place)
