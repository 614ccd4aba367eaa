"""How far along a direction each token of a text lies."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.frames import make_frame
from neox_lab.model.masking import own_positions
from neox_lab.results import FrameResult
from neox_lab.selections import entry

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.family.text import Inputs
    from neox_lab.steering.directions import Direction
    from neox_lab.views import View

UNITS = ("side (−1 negative, 1 positive)", "component, in lengths of the direction")


@dataclasses.dataclass(frozen=True)
class Projection(FrameResult):
    """Where the tokens of texts lie along a direction.

    Attributes:
        pieces: the tokens of each text.
        components: of the activations along the direction's unit vector, for each text
            ``[site, pos]``, float32 on the CPU.
        values: the same where −1 is the mean of the negative examples and 1 that of the positive
            ones; of a direction without examples the component in lengths of the direction.
        sites: hook names.
        unit: what ``values`` count.
    """

    pieces: list[list[str]]
    components: list[Tensor]
    values: list[Tensor]
    sites: list[str]
    unit: str

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each token and site: text, pos, token, site, component, value."""
        rows = [
            (text, pos, token, site, float(components[at, pos]), float(values[at, pos]))
            for text, (pieces, components, values) in enumerate(
                zip(self.pieces, self.components, self.values, strict=True)
            )
            for at, site in enumerate(self.sites)
            for pos, token in enumerate(pieces)
        ]
        return make_frame(rows, columns=["text", "pos", "token", "site", "component", "value"])

    def view(self, text: int = 0) -> View:
        """One text with its values below the tokens, or, of several sites, as a map.

        The colours are those of the largest value after the first token, whose activations are of
        another size than all others.

        Args:
            text: which one.

        Raises:
            InputError: there is no such text.
        """
        from neox_lab.views import HeatmapView, StripView

        text = entry("text", text, len(self.pieces), InputError)
        pieces, values = self.pieces[text], self.values[text].numpy()
        title = "Along the direction" + (f" at {self.sites[0]}" if len(self.sites) == 1 else "")
        later = values[:, 1:] if len(pieces) > 1 else values
        largest = float(np.abs(later[np.isfinite(later)]).max(initial=1e-6))
        if len(self.sites) == 1:
            return StripView.values(pieces, values[0], title, self.unit, largest)
        names = [name.removeprefix("blocks.").replace(".hook_", " ") for name in self.sites]
        return HeatmapView(
            values, names, pieces, "site", "position", self.unit, title=title,
            scale=(-largest, largest),
        )  # fmt: skip


def project(direction: Direction, inputs: Inputs) -> Projection:
    """See ``Direction.project``."""
    model = direction.model
    refuse_dropout(model)
    prepared = model.prepare_inputs(inputs)
    names = list(direction.sites)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names)
    given = prepared.get("input_ids", prepared.get("inputs_embeds"))
    assert given is not None
    batch, length = given.shape[:2]
    mask = prepared.get("attention_mask")
    text = own_positions(None, mask, length, 0, torch.device("cpu")).expand(batch, -1) >= 0
    found = torch.stack([_along(cache[name], direction, name) for name in names], dim=1)
    components = [found[row][:, text[row]] for row in range(batch)]
    known = all(not np.isnan(at.origin) for at in direction.sites.values())
    values = [_counted(direction, each, known) for each in components]
    pieces = [_pieces(model, prepared, row, text[row]) for row in range(batch)]
    return Projection(pieces, components, values, names, UNITS[0] if known else UNITS[1])


def _along(activation: Tensor, direction: Direction, name: str) -> Tensor:
    """Components of activations at a site ``[batch, pos]``."""
    vector = direction.sites[name].vector.double()
    flat = activation.flatten(2).double().cpu()
    return (flat @ (vector / vector.norm())).float()


def _counted(direction: Direction, components: Tensor, known: bool) -> Tensor:
    """Components ``[site, pos]`` in the units of the examples."""
    sites = list(direction.sites.values())
    norms = torch.tensor([at.norm for at in sites], dtype=torch.float32)[:, None]
    if not known:
        return components / norms
    origins = torch.tensor([at.origin for at in sites], dtype=torch.float32)[:, None]
    return 2 * (components - origins) / norms - 1


def _pieces(model: HookedModel, prepared: dict[str, Tensor], row: int, text: Tensor) -> list[str]:
    """The tokens of one text, or numbers where there is no tokenizer or no tokens."""
    if model.tokenizer is None or "input_ids" not in prepared:
        return [str(at) for at in range(int(text.sum()))]
    return model.tokenizer.pieces(prepared["input_ids"][row].cpu()[text].tolist())
