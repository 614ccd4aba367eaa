"""What a training came to: the dictionary, its curves, and measurements on held-out rows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from neox_lab.errors import CheckpointError
from neox_lab.files import StrPath, path_of, taken_apart
from neox_lab.frames import make_frame
from neox_lab.results import Result, typed
from neox_lab.sae.dictionary import Dictionary
from neox_lab.sae.formats import Found, Given, ours, source_of
from neox_lab.sae.rows import Part
from neox_lab.sae.saving import FILE, FILE_FORMAT, TRAINING, save

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView

COLUMNS = ("step", "loss", "fvu", "l0", "dead", "learning_rate")
_RECORDED = ("settings", "interrupted", "seconds")  # in the file's header
_AT_ONCE = 4096  # rows
_GROUPS = 500
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A dictionary on rows that it was not trained on, with bootstrap intervals over documents.

    Ends of intervals are NaN where all rows are of one document, which says nothing about others.

    Attributes:
        rows: how many.
        fvu: ``sum |y - ŷ|² / sum |y - mean y|²``; NaN of rows that are all the same.
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

    def save(self, folder: StrPath) -> Path:
        """Write the dictionary, for ``nl.sae.load``, with the record of its training beside.

        Args:
            folder: made if need be; a file that is there is replaced when the new one is whole.

        Returns:
            Where the file is.

        Raises:
            InputError: ``folder`` is no path.
            ConfigError: weights are not finite.
            CheckpointError: the file cannot be written.
        """
        record = {name: getattr(self, name) for name in _RECORDED}
        record["held_out"] = dataclasses.asdict(self.held_out)
        return save(self.dictionary, folder, self.history, record)

    @classmethod
    def load(cls, folder: StrPath) -> Self:
        """What ``save`` wrote.

        Args:
            folder: where.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it is a dictionary without a
                record.
            InputError: ``folder`` is no path.
        """
        place = path_of("folder", folder)
        tensors, facts = FILE_FORMAT.read(place / FILE)
        record = facts.get(TRAINING)
        held = record.pop("held_out", None) if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(held, dict):
            raise CheckpointError(
                f"{str(place / FILE)!r} has no record of a training; nl.sae.load reads it."
            )
        dictionary = ours.read(source_of(place), Found(ours.NAME, "", None), Given())
        with taken_apart(f"a training from {str(place / FILE)!r}"):
            if not isinstance(dictionary, Dictionary):
                raise TypeError("it holds no dictionary of one site")
            history = tensors[f"{TRAINING}.history"].clone()
            if history.dtype != torch.float64 or history.shape[1:] != (len(COLUMNS),):
                raise TypeError(f"the history is {history.dtype} {list(history.shape)}")
            fields = {field.name: field for field in dataclasses.fields(cls)}
            content = typed(cls, {name: fields[name] for name in _RECORDED}, record)
            of_held = {field.name: field for field in dataclasses.fields(HeldOut)}
            measured = HeldOut(**typed(HeldOut, of_held, held))
            return cls(dictionary=dictionary, history=history, held_out=measured, **content)

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
        if math.isnan(held.fvu):
            found = "held-out rows are all the same"
        elif math.isnan(held.fvu_low):
            found = f"held-out FVU {held.fvu:.3f} (one document, no interval)"
        else:
            found = f"held-out FVU {held.fvu:.3f} ({held.fvu_low:.3f} to {held.fvu_high:.3f})"
        kind, site = self.dictionary.kind, self.dictionary.site_out
        title = f"{stopped}{kind} at {site}, {len(frame)} steps: {found}"
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
    if groups == 1:
        fvu, l0 = torch.full_like(fvu, math.nan), torch.full_like(l0, math.nan)
    (fvu_low, fvu_high), (l0_low, l0_high) = fvu.quantile(ends), l0.quantile(ends)
    return HeldOut(
        len(part.x),
        float(totals[0].sum() / totals[1].sum()) if bool(totals[1].sum()) else math.nan,
        float(fvu_low),
        float(fvu_high),
        float(totals[2].mean()),
        float(l0_low),
        float(l0_high),
        float((~ever).float().mean()),
    )
