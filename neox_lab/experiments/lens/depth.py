"""Prediction depth: from which row of a lens on the prediction stays what it will be.

Baldock et al. (2021, "Deep Learning Through the Lens of Example Difficulty", arXiv:2106.09647) call
the first layer from which on probes agree with the final answer an example's prediction depth.
Here the rows of a lens stand for the probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from neox_lab.views import StripView


def settled(best: Tensor, prediction: Tensor) -> Tensor:
    """The first row from which on all rows agree with the prediction.

    Args:
        best: the likeliest token of each row ``[layer, ..]``; -1 where it is unknown.
        prediction: what the rows are compared with ``[..]``; -1 where it is unknown.

    Returns:
        Numbers of rows ``[..]``, int64; as many as there are rows where the last one disagrees;
        -1 where ``prediction`` is unknown.
    """
    agree = (best == prediction).flip(0)
    depth = len(best) - agree.long().cumprod(dim=0).sum(dim=0)
    return depth.masked_fill(prediction < 0, -1)


def depth_strip(
    pieces: Sequence[str],
    depth: Sequence[int],
    labels: Sequence[str],
    predictions: Sequence[str | None],
    title: str,
) -> StripView:
    """The tokens of a text, each with the row where what follows it is settled.

    Args:
        pieces: the tokens.
        depth: the row of each; -1 where it is unknown.
        labels: names of the rows.
        predictions: what is settled at each token; None where it is unknown.
        title: the headline.
    """
    from neox_lab.views.strips import Piece, StripView

    names = [*labels, "never"]
    made, found = [], []
    for at, (piece, row, said) in enumerate(zip(pieces, depth, predictions, strict=True)):
        if row < 0:
            made.append(Piece(piece, details={"prediction": "NaN"}))
        else:
            details = {"settled at": names[row], "prediction": said}
            made.append(Piece(piece, names[row], "depth", row / max(1, len(labels) - 1), details))
        settled_at = names[row] if row >= 0 else "NaN"
        found.append({"position": at, "token": piece, "settled at": settled_at, "next": said or ""})
    note = (
        "Below each token the first row of the lens from which on the prediction of the next "
        "token stays the final one; the stronger the tint, the later."
    )
    return StripView(made, title, note, found, "Prediction depth", ["depth"])


def known_best(top: Tensor, top_probability: Tensor) -> Tensor:
    """The likeliest token of each row ``[layer, batch, pos]``; -1 where the row is NaN."""
    return torch.where(top_probability[..., 0].isnan(), -1, top[..., 0])
