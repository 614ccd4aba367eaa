"""How many layers fit, and where each is.

What is no layer (embeddings, final layer norm, head) stays in memory on the first device, and so
do the vectors of all layers; matrices are what takes room. Layers fill the devices in order, and
those for which no room is left are read from their files for each pass. What stays is a beginning
of the network and not what was used last: a pass visits every layer once, so by the time a layer
is needed again it would just have been thrown out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neox_lab.errors import ConfigError, DeviceError
from neox_lab.model.network import Network
from neox_lab.sizes import parse_size, size_in_words
from neox_lab.streaming.store import AT_A_TIME, CONVERTED

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
Budget = tuple[torch.device, int]
"""A device and how many bytes of weights it may hold."""


def split_name(name: str) -> tuple[int, str] | None:
    """Layer and name within the block of a parameter; None for one that is in no layer."""
    found = _LAYER.search(name)
    return (int(found[1]), found[2]) if found else None


@dataclass(frozen=True)
class Sizes:
    """How many bytes of weights are where.

    Attributes:
        fixed: outside the layers, and the vectors in them.
        layers: the matrices of each layer.
        passing: what converting a matrix on its way takes beside it.
    """

    fixed: int
    layers: tuple[int, ...]
    passing: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.fixed + sum(self.layers)


@dataclass(frozen=True)
class Placement:
    """Where each layer is.

    Attributes:
        devices: on which device each layer is computed.
        streamed: which layers are read from their files for each pass.
        main: the device of everything that is no layer.
    """

    devices: tuple[torch.device, ...]
    streamed: frozenset[int]
    main: torch.device


def devices_of(network: Network) -> tuple[torch.device, ...] | None:
    """On which device each layer is; None if all are where the rest of the network is."""
    blocks = (network.block(layer) for layer in range(len(network.layers)))
    devices = tuple(next(b.input_layernorm.parameters()).device for b in blocks)
    main = next(network.parameters()).device
    return devices if {*devices} - {main} else None


def sizes_of(
    parameters: Mapping[str, Tensor],
    layers: int,
    dtype: torch.dtype,
    stored: Mapping[str, torch.dtype],
) -> Sizes:
    """The sizes of a model's weights in ``dtype``; tied weights count twice.

    Args:
        parameters: by name; on ``meta`` or not.
        layers: how many there are.
        dtype: that they are to have.
        stored: by name the dtypes that they have in their files; ``dtype`` of those left out.
    """
    fixed, of_layers, passing = 0, [0] * layers, 0
    for name, parameter in parameters.items():
        where, nbytes = split_name(name), parameter.numel() * dtype.itemsize
        if where is None or parameter.dim() < 2:
            fixed += nbytes
        else:
            of_layers[where[0]] += nbytes
            if (found := stored.get(name, dtype)) != dtype:
                passing = max(passing, min(parameter.numel() * found.itemsize, CONVERTED))
    return Sizes(fixed, tuple(of_layers), passing)


def budgets(max_memory: object, devices: Sequence[torch.device]) -> list[Budget]:
    """The budget of each device that ``max_memory`` names, in the order of ``devices``.

    Args:
        max_memory: sizes by device: ``{"cpu": "8GB", 0: "20GB"}``.
        devices: which there are.

    Raises:
        ConfigError: it is no such mapping, or names a device that is not there.
    """
    if not isinstance(max_memory, Mapping) or not max_memory:
        raise ConfigError(
            f"max_memory={max_memory!r}; expected sizes by device: "
            '{"cpu": "8GB"} or {"cpu": "8GB", 0: "20GB"}.'
        )
    given: dict[torch.device, int] = {}
    for device, size in max_memory.items():
        try:
            place = torch.device("cuda", device) if isinstance(device, int) else device
            place = torch.device(place)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"max_memory names {device!r}, which is no device.") from error
        if place not in devices:
            raise ConfigError(
                f"max_memory names {device!r}; the devices here are {', '.join(map(str, devices))}."
            )
        given[place] = parse_size(size, f"max_memory[{device!r}]", ConfigError)
    return [(device, given[device]) for device in devices if device in given]


def place(sizes: Sizes, room: Sequence[Budget], *, balanced: bool = True) -> Placement:
    """Where each layer goes, within the budgets.

    Args:
        sizes: of the model.
        room: devices with their budgets; what is no layer goes to the first.
        balanced: share layers out evenly where all fit, instead of filling one device after the
            other.

    Raises:
        DeviceError: what must stay and two layers do not fit the first budget.
    """
    main, first = room[0]
    free = [first - sizes.fixed, *(nbytes for _, nbytes in room[1:])]
    devices = _fill(sizes.layers, free, even=balanced)
    if None not in devices and free[0] >= 0:
        return Placement(tuple(room[at][0] for at in devices if at is not None), frozenset(), main)
    # Some are streamed, so the first device needs room for those on their way.
    waiting = AT_A_TIME * max(sizes.layers, default=0) + sizes.passing
    least = sizes.fixed + waiting
    if first < least:
        raise DeviceError(
            f"max_memory gives {main} {size_in_words(first)} for weights, which is too little: "
            f"{size_in_words(sizes.fixed)} stay in memory (embeddings, head, vectors), and two "
            f"layers of {size_in_words(max(sizes.layers))} must fit beside them, one to compute "
            f"with and one on its way. Give at least {size_in_words(least)} ({least} bytes)."
        )
    devices = _fill(sizes.layers, [free[0] - waiting, *free[1:]], even=False)
    return Placement(
        tuple(main if at is None else room[at][0] for at in devices),
        frozenset(layer for layer, at in enumerate(devices) if at is None),
        main,
    )


def _fill(layers: Sequence[int], free: Sequence[int], *, even: bool) -> list[int | None]:
    """Which device each layer goes to, from the first on; None for those that find no room.

    Args:
        layers: bytes of each.
        free: bytes of each device.
        even: stop at a device's share of the layers, unless what is left would not fit then.
    """
    made: list[int | None] = []
    left = list(free)
    share = -(-len(layers) // max(1, len(free)))
    at, here = 0, 0
    for nbytes in layers:
        while at < len(left) and (nbytes > left[at] or (even and here >= share)):
            at, here = at + 1, 0
        if at == len(left):
            return (
                _fill(layers, free, even=False)
                if even
                else made + [None] * (len(layers) - len(made))
            )
        left[at] -= nbytes
        here += 1
        made.append(at)
    return made
