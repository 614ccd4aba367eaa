"""How close a tuned lens comes to what the model says, layer by layer, beside the logit lens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.data.statistics import Floats, Integers, statistic_interval
from neox_lab.errors import InputError
from neox_lab.experiments.lens.divergence import divergence
from neox_lab.experiments.lens.streams import End, piece_length, pieces, streams
from neox_lab.frames import make_frame
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.experiments.lens.tuned import TunedLens
    from neox_lab.family.contract import LanguageModel
    from neox_lab.views import CurvesView


@dataclasses.dataclass(frozen=True)
class TunedLensResult(Result):
    """How close each layer of a lens comes, over documents that it was not trained on.

    Attributes:
        lens: the lens.
        frame: one row a layer: ``layer``, ``kl_bits`` (KL(what the model says ‖ what the lens
            reads), the mean over tokens, in bits) with the ends of its 95 % interval
            (``kl_bits_low``, ``kl_bits_high``: documents drawn again; NaN of a single one), and
            the same of the logit lens (``logit_lens_kl_bits``, …).
        losses: the mean over layers of the loss of each step of training, in bits; empty where the
            lens was not trained just now.
        documents: how many it was measured on.
        tokens: how many these have together.
    """

    lens: TunedLens = dataclasses.field(compare=False)
    frame: pd.DataFrame
    losses: list[float]
    documents: int
    tokens: int

    def view(self, part: Literal["layers", "training"] = "layers") -> CurvesView:
        """A picture: the divergence by layer, or the loss over training.

        Args:
            part: ``layers`` or ``training``.

        Raises:
            InputError: no such part, or the lens was not trained just now.
        """
        from neox_lab.views import CurvesView, Line

        check("part", part, one_of("layers", "training"), InputError)
        if part == "training":
            if not self.losses:
                raise InputError("This lens was measured and not trained, so there is no loss.")
            steps = np.arange(1, len(self.losses) + 1)
            title = "Training of the tuned lens"
            return CurvesView(
                title, {"loss": Line(steps, self.losses)}, "step", "KL in bits, mean over layers"
            )
        places = np.arange(len(self.frame))
        names = {"Logit lens": "logit_lens_kl_bits", "Tuned lens": "kl_bits"}
        lines = {}
        for name, column in names.items():
            y, low, high = (self.frame[f"{column}{end}"] for end in ("", "_low", "_high"))
            lines[name] = Line(places, y, low, high)
        title = f"How far each layer is from what the model says: {self.tokens:,} held-out tokens"
        return CurvesView(title, lines, "layer", "KL in bits", list(self.frame["layer"]))


@torch.no_grad()
def measured(
    translate: Callable[[Tensor, int], Tensor],
    model: LanguageModel,
    rows: list[list[int]],
    batch_size: int,
    seed: int,
) -> pd.DataFrame:
    """The frame of a result.

    Args:
        translate: of the lens.
        model: with an unembedding, without dropout.
        rows: token ids of the documents.
        batch_size: sequences in one forward pass.
        seed: of the bootstrap.
    """
    end, parts = End.of(model), pieces(rows, piece_length(model))
    owner = torch.tensor([number for number, _ in parts])
    sums = torch.zeros(2, model.config.num_hidden_layers, len(rows), dtype=torch.float64)
    for found, row_of in streams(model, [piece for _, piece in parts], batch_size):
        final, document = end.said(end.norm(found[-1])), owner[row_of]
        for layer, stream in enumerate(found[:-1]):
            for n, each in enumerate((translate(stream, layer), stream)):
                kl = divergence(final, end.said(end.norm(each)))
                sums[n, layer].index_add_(0, document, kl.double().cpu())
    counts = np.array([len(row) for row in rows], dtype=np.float64)
    bits = sums.numpy() / math.log(2)
    lines = []
    for layer, (tuned, logit) in enumerate(zip(*bits, strict=True)):
        line: dict[str, object] = {"layer": f"{layer}_pre"}
        line |= _with_interval("kl_bits", tuned, counts, seed)
        line |= _with_interval("logit_lens_kl_bits", logit, counts, seed)
        lines.append(line)
    return make_frame(lines)


def _with_interval(name: str, sums: Floats, counts: Floats, seed: int) -> dict[str, float]:
    """A mean over tokens, and where it may be if other documents had been drawn."""

    def mean(chosen: Integers) -> float:
        return float(sums[chosen].sum() / counts[chosen].sum())

    value = mean(np.arange(len(counts)))
    low, high = statistic_interval(len(counts), mean, seed=seed)
    return {name: value, f"{name}_low": low, f"{name}_high": high}
