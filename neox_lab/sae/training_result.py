"""What a training came to: the dictionary, its curves, and measurements on held-out rows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.frames import make_frame
from neox_lab.results import Result
from neox_lab.sae.dictionary import Dictionary
from neox_lab.sae.rows import Part

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView

COLUMNS = ("step", "loss", "fvu", "l0", "dead", "learning_rate")
_AT_ONCE = 4096  # rows
_GROUPS = 500
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A dictionary on rows that it was not trained on, with bootstrap intervals over documents.

    Attributes:
        rows: how many.
        fvu: ``sum |y - ŷ|² / sum |y - mean y|²``.
        fvu_low: lower end of the 95 % interval.
        fvu_high: upper end.
        l0: active features of a row, on average.
        l0_low: lower end of the 95 % interval.
        l0_high: upper end.
        never: share of the features that were active in none of the rows.
    """

    rows: int
    fvu: float
    fvu_low: float
    fvu_high: float
    l0: float
    l0_low: float
    l0_high: float
    never: float


@dataclasses.dataclass(frozen=True)
class TrainedDictionary(Result):
    """A trained dictionary and how it came about.

    Attributes:
        dictionary: it.
        history: a row a step ``[step, column]``, float64: step, loss, FVU, L0 and dead share of
            the batch, learning rate.
        held_out: what it is worth on rows that it was not trained on.
        settings: arguments of ``train``.
        interrupted: the user stopped it before its last step.
        seconds: wall time, of earlier parts of the run too.
    """

    dictionary: Dictionary = dataclasses.field(compare=False)
    history: Tensor
    held_out: HeldOut
    settings: dict[str, object]
    interrupted: bool
    seconds: float = dataclasses.field(compare=False)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a step: loss, FVU, L0, share of dead features, learning rate."""
        frame = make_frame(dict(zip(COLUMNS, self.history.T.numpy(), strict=True)))
        return frame.astype({"step": int})

    def view(self) -> CurvesView:
        """FVU, L0 and dead share over the steps, each in its panel, with the held-out FVU."""
        from neox_lab.views import CurvesView, Line

        frame = self.frame
        smooth = frame[["fvu", "l0"]].ewm(span=max(1, len(frame) // 50)).mean()
        every = max(1, len(frame) // 500)
        kept = frame.iloc[::-every][::-1]  # with the last
        at = kept.index
        lines = {
            "FVU, smoothed": Line(kept["step"], smooth["fvu"][at], y_label="FVU"),
            "L0, smoothed": Line(kept["step"], smooth["l0"][at], y_label="L0"),
            "dead share": Line(kept["step"], kept["dead"], y_label="dead"),
        }
        held = self.held_out
        stopped = f"stopped at step {len(frame)}; " if self.interrupted else ""
        title = (
            f"{stopped}{self.dictionary.kind} at {self.dictionary.site_out}, {len(frame)} steps: "
            f"held-out FVU {held.fvu:.3f} ({held.fvu_low:.3f} to {held.fvu_high:.3f})"
        )
        return CurvesView(title, lines, "step", "FVU")


@torch.no_grad()
def measured(dictionary: Dictionary, part: Part, seed: int = 0) -> HeldOut:
    """A dictionary on some rows.

    Args:
        dictionary: it.
        part: the rows.
        seed: of the bootstrap.
    """
    missed, there, counts = [], [], []
    ever = torch.zeros(dictionary.latents, dtype=torch.bool, device=dictionary.b_enc.device)
    mean = part.y.double().mean(0)
    for x, y in zip(torch.split(part.x, _AT_ONCE), torch.split(part.y, _AT_ONCE), strict=True):
        x, y = x.to(dictionary.b_enc.device).float(), y.to(dictionary.b_enc.device).float()
        codes = dictionary.encode(x)
        active = codes.values != 0
        ever[codes.indices[active]] = True
        missed.append((y - dictionary.decode(codes, x)).double().square().sum(1).cpu())
        there.append((y.cpu().double() - mean.cpu()).square().sum(1))
        counts.append(active.sum(1).double().cpu())
    totals = torch.stack([torch.cat(t) for t in (missed, there, counts)])
    _, group = torch.unique(part.document.cpu(), return_inverse=True)
    groups = min(_GROUPS, int(group.max()) + 1)
    sums = torch.zeros(4, groups, dtype=torch.float64)
    sums[:3].index_add_(1, group % groups, totals)
    sums[3].index_add_(0, group % groups, torch.ones(len(group), dtype=torch.float64))
    drawn = torch.randint(groups, (_DRAWS, groups), generator=torch.Generator().manual_seed(seed))
    drawn_sums = sums[:, drawn].sum(-1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    fvu, l0 = drawn_sums[0] / drawn_sums[1], drawn_sums[2] / drawn_sums[3]
    (fvu_low, fvu_high), (l0_low, l0_high) = fvu.quantile(ends), l0.quantile(ends)
    return HeldOut(
        len(part.x),
        float(totals[0].sum() / totals[1].sum()),
        float(fvu_low),
        float(fvu_high),
        float(totals[2].mean()),
        float(l0_low),
        float(l0_high),
        float((~ever).float().mean()),
    )
