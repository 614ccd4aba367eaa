"""The proof that a dictionary belongs where it is said to belong.

A dictionary that is read one site off, or with another activation than it was trained with, gives
numbers like any other. So it is tried on some text at its site and at the sites around it:

    dictionary.check(model, texts)              FVU and L0 at each, and what is odd about them
    nl.sae.load(..., model=model)               the same on a few built-in sentences, warning only

FVU is the fraction of variance unexplained, ``sum |y - ŷ|² / sum |y - mean y|²`` over all tokens.
The first token of a text has activations tens of times as large as others in Pythia and decides
every such number, so there is one with it and one without.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import require_model, several
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.hooks.table import axis_sizes, shape_at
from neox_lab.results import Result
from neox_lab.sae.published import SOURCE, Figures, figures
from neox_lab.sae.quality import definitions, fvu
from neox_lab.sae.rows import Texts, activations_of
from neox_lab.sae.sites import layer_of
from neox_lab.sae.splicing import splice

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.sae.dictionary import Dictionary
    from neox_lab.views import BarsView

_AT_ONCE = 256  # tokens; a TopK read as ReLU has thousands of active features at each
_BETTER = 1.25  # times smaller must the FVU of a neighbour be; trained ones fit their own best
_GOOD = 0.8  # FVU above which nothing is said to fit
_FAR = 2.0  # times the L0 that was expected, or its inverse
DENSE = 8  # more than this part of all features active is too many
DRAWN = 2.0  # longest bar
_STREAM = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
_READ = ("hook_resid_pre", "ln2.hook_normalized", "mlp.hook_in", "attn.hook_in", "hook_mlp_out")


@dataclasses.dataclass(frozen=True)
class Check(Result):
    """How a dictionary fits, at its site and around it.

    Attributes:
        dictionary: it, in words.
        model: whose activations.
        tokens: how many.
        frame: a row for each place: ``site_in``, ``site_out``, ``asked`` (the dictionary's own),
            ``fvu`` and ``l0`` of all tokens, ``fvu_without_first`` and ``l0_without_first`` of all
            but the first of each text.
        definitions: at its own site, the share of variance explained by the definitions in use
            (see ``quality``), with and without first tokens.
        published: what others measured of this dictionary, or None.
        expected_l0: how many features it was made to have active, or None.
        warnings: what is odd, in words.
    """

    dictionary: str
    model: str
    tokens: int
    frame: pd.DataFrame
    definitions: pd.DataFrame
    published: Figures | None
    expected_l0: float | None
    warnings: list[str]

    @property
    def fvu(self) -> float:
        """At its own site, without first tokens where there are others."""
        return number_in(self.frame.iloc[0], "fvu")

    @property
    def l0(self) -> float:
        """Active features of a token, likewise."""
        return number_in(self.frame.iloc[0], "l0")

    def view(self) -> BarsView:
        """FVU without first tokens at each place, those above 2 cut there."""
        from neox_lab.views import BarsView

        names, values = [], []
        for _, row in self.frame.iterrows():
            transcoder = row["site_in"] != row["site_out"]
            place = f"{short_name(row['site_in'])} → " * transcoder + short_name(row["site_out"])
            names.append(f"{place} (asked)" if row["asked"] else place)
            values.append(min(number_in(row, "fvu"), DRAWN))
        known = [f"{self.expected_l0:g} expected"] if self.expected_l0 is not None else []
        known += [f"{self.published.l0:g} published"] if self.published is not None else []
        beside = f" ({', '.join(known)})" if known else ""
        title = f"{self.dictionary}: FVU {self.fvu:.3f}, L0 {self.l0:.1f}{beside}"
        return BarsView(names, values, title, note_of(self.tokens, self.warnings))

    def __repr__(self) -> str:
        """The view's text, and what is odd."""
        return "\n".join([super().__repr__(), *self.warnings])


def note_of(tokens: int, warnings: list[str]) -> str:
    """What stands below the bars of a check."""
    note = f"variance unexplained; {tokens:,} tokens, the first of each text left out"
    count = len(warnings)
    return note + (f"; {count} warning{'s' * (count > 1)}: see .warnings" if count else "")


def check_fit(dictionary: Dictionary, model: HookedModel, texts: str | Texts) -> Check:
    """See ``Dictionary.check``.

    Raises:
        HookError: the dictionary does not fit into the model at all.
        InputError: no model, no texts, dropout is on, or there is no token.
        DataError: a text is longer than the model can read.
    """
    require_fit(dictionary, model)
    if isinstance(texts, str):
        texts = [texts]
    texts = several("texts", texts, "texts, or lists of token ids", InputError)
    pairs = list(_places(dictionary, model))
    names = [name for pair in pairs for name in pair]
    values, text = activations_of(model, texts, names)
    first = torch.ones_like(text, dtype=torch.bool)
    first[1:] = text[1:] != text[:-1]
    rows, told = [], []
    for site_in in dict.fromkeys(pair[0] for pair in pairs):
        outs = [pair[1] for pair in pairs if pair[0] == site_in]
        counts, rebuilt = _rebuilt(dictionary, values[site_in])
        for site_out in outs:
            asked = (site_in, site_out) == pairs[0]
            y = values[site_out]
            rows.append(place_row(site_in, site_out, asked, y, rebuilt, counts, first))
            if asked:
                told = _definitions(y, rebuilt, first)
    frame = make_frame(rows)
    frame = frame.sort_values("asked", ascending=False, kind="stable").reset_index(drop=True)
    name = str(model.config.name_or_path or "a model")
    known = figures(name, dictionary.site_out, dictionary.kind, dictionary.d_in, dictionary.latents)
    expected = dictionary.expected_l0
    return Check(
        f"{dictionary.kind}, {dictionary.latents:,} features of {_pair(frame.iloc[0])}",
        name,
        len(text),
        frame,
        make_frame(told),
        known,
        expected,
        _odd(frame, dictionary.latents, expected, known),
    )


def require_fit(dictionary: Dictionary, model: HookedModel) -> None:
    """Refuse a dictionary of another width, or of a site that the model lacks.

    Raises:
        HookError: names site and width.
        InputError: it is no model.
    """
    require_model(model)
    splice(dictionary, model.hook_points, axis_sizes(model.config, 1, 1), True)


def _places(dictionary: Dictionary, model: HookedModel) -> Iterator[tuple[str, str]]:
    """What a dictionary could read and write: its own sites first, then those around."""
    own = dictionary.site_in, dictionary.site_out
    yield own
    layer = layer_of(own[1]) or 0
    around = range(max(0, layer - 1), min(model.config.num_hidden_layers, layer + 2))
    candidates: list[tuple[str, str]] = []
    if dictionary.is_transcoder:
        block = f"blocks.{layer}."
        parts = [name.partition(f"blocks.{layer}.")[2] for name in own]
        candidates += [(f"blocks.{i}.{parts[0]}", f"blocks.{i}.{parts[1]}") for i in around]
        candidates += [(own[0], block + name) for name in _STREAM]
        candidates += [(block + name, own[1]) for name in _READ]
    else:
        names = ["hook_embed"] if layer < 2 else [f"blocks.{layer - 2}.hook_resid_post"]
        names += [f"blocks.{i}.{name}" for i in around for name in _STREAM]
        part = own[0].partition(f"blocks.{layer}.")[2]
        names += [f"blocks.{i}.{part}" for i in around]
        candidates = [(name, name) for name in names]
    sizes = axis_sizes(model.config, 1, 1)
    for pair in dict.fromkeys(candidates):
        points = [model.hook_points.get(name) for name in pair]
        widths = [shape_at(p, sizes)[2:] for p in points if p is not None]
        fit = [math.prod(width) for width in widths]
        if pair != own and fit == [dictionary.d_in, dictionary.d_out]:
            yield pair


@torch.no_grad()
def _rebuilt(dictionary: Dictionary, x: Tensor) -> tuple[Tensor, Tensor]:
    """How many features are active at each token, and what they write ``[token, d_out]``."""
    counts, written = [], []
    for part in torch.split(x, _AT_ONCE):
        moved = part.to(dictionary.b_enc.device)
        codes = dictionary.encode(moved)
        counts.append(codes.count.cpu())
        written.append(dictionary.decode(codes, moved).float().cpu())
    return torch.cat(counts), torch.cat(written)


def place_row(
    site_in: str,
    site_out: str,
    asked: bool,
    y: Tensor,
    rebuilt: Tensor,
    counts: Tensor,
    first: Tensor,
) -> dict[str, object]:
    """FVU and L0 at a place, of all tokens and without the first of each text."""
    y, rest = y.cpu(), ~first.cpu()
    row: dict[str, object] = {"site_in": site_in, "site_out": site_out, "asked": asked}
    row |= {"fvu": fvu(y, rebuilt), "l0": float(counts.double().mean())}
    row["fvu_without_first"] = fvu(y[rest], rebuilt[rest])
    row["l0_without_first"] = float(counts[rest].double().mean())
    return row


def _definitions(y: Tensor, rebuilt: Tensor, first: Tensor) -> list[dict[str, object]]:
    y, rest = y.cpu(), ~first.cpu()
    every, without = definitions(y, rebuilt), definitions(y[rest], rebuilt[rest])
    return [
        {"definition": name, "explained": every[name], "explained_without_first": without[name]}
        for name in every
    ]


def _odd(
    frame: pd.DataFrame, latents: int, expected: float | None, known: Figures | None
) -> list[str]:
    """What speaks against it, in words."""
    own, others = frame.iloc[0], frame.iloc[1:]
    here, l0 = number_in(own, "fvu"), number_in(own, "l0")
    place = _pair(own)
    found = []
    scores = [(number_in(row, "fvu"), _pair(row)) for _, row in others.iterrows()]
    scores = [score for score in scores if score[0] == score[0]]  # NaN is below nothing
    best, where = min(scores, default=(float("inf"), ""))
    if best < _GOOD and best * _BETTER < here:
        found.append(
            f"At {place} the dictionary leaves {here:.2f} of the variance unexplained, and at "
            f"{where} {best:.2f}: it seems to belong there."
        )
    elif not here < 1:
        found.append(
            f"At {place} the dictionary leaves {here:.2f} of the variance unexplained, more than a "
            "constant would, and no site around is better: it was trained on another model, or is "
            "read with another activation or normalisation than it was trained with."
        )
    sayings = [(expected, "was made to have"), (known and known.l0, f"has by {SOURCE}")]
    for number, words in sayings:
        if number and not 1 / _FAR < l0 / number < _FAR:
            found.append(f"{l0:.1f} features are active at a token; it {words} {number:g}.")
    if not expected and l0 * DENSE > latents:
        found.append(
            f"{l0:.0f} of {latents:,} features are active at a token, which is not sparse: a TopK "
            "read as ReLU looks like this."
        )
    return found


def number_in(row: pd.Series, name: str) -> float:
    """A number without first tokens, or with them where there are no others."""
    without = float(row[f"{name}_without_first"])
    return float(row[name]) if without != without else without


def _pair(row: pd.Series) -> str:
    read, written = row["site_in"], row["site_out"]
    return str(written) if read == written else f"{read} → {written}"


def short_name(site: str) -> str:
    """``resid_post 3`` for ``blocks.3.hook_resid_post``."""
    layer = layer_of(site)
    name = site.removeprefix(f"blocks.{layer}.").replace("hook_", "")
    return name if layer is None else f"{name} {layer}"
