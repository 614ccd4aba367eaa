"""Two models of one shape, such as two revisions: how weights, activations and answers differ.

Activations are compared by linear CKA (Kornblith et al. 2019, arXiv:1905.00414), which does not
see rotations of the whole space, and by the mean squared difference, which does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from neox_lab.checks import check, one_of, one_or_several_texts, require_model, shown
from neox_lab.data.activations import site_names
from neox_lab.data.encoding import token_ids
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.family.contract import LanguageModel
from neox_lab.frames import make_frame
from neox_lab.model.identity import numbers_of
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.views import CurvesView, HeatmapView, StripView, View

SITES = ("attn_out", "mlp_out", "resid_post")
HEAD_WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")
Part = Literal["predictions", "activations", "weights"]


@dataclasses.dataclass(frozen=True)
class ComparisonResult(Result):
    """How a second model differs from a first.

    Attributes:
        weights: one row a parameter, and one for each head's query, key, value and output weights:
            ``parameter``, ``layer`` and ``head`` (missing for whole parameters), ``norm`` (of the
            first), ``difference`` (the norm of second minus first), ``relative`` (that, as a share
            of ``norm``; NaN where that is 0) and ``cosine``.
        activations: one row a site, over all tokens of the texts: ``site``, ``layer``, ``cka`` and
            ``squared_difference`` (mean over tokens and entries).
        predictions: one row a token: ``text``, ``pos``, ``token``, and ``kl_bits``, KL(first ‖
            second) of what may follow it, in bits.
    """

    weights: pd.DataFrame
    activations: pd.DataFrame
    predictions: pd.DataFrame

    @property
    def frame(self) -> pd.DataFrame:
        """``predictions``."""
        return self.predictions

    def view(self, part: Part = "predictions", text: int = 0) -> View:
        """A picture of one part.

        Args:
            part: ``predictions``: a text with the KL at each token; ``activations``: CKA by layer;
                ``weights``: the relative difference of each head.
            text: which text.

        Raises:
            InputError: no such part or text.
        """
        check("part", part, one_of("predictions", "activations", "weights"), InputError)
        if part == "activations":
            return self._layers()
        return self._heads() if part == "weights" else self._text(text)

    def _text(self, text: int) -> StripView:
        from neox_lab.views import StripView

        rows = self.predictions[self.predictions["text"] == text]
        if rows.empty:
            raise InputError(f"text={text}; there are {self.predictions['text'].nunique()} texts")
        title = "How much the next token's prediction differs"
        return StripView.values(list(rows["token"]), rows["kl_bits"], title, "KL in bits")

    def _layers(self) -> CurvesView:
        from neox_lab.views import CurvesView, Line

        lines = {
            str(site): Line(rows["layer"].to_numpy(float), rows["cka"])
            for site, rows in self.activations.groupby("site", sort=False)
        }
        return CurvesView("How alike activations are", lines, "layer", "CKA")

    def _heads(self) -> HeatmapView:
        from neox_lab.views import HeatmapView

        rows = self.weights.dropna(subset=["head"])
        squares = rows.assign(moved=rows["difference"] ** 2, own=rows["norm"] ** 2)
        sums = squares.groupby(["layer", "head"])[["moved", "own"]].agg(_sum)
        table = (sums["moved"] / sums["own"]).pow(0.5).unstack()
        return HeatmapView(
            table.to_numpy(float),
            [str(layer) for layer in table.index],
            [str(head) for head in table.columns],
            "layer",
            "head",
            "relative difference",
            centre=None,
            title="How far the weights of heads are apart",
        )


@torch.inference_mode()
def compare(
    model_a: LanguageModel, model_b: LanguageModel, texts: str | Sequence[str]
) -> ComparisonResult:
    """Compare two models of one shape: weights, activations and predictions.

        early, late = nl.load(revision="step1000"), nl.load()
        nl.dynamics.compare(early, late, "The king went to the city of")

    ``nl.lens.compare`` is for two lenses, such as those of two revisions on one prompt.

    Args:
        model_a: the first, a GPTNeoXForCausalLM whose tokenizer reads the texts.
        model_b: the second.
        texts: one or several; each is read by itself.

    Raises:
        InputError: models of different shapes or tokenizers, no text, a text without tokens, or
            models in which dropout is on.
    """
    for model in (model_a, model_b):
        if isinstance(model, str):
            raise InputError(
                f"{shown(model)} is a text; expected a model that is loaded, as by "
                "nl.load(revision=...)."
            )
        require_model(model)
        refuse_dropout(model)
    _check_shapes(model_a, model_b)
    listed = one_or_several_texts("texts", texts)
    ids = token_ids(model_a, listed)
    if not ids or not all(ids):
        raise InputError(f"texts={shown(texts)}; expected texts of at least one token.")
    if model_b.tokenizer is not None and token_ids(model_b, listed) != ids:
        raise InputError("The models' tokenizers read these texts differently.")
    names = {name: site for site in SITES for name in site_names(model_a, site)}
    sums = {name: _Alike() for name in names}
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(ids):
        one, other = (_activations(model, text, list(names)) for model in (model_a, model_b))
        kl = _kl(one[0], other[0]).tolist()
        pieces = model_a.to_str_tokens(torch.tensor(text))
        for pos, (piece, value) in enumerate(zip(pieces, kl, strict=True)):
            rows.append({"text": number, "pos": pos, "token": piece, "kl_bits": value})
        for name, alike in sums.items():
            alike.add(one[1][name], other[1][name])
    activations = [
        {"site": site, "layer": int(name.split(".")[1]), **sums[name].values()}
        for name, site in names.items()
    ]
    weights = make_frame(_weights(model_a, model_b)).astype({"layer": "Int64", "head": "Int64"})
    return ComparisonResult(weights, make_frame(activations), make_frame(rows))


def _check_shapes(model_a: LanguageModel, model_b: LanguageModel) -> None:
    """See that both have the same parameters.

    Raises:
        InputError: they do not.
    """
    one, other = (
        {name: tuple(each.shape) for name, each in model.named_parameters()}
        for model in (model_a, model_b)
    )
    wrong = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if wrong:
        raise InputError(
            f"The models have different shapes: {wrong[0]} is {one.get(wrong[0])} in the first and "
            f"{other.get(wrong[0])} in the second."
        )


def _activations(
    model: LanguageModel, text: list[int], names: list[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits ``[pos, vocab]`` and activations ``[pos, d]`` of a text, float64 on the CPU."""
    ids = torch.tensor([text], device=model.device)
    output, cache = model.run_with_cache(ids, names_filter=names)
    return output.logits[0].double().cpu(), {name: cache[name][0].double().cpu() for name in names}


def _kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one ‖ other) in bits at each position."""
    first, second = one.log_softmax(-1), other.log_softmax(-1)
    return (first.exp() * (first - second)).sum(-1).clamp(min=0) / math.log(2)


class _Alike:
    """Linear CKA and mean squared difference of pairs of vectors, added up text by text."""

    def __init__(self) -> None:
        self.count, self.squares = 0, 0.0
        self.first: Tensor | None = None
        self.means: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add the vectors ``[pos, d]`` of a text."""
        both = torch.cat([one, other], dim=1)
        # Taken from the first vector: of what hardly varies, large sums would leave rounding alone.
        self.first = both[:1] if self.first is None else self.first
        both = both - self.first
        products, means = both.T @ both, both.sum(0)
        self.products = products if self.products is None else self.products + products
        self.means = means if self.means is None else self.means + means
        self.count += len(both)
        self.squares += float((one - other).square().mean(1).sum())

    def values(self) -> dict[str, float]:
        """Both numbers."""
        assert self.products is not None and self.means is not None
        centred = self.products - torch.outer(self.means, self.means) / self.count
        half = len(centred) // 2
        across = float(centred[:half, half:].norm() ** 2)
        own = float(centred[:half, :half].norm() * centred[half:, half:].norm())
        return {
            "cka": across / own if own else math.nan,
            "squared_difference": self.squares / self.count,
        }


def _weights(model_a: LanguageModel, model_b: LanguageModel) -> Iterator[dict[str, Any]]:
    """A row for each parameter, and for each head's weights."""
    others = dict(model_b.named_parameters())
    for name, weight in model_a.named_parameters():
        one, two = numbers_of(model_a, name, weight), numbers_of(model_b, name, others[name])
        yield {"parameter": name, "layer": None, "head": None, **_apart(one, two)}
    for layer, (block, other) in enumerate(zip(model_a.blocks, model_b.blocks, strict=True)):
        for name in HEAD_WEIGHTS:
            pairs = zip(getattr(block, name), getattr(other, name), strict=True)
            for head, (one, two) in enumerate(pairs):
                yield {"parameter": name, "layer": layer, "head": head, **_apart(one, two)}


def _sum(values: pd.Series[float]) -> float:
    """The sum; pandas' own would leave NaN out."""
    return float(values.to_numpy().sum())


def _apart(one: Tensor, other: Tensor) -> dict[str, float]:
    first, second = (each.detach().double().cpu().flatten() for each in (one, other))
    difference, size = float((second - first).norm()), float(first.norm())
    product = size * float(second.norm())
    return {
        "norm": size,
        "difference": difference,
        "relative": difference / size if size else math.nan,
        "cosine": float(first @ second) / product if product else math.nan,
    }
