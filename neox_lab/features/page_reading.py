"""What the model reads for a page of a feature, here or in other processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neox_lab.executors import AnyExecutor, run_pieces
from neox_lab.family.origins import Origin, origin_of
from neox_lab.features.texts_to_codes import codes_again
from neox_lab.features.top_reading import loaded, sendable

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.features.sources import Source

Chunks = Sequence[list[int]]
"""Token ids, from the start of each chunk to the last one that is needed."""


@dataclass(frozen=True)
class Look:
    """What is read for one page.

    Attributes:
        latent: which feature.
        shown: chunks whose activations are shown.
        drawn: chunks at whose last tokens other features are counted.
    """

    latent: int
    shown: Chunks
    drawn: Chunks


@dataclass(frozen=True)
class Looked:
    """What was found there.

    Attributes:
        latent: which feature.
        values: its activation at each token that is shown, ``[pos]`` each.
        counts: at how many drawn tokens each feature is active, ``[latent]``.
    """

    latent: int
    values: list[NDArray[np.float32]]
    counts: Tensor


def values_again(
    model: HookedModel, source: Source, latent: int, chunks: Chunks
) -> list[NDArray[np.float32]]:
    """Activations of a feature at the tokens of each chunk, ``[pos]`` each.

    Args:
        model: what reads them.
        source: whose features.
        latent: which feature.
        chunks: what is read.
    """
    found: dict[int, NDArray[np.float32]] = {}
    for row, codes in codes_again(model, source, chunks):
        found[row] = codes.of(latent).float().cpu().numpy()
    return [found[row] for row in range(len(chunks))]


def counts_again(model: HookedModel, source: Source, chunks: Chunks) -> Tensor:
    """At how many of the chunks' last tokens each feature is active, ``[latent]``.

    Args:
        model: what reads them.
        source: whose features.
        chunks: what is read.
    """
    counts = torch.zeros(source.latents, dtype=torch.int64)
    for _, codes in codes_again(model, source, chunks):
        there = codes.indices[-1][codes.values[-1] != 0]
        counts += there.bincount(minlength=len(counts)).cpu()
    return counts


@dataclass(frozen=True)
class PageReader:
    """What a worker does for a page; small, and can be pickled.

    Attributes:
        origin: of the model.
        what: has features, pickled.
    """

    origin: Origin
    what: bytes

    @torch.inference_mode(False)
    def __call__(self, look: Look) -> Looked:
        """Read what one page needs."""
        model, source = loaded(self.origin, self.what)
        values = values_again(model, source, look.latent, look.shown)
        return Looked(look.latent, values, counts_again(model, source, look.drawn))


def looked_elsewhere(
    executor: AnyExecutor, model: HookedModel, what: object, looks: Iterable[Look]
) -> Iterator[Looked]:
    """What workers read, page by page, as they are ready.

    Args:
        executor: who does the work.
        model: where workers find it, too.
        what: has features, as it was given.
        looks: one for each page.

    Raises:
        InputError: workers could not load the model, or ``what`` cannot be sent.
        LostWorkerError: the worker of a page was lost again and again.
    """
    read: Any = PageReader(origin_of(model), sendable(what))
    with closing(run_pieces(executor, read, looks, called=lambda look: str(look.latent))) as sent:
        for _, answer in sent:
            yield answer
