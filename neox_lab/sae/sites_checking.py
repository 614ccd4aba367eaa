"""The proof for dictionaries of several sites or models: how well each is rebuilt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import require_model, several
from neox_lab.errors import HookError, InputError
from neox_lab.frames import make_frame
from neox_lab.hooks.names import exact
from neox_lab.hooks.table import axis_sizes, shape_at
from neox_lab.results import Result
from neox_lab.sae.checking import DENSE, DRAWN, note_of, number_in, place_row, short_name
from neox_lab.sae.rows import Texts, activations_of, ids_of

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.views import BarsView


class Rebuilt(NamedTuple):
    """What a dictionary makes of tensors.

    Attributes:
        counts: active features of each token, for each tensor.
        outputs: what is written for each ``[token, d_out]``.
        shuffled: likewise, with the features of other tokens.
    """

    counts: list[Tensor]
    outputs: list[Tensor]
    shuffled: list[Tensor]


class Tried(NamedTuple):
    """A dictionary that is tried.

    Attributes:
        name: it, in words.
        widths: of what it reads and writes.
        latents: how many features are at each site.
        rebuild: what it makes of tensors, and of features in another order of tokens.
    """

    name: str
    widths: tuple[int, int]
    latents: int
    rebuild: Callable[[list[Tensor], Tensor], Rebuilt]


@dataclasses.dataclass(frozen=True)
class SitesCheck(Result):
    """How a dictionary of several sites or models fits.

    Attributes:
        dictionary: it, in words.
        model: whose activations.
        tokens: how many.
        frame: a row for each: ``site_in``, ``site_out``, ``model``, ``fvu`` and ``l0`` of all
            tokens, ``fvu_without_first`` and ``l0_without_first`` of all but the first of each
            text, and as a control ``fvu_shuffled`` (without first tokens): the features of another
            token. It is 1 or more where what is rebuilt belongs to the token.
        warnings: what is odd, in words.
    """

    dictionary: str
    model: str
    tokens: int
    frame: pd.DataFrame
    warnings: list[str]

    def view(self) -> BarsView:
        """FVU without first tokens at each place, those above 2 cut there."""
        from neox_lab.views import BarsView

        several_models = self.frame["model"].nunique() > 1
        names, values = [], []
        for place, (_, row) in enumerate(self.frame.iterrows()):
            read, written = str(row["site_in"]), str(row["site_out"])
            name = short_name(read) + f" → {short_name(written)}" * (read != written)
            names.append(f"{place}: {row['model']}, {name}" if several_models else name)
            values.append(min(number_in(row, "fvu"), DRAWN))
        l0 = [number_in(row, "l0") for _, row in self.frame.iterrows()]
        title = f"{self.dictionary}: L0 {min(l0):.1f} to {max(l0):.1f}"
        return BarsView(names, values, title, note_of(self.tokens, self.warnings))

    def __repr__(self) -> str:
        """The view's text, and what is odd."""
        return "\n".join([super().__repr__(), *self.warnings])


@torch.no_grad()
def check_sites(
    tried: Tried,
    models: Sequence[HookedModel],
    sites_in: Sequence[str],
    sites_out: Sequence[str],
    texts: str | Texts,
) -> SitesCheck:
    """Rebuild what stands at sites; one model has all of them, or each has one.

    Raises:
        HookNameError: a model has no such site.
        HookError: another width.
        InputError: no model, no texts, dropout is on, or there is no token.
        DataError: a text is longer than a model can read.
    """
    owners = list(models) * len(sites_in) if len(models) == 1 else list(models)
    for model, read, written in zip(owners, sites_in, sites_out, strict=True):
        require_sites(tried.name, tried.widths, model, read, written)
    texts = [texts] if isinstance(texts, str) else texts
    texts = several("texts", texts, "texts, or lists of token ids", InputError)
    x, y, text = _activations(models, sites_in, sites_out, ids_of(models[0], texts))
    order = torch.randperm(len(text), generator=torch.Generator().manual_seed(0))
    found = tried.rebuild(x, order)
    first = torch.ones_like(text, dtype=torch.bool)
    first[1:] = text[1:] != text[:-1]
    rows = []
    for i, owner in enumerate(owners):
        counts = found.counts[i].cpu()
        row, control = (
            place_row(
                sites_in[i], sites_out[i], True, y[i], outputs[i].float().cpu(), counts, first
            )
            for outputs in (found.outputs, found.shuffled)
        )
        del row["asked"]
        row["model"] = str(owner.config.name_or_path or "a model")
        row["fvu_shuffled"] = control["fvu_without_first"]
        rows.append(row)
    frame = make_frame(rows)
    names = ", ".join(dict.fromkeys(frame["model"]))
    return SitesCheck(tried.name, names, len(text), frame, _odd(frame, tried.latents))


def require_sites(
    name: str, widths: tuple[int, int], model: HookedModel, read: str, written: str
) -> None:
    """Refuse sites that a model lacks, or that have another width.

    Raises:
        HookNameError: the model has no such site.
        HookError: another width.
        InputError: it is no model.
    """
    require_model(model)
    sizes = axis_sizes(model.config, 1, 1)
    for site, width in zip((read, written), widths, strict=True):
        point = model.hook_points[exact(site, model.hook_points)]
        there = math.prod(shape_at(point, sizes)[2:])
        if point.axes[:2] != ("batch", "pos") or there != width:
            raise HookError(
                f"{name} has width {width}; at {point.name!r} stand {there:,} numbers at a "
                "position. It belongs to another model or another site."
            )


def _activations(
    models: Sequence[HookedModel],
    sites_in: Sequence[str],
    sites_out: Sequence[str],
    ids: list[list[int]],
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What stands at the sites, and the text of each token."""
    if len(models) == 1:
        held, text = activations_of(models[0], ids, [*sites_in, *sites_out])
        return [held[name] for name in sites_in], [held[name].cpu() for name in sites_out], text
    x, y = [], []
    text = torch.empty(0, dtype=torch.float32)
    for model, read, written in zip(models, sites_in, sites_out, strict=True):
        held, text = activations_of(model, ids, [read, written])
        x.append(held[read])
        y.append(held[written].cpu())
    return x, y, text


def _odd(frame: pd.DataFrame, latents: int) -> list[str]:
    """What speaks against it, in words."""
    found = []
    for place, (_, row) in enumerate(frame.iterrows()):
        here, l0 = number_in(row, "fvu"), number_in(row, "l0")
        if not here < 1:
            found.append(
                f"At {row['site_out']} (number {place}) {here:.2f} of the variance is left "
                "unexplained, more than by a constant: it was trained on another model or site, or "
                "is read with another activation or normalisation than it was trained with."
            )
        if l0 * DENSE > latents:
            found.append(
                f"{l0:.0f} of {latents:,} features of number {place} are active at a token, which "
                "is not sparse: a TopK read as ReLU looks like this."
            )
    return found
