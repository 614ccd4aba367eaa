"""What a lens read: predictions at each layer and position, as tensors, a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.results import Result
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import LensView


@dataclass(frozen=True)
class LensResult(Result):
    """Predictions read off at each layer and position.

    All arrays are on the CPU and float32 (float64 of a float64 model) unless said otherwise.
    ``layer`` stands for the rows named by ``labels``; on the residual stream the last row is the
    model's own prediction.

    Attributes:
        name: which lens, such as ``"Logit lens"``.
        site: what was read.
        labels: name of each row, such as ``"0_pre"`` … ``"final"``.
        pieces: token strings, ``[batch][pos]``.
        mask: True for text and False for padding, ``[batch, pos]``.
        top: ids of the likeliest tokens ``[layer, batch, pos, top_k]``, int64.
        top_probability: their probabilities, of the same shape.
        entropy: of each prediction, in nats, ``[layer, batch, pos]``.
        kl: KL(final prediction ‖ this one), in nats, ``[layer, batch, pos]``.
        next_probability: probability of the token that really follows ``[layer, batch, pos]``;
            NaN where none does: at the last token of each text, and at padding.
        next_rank: how many tokens were likelier than it, int64; -1 where none follows, and where
            the prediction is NaN.
        watched: ids of the watched tokens.
        watched_probability: their probabilities ``[layer, batch, pos, watched]``.
        watched_rank: how many tokens were likelier, int64; -1 where the prediction is NaN.
    """

    name: str
    site: str
    labels: list[str]
    pieces: list[list[str]]
    mask: Tensor
    top: Tensor
    top_probability: Tensor
    entropy: Tensor
    kl: Tensor
    next_probability: Tensor
    next_rank: Tensor
    watched: list[int]
    watched_probability: Tensor
    watched_rank: Tensor
    piece_of: dict[int, str]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each layer, text and position; padding is left out.

        ``entropy_bits`` and ``kl_bits`` are in bits, as in pictures; the tensors are in nats.
        """
        rows = []
        layers, batch, length = self.entropy.shape
        for index in range(layers):
            for row in range(batch):
                for pos in range(length):
                    if self.mask[row, pos]:
                        rows.append(self._record(index, row, pos))
        return make_frame(rows)

    def _record(self, index: int, row: int, pos: int) -> dict[str, Any]:
        """One line of the frame."""
        at = (index, row, pos)
        best = int(self.top[at][0])
        record: dict[str, Any] = {
            "layer": self.labels[index],
            "text": row,
            "pos": pos,
            "token": self.pieces[row][pos],
            "prediction": None if self.top_probability[at].isnan().any() else self.piece_of[best],
            "probability": float(self.top_probability[at][0]),
            "entropy_bits": float(self.entropy[at]) / math.log(2),
            "kl_bits": float(self.kl[at]) / math.log(2),
            "next_probability": float(self.next_probability[at]),
            "next_rank": int(self.next_rank[at]),
        }
        for number, token in enumerate(self.watched):
            record[f"p({self.piece_of[token]})"] = float(self.watched_probability[at][number])
            record[f"rank({self.piece_of[token]})"] = int(self.watched_rank[at][number])
        return record

    def view(self, text: int = 0) -> LensView:
        """The picture of one text: a row a layer, the likeliest token in each cell.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import LensView

        text = entry("text", text, len(self.pieces), InputError)
        kept = self.mask[text].nonzero().flatten()
        top, probability = self.top[:, text, kept], self.top_probability[:, text, kept]
        return LensView(
            candidates=[[[self.piece_of[int(t)] for t in cell] for cell in row] for row in top],
            probabilities=probability.numpy(),
            entropy=self.entropy[:, text, kept].numpy(),
            row_labels=self.labels,
            pieces=[self.pieces[text][int(pos)] for pos in kept],
            title=f"{self.name} on {self.site}",
        )
