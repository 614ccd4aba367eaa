"""DAS at every layer and position: where a variable can be found, as a heat map."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check, shown
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.interchange.alignment import das
from neox_lab.interchange.outcomes import PERMUTED, RANDOM, UNTRAINED, WHOLE
from neox_lab.interchange.pairs import Pairs
from neox_lab.interchange.sites import Pos, Site
from neox_lab.progress import Progress
from neox_lab.results import GridResult
from neox_lab.selections import entries, kept_axis

if TYPE_CHECKING:
    import pandas as pd

    from neox_lab.family.contract import HookedModel
    from neox_lab.selections import Selection
    from neox_lab.views import HeatmapView

_NULLS = (RANDOM, PERMUTED, UNTRAINED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterchangeMap(GridResult):
    """Interchange accuracy of DAS at each layer and position.

    Attributes:
        values: accuracy on held-out pairs whose label changes, ``[layer, pos]``.
        whole: the same where the whole site is exchanged, ``[layer, pos]``.
        nulls: mean accuracy of each null's draws ``[null, layer, pos]``: random subspaces, and, if
            they were asked for, permuted labels and a random model.
        directions: what was found, ``[layer, pos, width, rank]``.
        hook: first part of the short form of the hook points.
        variable: of the causal model.
        chance: share of the commonest label.
        pairs: on how many pairs each cell was tested.
        unchanged: how many were left out because their label does not change.
    """

    whole: Tensor
    nulls: Tensor
    directions: Tensor
    hook: str
    variable: str
    chance: float
    pairs: int
    unchanged: int

    def _columns(self) -> dict[str, Tensor]:
        names = [name.replace(" ", "_") for name in _NULLS]
        found = {"accuracy": self.values, "whole_site": self.whole}
        return found | dict(zip(names, self.nulls, strict=False))

    def _rank(self, frame: pd.DataFrame) -> pd.Series[float]:
        return frame["accuracy"]

    def view(self) -> HeatmapView:
        """A heat map, a row a layer."""
        from neox_lab.views import HeatmapView

        worst = float(self.nulls.max())
        note = (
            f"{self.pairs} held-out pairs; {self.unchanged} more, whose label does not change, "
            f"left out. Chance {self.chance:.2f}, largest null {worst:.2f}."
        )
        rank = self.directions.shape[-1]
        title = f"DAS, {rank} direction{'s' if rank > 1 else ''} of {self.hook}"
        return HeatmapView(
            self.values.numpy(),
            self.labels["layer"],
            self.labels["pos"],
            "layer",
            "position",
            "interchange accuracy",
            None,
            f"{title}: {self.variable}" if self.variable else title,
            scale=(0.0, 1.0),
            note=note,
        )


def sweep(
    model: HookedModel,
    pairs: Pairs,
    held_out: Pairs,
    positions: Mapping[str, Pos] | Sequence[str],
    rank: int = 1,
    *,
    hook: str = "resid_post",
    layers: Selection = None,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    seed: int = 0,
    nulls: int = 1,
    progress: bool = True,
) -> InterchangeMap:
    """DAS at every layer and some positions.

    Args:
        model: see ``das``.
        pairs: to train on.
        held_out: to test on, other pairs.
        positions: places by name, such as ``{"last": -1}``, or names of roles of the pairs.
        rank: how many directions.
        hook: what short forms call the hook point, one in each layer.
        layers: which; None for all.
        epochs: see ``das``.
        batch_size: see ``das``.
        learning_rate: see ``das``.
        seed: see ``das``.
        nulls: see ``das``; one draw in each cell makes many, and with 0 it takes a third of the
            time.
        progress: show a bar.

    Raises:
        InputError: see ``das``; or no positions, or layers that are not there.
        HookNameError: there is no such hook point.
        HookError: a function is spliced into the model.
    """
    refuse_dropout(model)
    progress = check("progress", progress, SWITCH, InputError)
    if not isinstance(hook, str):
        raise InputError(f"hook={shown(hook, 80)}; expected a name such as 'resid_post'.")
    places = _places(positions)
    numbers = _layers(layers, model.config.num_hidden_layers)
    cells = []
    total = len(numbers) * len(places)
    with Progress(total=total, unit="cell", silent=not progress) as bar:
        for layer in numbers:
            for where in places.values():
                found = das(
                    model,
                    pairs,
                    held_out,
                    Site((hook, layer), where),
                    rank,
                    epochs=epochs,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    seed=seed,
                    nulls=nulls,
                    progress=False,
                )
                cells.append(found)
                bar.update(note=f"accuracy {found.accuracy:.2f}")
    shape = (len(numbers), len(places))
    by_name = [cell.frame.set_index("run")["accuracy"] for cell in cells]
    null_cells = torch.tensor([list(cell.nulls.values()) for cell in cells], dtype=torch.float32)
    subspaces = [cell.site.subspace for cell in cells]
    widths = {tuple(each.shape) for each in subspaces if each is not None}
    if len(widths) > 1:
        raise InputError(f"positions={shown(positions, 80)} have different numbers of places.")
    stacked = torch.stack([each for each in subspaces if each is not None])
    return InterchangeMap(
        values=torch.tensor([cell.accuracy for cell in cells], dtype=torch.float32).view(shape),
        axes=("layer", "pos"),
        labels={"layer": list(map(str, numbers)), "pos": list(places)},
        whole=torch.tensor([float(each[WHOLE]) for each in by_name], dtype=torch.float32).view(
            shape
        ),
        nulls=null_cells.T.reshape(-1, *shape),
        directions=stacked.view(*shape, *stacked.shape[1:]),
        hook=hook,
        variable=held_out.variable,
        chance=held_out.chance,
        pairs=cells[0].pairs,
        unchanged=cells[0].unchanged,
    )


def _places(positions: object) -> dict[str, Pos]:
    """Places by name.

    Raises:
        InputError: there is none, or they have no names.
    """
    if isinstance(positions, Mapping) and positions:
        return {str(name): where for name, where in positions.items()}
    if isinstance(positions, list | tuple) and positions:
        if all(isinstance(name, str) for name in positions):
            return {name: name for name in positions}
    raise InputError(
        f"positions={shown(positions, 80)}; expected places by name, such as {{'last': -1}}, or "
        "names of roles."
    )


def _layers(which: object, count: int) -> list[int]:
    """Numbers of layers.

    Raises:
        InputError: some are not there, or there is none.
    """
    if which is None:
        return list(range(count))
    found = entries("layers", kept_axis("layers", which, InputError), count, InputError)
    numbers = range(count)[found] if isinstance(found, slice) else found
    listed = [numbers] if isinstance(numbers, int) else list(numbers)
    if not listed:
        raise InputError(f"layers={shown(which)} chooses none of {count}.")
    return listed
