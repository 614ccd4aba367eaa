"""What a format of dictionaries is: how its files are found and how one is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neox_lab.checks import COUNT, FINITE, SWITCH, check, shown
from neox_lab.errors import CheckpointError
from neox_lab.sae.activations import Activation
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.crosscoder import Crosscoder
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.formats.source import Source
from neox_lab.sae.normalisation import Normalise, unchanged

Read = Dictionary | CrossLayerTranscoder | Crosscoder
"""What files hold."""


class Found(NamedTuple):
    """A dictionary in a source, not read yet.

    Attributes:
        format: whose files these are.
        place: the folder, or the file where several lie in one folder.
        site: hook point that it writes; None where nothing says.
        refused: what it is, if that is nothing that can be read.
    """

    format: str
    place: str
    site: str | None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user says.

    Attributes:
        site: hook point, for files that do not say.
        kind: of activation, for files that do not say.
        k: active features, likewise.
        norm_scaling_factor: of SAELens's ``expected_average_only_in``.
        subtracts_b_dec: for transcoders of sparsify, whose files do not say.
        dtype: of the numbers.
        device: where they go.
    """

    site: str | None = None
    kind: str | None = None
    k: int | None = None
    norm_scaling_factor: float | None = None
    subtracts_b_dec: bool | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


class Parts(NamedTuple):
    """What a dictionary is made of, but its sites.

    Attributes:
        weights: the tensors.
        activation: which features are active.
        kind: what it is called.
        subtracts_b_dec: ``b_dec`` is taken from the input.
        facts: where what is known comes from.
        expected_l0: active features of a token, where that is known.
        normalise: what is done to the input.
    """

    weights: Weights
    activation: Activation
    kind: str
    subtracts_b_dec: bool
    facts: dict[str, str]
    expected_l0: float | None = None
    normalise: Normalise = unchanged

    def at(self, site_in: str, site_out: str | None = None, **facts: str) -> Dictionary:
        """The dictionary, at its place.

        Args:
            site_in: hook point that it reads.
            site_out: hook point that it writes, of transcoders.
            facts: where more of what is known comes from.
        """
        return Dictionary(
            self.weights,
            self.activation,
            site_in=site_in,
            site_out=site_out,
            subtracts_b_dec=self.subtracts_b_dec,
            normalise=self.normalise,
            kind=self.kind,
            sources={**facts, **self.facts},
            expected_l0=self.expected_l0,
        )


class Format(NamedTuple):
    """A layout of files.

    Attributes:
        name: whose.
        find: the dictionaries in a source.
        read: one of them.
    """

    name: str
    find: Callable[[Source], list[Found]]
    read: Callable[[Source, Found, Given], Read]


def whole(config: dict[str, Any], name: str, place: str) -> int:
    """A number of features or of active features in a configuration.

    Raises:
        CheckpointError: it is missing or no such number.
    """
    return check(f"{place}: {name}", config.get(name), COUNT, CheckpointError)


def switch(config: dict[str, Any], name: str, default: bool, place: str) -> bool:
    """A yes or no in a configuration.

    Raises:
        CheckpointError: it is something else.
    """
    return check(f"{place}: {name}", config.get(name, default), SWITCH, CheckpointError)


def scalar(tensor: Tensor, name: str, place: str) -> float:
    """The number that a tensor of one holds.

    Raises:
        CheckpointError: it holds several, or none that is finite.
    """
    if tensor.numel() != 1:
        raise CheckpointError(f"{place}: {name} is {list(tensor.shape)}; expected one number.")
    return check(f"{place}: {name}", tensor.item(), FINITE, CheckpointError)


def site_needed(found: Found, given: Given) -> str:
    """The hook point, of the file or of the user.

    Raises:
        CheckpointError: neither says.
    """
    site = found.site or given.site
    if site is None:
        raise CheckpointError(
            f"{found.place or 'These files'} ({found.format}): nothing says where in the network "
            "the dictionary belongs; give site=, such as ('resid_post', 3)."
        )
    return site


def unknown(what: str, value: object, place: str) -> CheckpointError:
    """The error for something that a later version of a library may have brought."""
    return CheckpointError(f"{place}: {what} {shown(value)} is not known here.")
