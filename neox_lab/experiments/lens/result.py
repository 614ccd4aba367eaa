"""What a lens read: predictions at each layer and position, as tensors, a table and a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.lens.depth import depth_strip, known_best, settled
from neox_lab.experiments.lens.surprise import mean_surprise, surprise_curve
from neox_lab.frames import make_frame
from neox_lab.results import Result
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView, LensView, StripView


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
        prediction: id of the token that the model itself finds likeliest ``[batch, pos]``, int64;
            -1 where its prediction is NaN, and at padding.
        vocab_size: how many tokens there are to predict.
        top: ids of the likeliest tokens ``[layer, batch, pos, top_k]``, int64.
        top_probability: their probabilities, of the same shape.
        entropy: of each prediction, in nats, ``[layer, batch, pos]``.
        kl: KL(final prediction ‖ this one), in nats, ``[layer, batch, pos]``.
        next_log_probability: logarithm, in nats, of the probability of the token that really
            follows ``[layer, batch, pos]``; NaN where none does: at the last token of each text,
            and at padding.
        next_rank: how many tokens were likelier than it ``[layer, batch, pos]``, int64; -1 where
            none follows, and where the prediction is NaN.
        watched: ids of the watched tokens.
        watched_log_probability: logarithms, in nats, of their probabilities
            ``[layer, batch, pos, watched]``.
        watched_rank: how many tokens were likelier, of the same shape, int64; -1 where the
            prediction is NaN.
        piece_of: the string of every token of ``top`` and ``watched``, by its id.
    """

    name: str
    site: str
    labels: list[str]
    pieces: list[list[str]]
    mask: Tensor
    prediction: Tensor
    vocab_size: int
    top: Tensor
    top_probability: Tensor
    entropy: Tensor
    kl: Tensor
    next_log_probability: Tensor
    next_rank: Tensor
    watched: list[int]
    watched_log_probability: Tensor
    watched_rank: Tensor
    piece_of: dict[int, str]

    @property
    def next_probability(self) -> Tensor:
        """Of the token that really follows ``[layer, batch, pos]``; NaN where none does."""
        return self.next_log_probability.exp()

    @property
    def watched_probability(self) -> Tensor:
        """Probabilities of the watched tokens ``[layer, batch, pos, watched]``."""
        return self.watched_log_probability.exp()

    @property
    def surprise_bits(self) -> Tensor:
        """−log2 of ``next_probability`` ``[layer, batch, pos]``, finite where that is 0 or near."""
        return -self.next_log_probability / math.log(2)

    @property
    def depth(self) -> Tensor:
        """Prediction depth: where the prediction of the next token is settled ``[batch, pos]``.

        It is the number of a row, an index into ``labels``: the first row from which on the
        likeliest token stays the model's own ``prediction``. With ``labels[depth] == "3_pre"``, the
        stream before block 3 already says what the end says, and so does every row after it, while
        the row before says something else. A row that is NaN says something else too. On
        ``resid_mid``, ``attn_out`` and ``mlp_out``, whose last row is not the model's prediction,
        ``len(labels)`` means never. -1 where ``prediction`` is.
        """
        return settled(known_best(self.top, self.top_probability), self.prediction)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each layer, text and position; padding is left out.

        ``entropy_bits``, ``kl_bits`` and ``surprise_bits`` (of the token that really follows) are
        in bits, as in pictures; other tensors are in nats.
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
            "next_probability": float(self.next_log_probability[at].exp()),
            "surprise_bits": float(self.next_log_probability[at]) / -math.log(2),
            "next_rank": int(self.next_rank[at]),
        }
        for number, token in enumerate(self.watched):
            chance = self.watched_log_probability[at][number].exp()
            record[f"p({self.piece_of[token]})"] = float(chance)
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

    @property
    def depths(self) -> pd.DataFrame:
        """One row for each text and position: ``depth``, the row's name in ``layer``, prediction.

        ``layer`` is ``"never"`` where the last row disagrees, and missing where it is unknown.
        """
        names = [*self.labels, "never"]
        depth = self.depth
        rows = []
        for text, pos in self.mask.nonzero().tolist():
            at = int(depth[text, pos])
            layer = names[at] if at >= 0 else None
            rows.append((text, pos, self.pieces[text][pos], at, layer, self._final(text, pos)))
        return make_frame(rows, ["text", "pos", "token", "depth", "layer", "prediction"])

    def depth_view(self, text: int = 0) -> StripView:
        """One text, its tokens tinted by prediction depth.

        Raises:
            InputError: there is no such text.
        """
        text = entry("text", text, len(self.pieces), InputError)
        kept = self.mask[text].nonzero().flatten().tolist()
        return depth_strip(
            [self.pieces[text][pos] for pos in kept],
            self.depth[text, kept].tolist(),
            self.labels,
            [self._final(text, pos) for pos in kept],
            f"{self.name} on {self.site}: prediction depth",
        )

    def mean_surprise(self, seed: int = 0) -> pd.DataFrame:
        """Surprise of the token that really follows: the mean of each layer, with an interval.

        Args:
            seed: of the draws for the interval.

        Returns:
            ``layer``, ``surprise_bits``, ``low`` and ``high`` (a 95 % bootstrap interval: of
            several texts whole texts are drawn, of one text its positions), ``entropy_bits`` at
            the same positions, and ``positions`` and ``texts``, how many there were. What is NaN
            anywhere is NaN in the mean, as everywhere.

        Raises:
            InputError: no token follows another.
        """
        follows = self.mask.clone()
        follows[:, :-1] &= self.mask[:, 1:]
        follows[:, -1] = False
        bits = self.entropy / math.log(2)
        return mean_surprise(self.surprise_bits, bits, follows, self.labels, seed)

    def surprise_view(self, seed: int = 0) -> CurvesView:
        """``mean_surprise`` as a curve over the layers, beside the entropy, which is expected.

        Args:
            seed: of the draws for the interval.

        Raises:
            InputError: no token follows another.
        """
        return surprise_curve(self.mean_surprise(seed), self.vocab_size, self.name, self.site)

    def _final(self, text: int, pos: int) -> str | None:
        """The model's own prediction as a string; None where it is NaN."""
        token = int(self.prediction[text, pos])
        return None if token < 0 else self.piece_of[token]
