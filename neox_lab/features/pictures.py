"""Views of what a pass over texts found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from neox_lab.views import BarsView, ExamplesView, Piece, StripView, TextExample

if TYPE_CHECKING:
    from neox_lab.features.top_result import Example, TopExamples
    from neox_lab.views import View


def heading(one: Example) -> str:
    """What an example is, in a few words."""
    group = "highest" if one.group == "top" else f"higher in {one.quantile:.0%} of its windows"
    split = "" if one.split == "train" else ", held out"
    return f"{one.value:.4g}, {group}{split}, document {one.document}, position {one.position}"


def title(found: TopExamples, latent: int) -> str:
    """The name of a feature, with where it is."""
    name = found.source.name_of(latent)
    where = found.source.title
    return where if where.startswith(name) else f"{name}, {where}"


def examples(found: TopExamples, latent: int) -> View:
    """The examples of one feature."""
    name, density = title(found, latent), float(found.density[latent])
    strips = found.strips(latent)
    if not strips:
        said = f"Active at none of the {found.counted:,} tokens that were read."
        return StripView([Piece(said)], name)
    rows = [TextExample(heading(one), one.pieces, one.values, one.at) for one in strips]
    note = (
        f"Active at {100 * density:.3g} % of {found.counted:,} tokens; {found.model_name}; one "
        "scale for all texts."
    )
    return ExamplesView(rows, "activation", name, note)


def densities(found: TopExamples) -> View:
    """How many features are active how often: a bar for each factor of 10."""
    density = found.density.numpy()
    there = density[density > 0]
    powers = np.floor(np.log10(there)).clip(max=-1).astype(int)
    low = int(powers.min()) if len(powers) else -1
    names, counts = ["never"], [int((density == 0).sum())]
    for power in range(low, 0):
        names.append(f"{_share(power)} to {_share(power + 1)}")
        counts.append(int((powers == power).sum()))
    note = f"Share of {found.counted:,} tokens at which they are active; .view(latent) shows one."
    return BarsView(names, counts, f"How often active: {found.source.title}", note)


def _share(power: int) -> str:
    return f"{math.pow(10, power):g}"
