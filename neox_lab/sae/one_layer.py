"""One layer of a cross-layer transcoder, for questions that are asked of features of one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import check, whole
from neox_lab.errors import InputError
from neox_lab.hooks.splicing import Spliced
from neox_lab.model.hook_points import HookPoint
from neox_lab.sae.codes import Codes

if TYPE_CHECKING:
    from neox_lab.sae.cross_layer import CrossLayerTranscoder


@dataclasses.dataclass(frozen=True, eq=False)
class TranscoderLayer:
    """The features that one layer of a cross-layer transcoder reads; see its ``layer``.

    ``model.spliced`` puts the whole transcoder into the network, as these features write to other
    layers, too.

    Attributes:
        transcoder: all of it.
        number: which layer.
    """

    transcoder: CrossLayerTranscoder
    number: int

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            InputError: there is no such layer.
        """
        check("layer", self.number, whole(least=0, most=self.transcoder.layers - 1), InputError)

    @property
    def site_in(self) -> str:
        """Hook point it reads."""
        return self.transcoder.sites_in[self.number]

    @property
    def site_out(self) -> str:
        """The first hook point it writes, where its own hook points stand."""
        return self.transcoder.sites_out[self.number]

    @property
    def latents(self) -> int:
        """How many features there are."""
        return self.transcoder.latents

    @property
    def kind(self) -> str:
        """What it is called."""
        return self.transcoder.kind

    @property
    def rows(self) -> Tensor:
        """What a feature of activation 1 writes, in all layers together, ``[latent, d_out]``."""
        layers = range(self.number, self.transcoder.layers)
        return torch.stack([self.transcoder.rows(self.number, j) for j in layers]).sum(dim=0)

    def encode(self, x: Tensor) -> Codes:
        """The active features of tokens.

        Args:
            x: ``[*tokens, d_in]``, what stands at ``site_in``.

        Returns:
            Codes ``[*tokens, slot]``.

        Raises:
            InputError: another width, or features that are chosen among those of all layers.
        """
        return self.transcoder.encode_layer(self.number, x)

    def splice(
        self, points: Mapping[str, HookPoint], known: Mapping[str, int], error: bool
    ) -> list[Spliced]:
        """How the whole transcoder goes into a network; ``model.spliced(layer)`` asks.

        Args:
            points: the network's hook points.
            known: lengths of the network's own axes.
            error: what it misses is added.

        Raises:
            HookError: it does not fit there.
        """
        return self.transcoder.splice(points, known, error)

    def __repr__(self) -> str:
        """What it is in one line."""
        return f"{self.transcoder!r}.layer({self.number})"
