"""From token ids to codes of whatever has features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from neox_lab.data.activations import read_batch
from neox_lab.data.batches import by_length
from neox_lab.data.encoding import pad_rows
from neox_lab.dropout import refuse_dropout
from neox_lab.family.contract import HookedModel
from neox_lab.features.sources import Source
from neox_lab.sae.codes import Codes

BATCH = 16


@torch.inference_mode()
def codes_of(model: HookedModel, source: Source, ids: Sequence[list[int]]) -> tuple[Codes, Tensor]:
    """Codes ``[batch, pos, slot]`` of chunks, and a mask ``[batch, pos]`` of their tokens.

    Args:
        model: what reads them.
        source: whose features.
        ids: the chunks.

    Raises:
        InputError: what the source gives are no codes of its features.
    """
    cache, mask = read_batch(model, ids, source.sites)
    batch, _ = pad_rows(ids, 0)
    return source.codes(cache, batch.to(model.device)), mask.to(model.device).bool()


def codes_again(
    model: HookedModel, source: Source, chunks: Sequence[list[int]]
) -> Iterator[tuple[int, Codes]]:
    """Codes of a few chunks, when someone looks at them.

    Args:
        model: what reads them.
        source: whose features.
        chunks: tokens from the start of each chunk to the last one that is needed.

    Yields:
        The number of each chunk, in some order, and its codes ``[pos, slot]``.

    Raises:
        InputError: dropout is on.
    """
    refuse_dropout(model)
    for rows in by_length(model, [len(ids) for ids in chunks], BATCH):
        codes, _ = codes_of(model, source, [chunks[row] for row in rows])
        for at, row in enumerate(rows):
            length = len(chunks[row])
            values = codes.values[at, :length]
            yield row, Codes(codes.indices[at, :length], values, codes.latents)
