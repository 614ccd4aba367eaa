"""One group of texts after another: what its reading adds to the tables, here or by workers."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.data.batches import by_length
from neox_lab.errors import InputError
from neox_lab.executors import AnyExecutor, run_pieces
from neox_lab.family.contract import HookedModel
from neox_lab.family.origins import Origin, origin_of
from neox_lab.features.sources import Source, source_of
from neox_lab.features.tables import Tables, Tokens
from neox_lab.features.texts_to_codes import codes_of
from neox_lab.features.together import Together
from neox_lab.sae.codes import Codes

LARGEST = 2**20
"""Bytes that may be sent with each group of texts."""


class Group(NamedTuple):
    """Chunks that are read together.

    Attributes:
        ids: tokens of each.
        first: number of its first token in the corpus.
        drawn: whether it is held out.
        documents: number of its document.
    """

    ids: list[list[int]]
    first: list[int]
    drawn: list[bool]
    documents: list[int]


@dataclass(frozen=True)
class Choices:
    """How texts are read; see ``top_examples``.

    Attributes:
        top: windows kept of each feature.
        sample: windows drawn of each.
        window: tokens of a window.
        skip_first: positions of a chunk that do not count.
        batch_size: chunks in one forward pass.
        together: features counted with all others.
        seed: of what is drawn.
    """

    top: int
    sample: int
    window: int
    skip_first: int
    batch_size: int
    together: tuple[int, ...] | None
    seed: int

    def tables(self, source: Source, device: torch.device) -> tuple[Tables, Together]:
        """Nothing is read yet."""
        tables = Tables(source.latents, self.top, self.sample, self.seed, device)
        return tables, Together(source.latents, self.together, device)


class Reading:
    """Reads groups into tables.

    Attributes:
        tables: of every feature.
        pairs: which are active together.
        counted: tokens that count.
    """

    def __init__(self, model: HookedModel, source: Source, choices: Choices) -> None:
        """Nothing is read yet."""
        self.model, self.source, self.choices, self.counted = model, source, choices, 0
        self.tables, self.pairs = choices.tables(source, model.device)

    def read(self, group: Group, told: Callable[[int], None]) -> None:
        """Take in a group; ``told`` how many tokens each batch has.

        Raises:
            InputError: activations are not finite.
        """
        for rows in by_length(self.model, list(map(len, group.ids)), self.choices.batch_size):
            ids = [group.ids[row] for row in rows]
            codes, mask = codes_of(self.model, self.source, ids)
            tokens = self._tokens(mask, [group.first[row] for row in rows])
            drawn = torch.tensor([group.drawn[row] for row in rows], device=mask.device)
            tokens = tokens._replace(held_out=drawn)
            _refuse_not_finite(codes, tokens, [group.documents[row] for row in rows])
            self.tables.take(codes, tokens, self.choices.window)
            self.pairs.take(codes, tokens.counted)
            self.counted += int(tokens.counted.sum())
            told(sum(map(len, ids)))
        self.tables.group_done()

    def _tokens(self, mask: Tensor, first: Sequence[int]) -> Tokens:
        """Numbers of tokens and windows in the corpus; none is held out."""
        at = torch.arange(mask.shape[1], device=mask.device)
        start, window = torch.tensor(first, device=mask.device)[:, None], self.choices.window
        return Tokens(
            mask & (at >= self.choices.skip_first),
            start + at,
            start + at // window * window,
            torch.zeros(len(mask), dtype=torch.bool, device=mask.device),
        )

    def added(self) -> dict[str, Any]:
        """What was read, as arrays."""
        self.tables.close()
        numbers: dict[str, Any] = self.tables.arrays()
        return numbers | {"pairs": self.pairs.counts.cpu().numpy(), "counted": self.counted}

    def add(self, numbers: dict[str, Any]) -> None:
        """What somebody else read of another group."""
        self.counted += numbers["counted"]
        self.pairs.counts += torch.from_numpy(numbers["pairs"]).to(self.pairs.counts.device)
        self.tables.add(numbers)


@dataclass(frozen=True)
class Reader:
    """What a worker does with a group; small, and can be pickled.

    Attributes:
        origin: of the model.
        what: has features, pickled.
        choices: how texts are read.
    """

    origin: Origin
    what: bytes
    choices: Choices

    @torch.inference_mode(False)
    def __call__(self, group: Group) -> dict[str, Any]:
        """See ``Reading.added``."""
        reading = Reading(*loaded(self.origin, self.what), self.choices)
        reading.read(group, lambda tokens: None)
        return reading.added()


@functools.lru_cache(maxsize=1)
def loaded(origin: Origin, what: bytes) -> tuple[HookedModel, Source]:
    """A worker's model and what has features, kept for the next piece of work."""
    model: Any = origin.model()
    return model, source_of(model, given(pickle.loads(what)))


def given(what: object) -> Any:
    """What has features: itself, or what a ``functools.partial`` loads."""
    return what() if isinstance(what, functools.partial) else what


def sendable(what: object) -> bytes:
    """What has features, pickled.

    Args:
        what: as it was given.

    Raises:
        InputError: it cannot be sent, or is too large to be sent with every piece of work.
    """
    try:
        made = pickle.dumps(what)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"what={shown(what)} cannot be sent to workers: {error}") from error
    if len(made) > LARGEST:
        raise InputError(
            f"what={shown(what)} has {len(made):,} bytes, too many to be sent with every piece "
            "of work. Say how to load it: functools.partial(nl.sae.load, source, site=...)."
        )
    return made


def read_elsewhere(
    executor: AnyExecutor,
    model: HookedModel,
    what: object,
    choices: Choices,
    groups: Iterable[Group],
) -> Iterator[dict[str, Any]]:
    """What workers read, group by group, in their order.

    Args:
        executor: who does the work.
        model: where workers find it, too.
        what: has features.
        choices: how texts are read.
        groups: of texts.

    Raises:
        InputError: workers could not load the model, or ``what`` cannot be sent.
        LostWorkerError: the worker of a group was lost again and again.
    """
    read = Reader(origin_of(model), sendable(what), choices)
    ready: dict[int, dict[str, Any]] = {}
    following = 0
    with closing(run_pieces(executor, read, groups, called=lambda _: "a group of texts")) as sent:
        for number, answer in sent:
            ready[number] = answer
            while following in ready:
                yield ready.pop(following)
                following += 1


def _refuse_not_finite(codes: Codes, tokens: Tokens, numbers: Sequence[int]) -> None:
    """Refuse activations that cannot be ranked.

    Raises:
        InputError: names the first document with one.
    """
    wrong = (~codes.values.isfinite()).any(dim=-1) & tokens.counted
    if bool(wrong.any()):
        document = numbers[int(wrong.any(dim=1).nonzero()[0])]
        raise InputError(
            f"activations are NaN or infinite in document {document}; model.check() names weights "
            "that are"
        )
