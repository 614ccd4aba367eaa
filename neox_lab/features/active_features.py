"""Which features are active at each token of a text."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from neox_lab.checks import check, whole
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.experiments.patching.prompts import PromptsLike, read_prompts
from neox_lab.features.misses import tell_of_misfit
from neox_lab.features.reading import OfOneSite, encoded, written_site
from neox_lab.frames import make_frame
from neox_lab.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.views import HeatmapView, StripView

SHOWN = 20  # features in the picture


@dataclasses.dataclass(frozen=True)
class ActiveFeatures(Result):
    """The active features of texts.

    Attributes:
        frame: one row for each token and active feature: ``text``, ``pos`` (in the text's own
            tokens), ``token``, ``latent``, ``activation``; at each token the largest first.
        pieces: the tokens of each text, padding left out.
        site: where the dictionary writes.
        latents: how many features it has.
        missed: the share of the squared norm of what stands there that the features miss in these
            texts, first tokens left out; NaN where there are no others, infinite where nothing
            stands.
    """

    frame: pd.DataFrame
    pieces: list[list[str]]
    site: str
    latents: int
    missed: float = math.nan

    @property
    def features(self) -> pd.DataFrame:
        """One row for each feature that is active anywhere, the largest activation first.

        Columns: ``latent``, ``tokens`` (at how many), ``largest`` and ``mean`` activation there,
        and the ``token`` with the largest.
        """
        by_size = self.frame.sort_values("activation", ascending=False, kind="stable")
        groups = by_size.groupby("latent", sort=False)
        found = groups.agg(
            tokens=("activation", "size"),
            largest=("activation", "max"),
            mean=("activation", "mean"),
            token=("token", "first"),
        )
        return found.reset_index()

    def activations(
        self, latent: int, text: int = 0
    ) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Activation of one feature at each token of a text.

        Args:
            latent: its number.
            text: which text.

        Raises:
            InputError: no such feature or text.
        """
        latent = check("latent", latent, whole(least=0, most=self.latents - 1), InputError)
        text = check("text", text, whole(least=0, most=len(self.pieces) - 1), InputError)
        values = np.zeros(len(self.pieces[text]), dtype=np.float32)
        rows = self.frame[(self.frame["latent"] == latent) & (self.frame["text"] == text)]
        values[rows["pos"].to_numpy(dtype=int)] = rows["activation"].to_numpy(dtype=np.float32)
        return values

    def strip(self, latent: int, text: int = 0) -> StripView:
        """A text, with the activation of one feature below each token.

        Args:
            latent: its number.
            text: which text.

        Raises:
            InputError: no such feature or text.
        """
        from neox_lab.views import StripView

        values = self.activations(latent, text)
        title = f"Feature {latent} of {self.site}"
        return StripView.values(self.pieces[text], values, title, "activation")

    def view(self) -> HeatmapView:
        """The features of largest activation in the first text, token by token."""
        from neox_lab.views import HeatmapView

        first = dataclasses.replace(self, frame=self.frame[self.frame["text"] == 0])
        latents = first.features["latent"].tolist()[:SHOWN] or [0]
        total = f", the {len(latents)} of largest activation" if len(self.frame) else ": none"
        values = np.stack([self.activations(latent) for latent in latents])
        return HeatmapView(
            values,
            [f"f{latent}" for latent in latents],
            self.pieces[0],
            "feature",
            "position",
            "activation",
            centre=0.0 if (values < 0).any() else None,
            title=f"Active features of {self.site}{total}",
            note=""
            if not math.isfinite(self.missed)
            else f"They miss {100 * self.missed:.0f} % of what stands there (squared norm, first "
            "tokens left out).",
        )


def active(model: HookedModel, dictionary: OfOneSite, inputs: PromptsLike) -> ActiveFeatures:
    """Which features are active at each token.

    Args:
        model: any of the classes.
        dictionary: for this model; or a layer of a cross-layer transcoder,
            ``transcoder.layer(2)``.
        inputs: a string, a list of strings, token ids ``[batch, pos]``, or a mapping with
            ``input_ids`` and ``attention_mask``. Padding is left out.

    Returns:
        A table of features by token; ``strip(latent)`` shows one of them in its text, and
        ``missed`` is what they leave out. Most of it is warned of: the dictionary may be another
        model's.

    Raises:
        InputError: inputs that are no texts, no model, no dictionary, or dropout is on.
        HookError: the dictionary does not fit the model.
    """
    site = written_site(model, dictionary)
    refuse_dropout(model)
    prompts = read_prompts(model, inputs, "inputs")
    codes, missed = encoded(model, dictionary, prompts)
    tell_of_misfit(dictionary, site, missed, prompts.own)
    own, tokenizer = prompts.own.cpu(), model.tokenizer
    pieces = []
    for ids, mask in zip(prompts.ids.cpu(), own, strict=True):
        kept = ids[mask].tolist()
        pieces.append([f"⟨{i}⟩" for i in kept] if tokenizer is None else tokenizer.pieces(kept))
    values, indices = codes.values.cpu(), codes.indices.cpu()
    text, column, slot = ((values != 0) & own[..., None]).nonzero().unbind(dim=1)
    pos = (own.cumsum(dim=1) - 1)[text, column]
    tokens = [pieces[t][p] for t, p in zip(text.tolist(), pos.tolist(), strict=True)]
    frame = make_frame(
        {
            "text": text.numpy(),
            "pos": pos.numpy(),
            "token": np.array(tokens, dtype=object),
            "latent": indices[text, column, slot].numpy(),
            "activation": values[text, column, slot].float().numpy(),
        }
    )
    listed = [list(map(str, row)) for row in pieces]
    return ActiveFeatures(frame, listed, site, dictionary.latents, missed)
