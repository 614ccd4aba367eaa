"""Activations of features in one run, and those that they are exchanged for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from neox_lab.errors import InputError
from neox_lab.experiments.metrics import Metric, output_logits
from neox_lab.experiments.patching import PatchResult, ablate, sweep
from neox_lab.experiments.patching.labels import token_labels
from neox_lab.experiments.patching.progress_report import ProgressReport
from neox_lab.experiments.patching.prompts import Prompts, PromptsLike
from neox_lab.experiments.patching.runner import BUDGET
from neox_lab.experiments.prompt_pairs import Batch, batch, pair
from neox_lab.features.misses import tell_of_misfit
from neox_lab.features.reading import OfOneSite, encoded, written_site
from neox_lab.notices import gathered
from neox_lab.sae import Codes
from neox_lab.sae.splicing import ACTS

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

DENSE = 2**24
"""Activations [token, latent] that a sweep computes together: 64 MB in float32."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Features of a run, and other activations for them.

    Attributes:
        dictionary: whose features.
        run: the prompts of the run, and the metric that reads it.
        other: the prompts that give the other activations; None for zeros.
        metric: as it was given.
        latents: the features that are active in text on either side.
        before: their activations in the run, 0 in padding, ``[batch, pos, latent]``.
        after: the other activations, likewise.
        missed: share of what stands there that the dictionary misses in the run.
    """

    dictionary: OfOneSite
    run: Batch
    other: Prompts | None
    metric: Metric
    latents: list[int]
    before: Tensor
    after: Tensor
    missed: float

    @classmethod
    def of(
        cls,
        model: HookedModel,
        dictionary: OfOneSite,
        inputs: PromptsLike,
        corrupted: PromptsLike | None,
        metric: Metric,
    ) -> Exchange:
        """Read the prompts, and encode them.

        Raises:
            InputError: no feature is active, prompts that are none or do not pair up, or a metric
                that does not fit.
            HookError: the dictionary does not fit the model.
        """
        site = written_site(model, dictionary)
        other = None
        if corrupted is None:
            run = batch(model, inputs, metric)
        else:
            both = pair(model, inputs, corrupted, metric)
            run, other = both.clean, both.corrupted.prompts
        sides = [run.prompts] if other is None else [run.prompts, other]
        read = [encoded(model, dictionary, side) for side in sides]
        missed = read[0][1]
        tell_of_misfit(dictionary, site, missed, run.own)  # once, not of each side
        codes = [_of_text(each, side) for (each, _), side in zip(read, sides, strict=True)]
        active = torch.cat([one.indices[one.values != 0] for one in codes])
        latents = torch.unique(active)
        if not len(latents):
            raise InputError(f"No feature of {dictionary!r} is active in these texts.")
        found = [_among(one, latents) for one in codes]
        after = found[1] if other is not None else torch.zeros_like(found[0])
        return cls(dictionary, run, other, metric, latents.tolist(), found[0], after, missed)

    @property
    def acts(self) -> str:
        """The hook point of the features, while the dictionary is spliced in."""
        return f"{written_site(self.run.model, self.dictionary)}.{ACTS}"

    @property
    def tokens(self) -> list[str]:
        """A name for each position."""
        sides = [self.run.prompts] if self.other is None else [self.run.prompts, self.other]
        return token_labels(self.run.model, sides)

    def after_in_full(self) -> Tensor:
        """The other activations of all features, ``[batch, pos, latents]``."""
        shape = (*self.after.shape[:2], self.dictionary.latents)
        full = self.after.new_zeros(shape)
        full[..., self.latents] = self.after
        return full

    @torch.no_grad()
    def all_at_once(self) -> float:
        """The metric where all features have their other activation."""
        full = self.after_in_full()

        def put(acts: Tensor, _: object) -> Tensor:
            return full.to(acts)

        model = self.run.model
        with model.spliced(self.dictionary):
            output = model.run_with_hooks(self.run.ids, [(self.acts, put)], **self.run.arguments)
        return float(self.run.measure(output_logits(output))[0])

    def measured(
        self,
        latents: list[int],
        summed: bool,
        budget: int = BUDGET,
        progress: bool | ProgressReport = False,
    ) -> PatchResult:
        """A run for each feature, position by position or at all at once."""
        positions: Literal["all"] | None = "all" if summed else None
        most = max(1, DENSE // self.dictionary.latents)
        model, run = self.run.model, self.run.arguments
        with gathered(), model.spliced(self.dictionary):  # of the prompts was told before
            if self.other is None:
                return ablate(
                    model,
                    run,
                    self.metric,
                    self.acts,
                    "zero",
                    positions=positions,
                    entries=latents,
                    budget=min(budget, most),
                    progress=progress,
                )
            return sweep(
                model,
                run,
                self.other.arguments,
                self.metric,
                self.acts,
                direction="noising",
                positions=positions,
                entries=latents,
                budget=min(budget, most),
                progress=progress,
            )


def _of_text(codes: Codes, prompts: Prompts) -> Codes:
    """Codes with nothing active in padding."""
    values = codes.values.where(prompts.own[..., None], 0)
    return Codes(codes.indices, values, codes.latents)


def _among(codes: Codes, latents: Tensor) -> Tensor:
    """Activations of some features, ``[*tokens, latent]``."""
    number = torch.full((codes.latents,), -1, device=latents.device)
    number[latents] = torch.arange(len(latents), device=latents.device)
    slots = number[codes.indices]  # -1 only where a slot is empty, with the value 0
    empty = codes.values.new_zeros(*codes.values.shape[:-1], len(latents))
    return empty.scatter_add(-1, slots.clamp(min=0), codes.values.where(slots >= 0, 0))
