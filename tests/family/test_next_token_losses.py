"""Losses token by token, against loops over positions, and against the mean."""

from __future__ import annotations

import pytest
import torch
from oracle import padding_masks, tokens

from neox_lab.errors import InputError
from neox_lab.family.losses import (
    next_token_hits,
    text_loss,
)

LOGITS = 3 * torch.randn(3, 12, 211, generator=torch.Generator().manual_seed(0))


def test_each_loss_and_hit_by_hand() -> None:
    ids = tokens()
    ids[0, 5] = LOGITS[0, 4].argmax()
    losses, hits = text_loss(LOGITS, ids, per_token=True), next_token_hits(LOGITS, ids)
    assert losses.shape == hits.shape == (3, 11)
    for row in range(3):
        for pos in range(11):
            probabilities = LOGITS[row, pos].softmax(dim=-1)
            wanted = -probabilities[ids[row, pos + 1]].log()
            torch.testing.assert_close(losses[row, pos], wanted)
            assert bool(hits[row, pos]) == (probabilities.argmax() == ids[row, pos + 1])
    assert bool(hits[0, 4])


@pytest.mark.parametrize("name", ["left", "right", "holes"])
def test_padding_and_what_follows_it_do_not_count(name: str) -> None:
    mask, ids = padding_masks()[name], tokens()
    assert mask is not None
    losses = text_loss(LOGITS, ids, mask, per_token=True)
    counted = (mask[:, 1:] * mask[:, :-1]).bool()
    torch.testing.assert_close(losses[counted], text_loss(LOGITS, ids, per_token=True)[counted])
    assert losses[~counted].count_nonzero() == 0
    torch.testing.assert_close(text_loss(LOGITS, ids, mask), losses.sum() / counted.sum())


def test_shapes_that_do_not_fit() -> None:
    for function in (text_loss, next_token_hits):
        with pytest.raises(InputError, match=r"\[3, 11\]"):
            function(LOGITS, tokens()[:, :11])
