"""Where the weights of a checkpoint go, if not all to the memory of one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neox_lab.checkpoint.reading import TensorSource
from neox_lab.errors import CheckpointError, ConfigError
from neox_lab.model.network import Network
from neox_lab.streaming import LayerStore, devices_of, stream
from neox_lab.streaming.files import OpenFile, Place
from neox_lab.streaming.placement import Placement, Sizes, budgets, place, split_name

DISK = "disk"
"""Where layers are that are read from their files for each pass, in a mapping of devices."""
PLANS = ("auto", "balanced", "balanced_low_0", "sequential")


def placement_of(
    device_map: object,
    max_memory: object,
    sizes: Sizes,
    one_device: Callable[[Any], torch.device],
) -> Placement | None:
    """Where layers go; None for all weights to one device, within no budget.

    Args:
        device_map: a plan's name, a device, or devices by layer or module.
        max_memory: budgets by device, or None.
        sizes: of the model.
        one_device: the device that a value of ``device_map`` means.

    Raises:
        ConfigError: a mapping that leaves out layers, or budgets that mean nothing.
        DeviceError: too little memory.
    """
    if isinstance(device_map, Mapping) and _spreads(device_map):
        if max_memory is not None:
            raise ConfigError(
                "device_map says where each layer goes, and max_memory how many fit: give one of "
                'both, or device_map="auto".'
            )
        return _placed(device_map, len(sizes.layers), one_device)
    planned = isinstance(device_map, str) and device_map in PLANS
    if planned and (max_memory is not None or torch.cuda.device_count() > 1):
        cuda = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        if max_memory is None:
            # A tenth is left for activations.
            room = [(device, torch.cuda.mem_get_info(device)[0] * 9 // 10) for device in cuda]
        else:
            room = budgets(max_memory, [*cuda, torch.device("cpu")])
        return place(sizes, room, balanced=device_map != "sequential")
    if max_memory is None:
        return None
    return place(sizes, budgets(max_memory, [one_device(device_map)]))


def _spreads(device_map: Mapping[object, object]) -> bool:
    """Whether a mapping names layers one by one, or several devices."""
    several = len({str(device) for device in device_map.values()}) > 1
    return several or any(isinstance(name, int) for name in device_map)


def _placed(
    device_map: Mapping[object, object], layers: int, one_device: Callable[[Any], torch.device]
) -> Placement:
    """A placement from devices by number of the layer or name of the module."""
    of_layers: dict[int, object] = {}
    others: dict[str, object] = {}
    for name, device in device_map.items():
        at = name if isinstance(name, int) else split_name(f"{name}.all")
        layer = at if isinstance(at, int) or at is None else at[0]
        if layer is None:
            others[str(name)] = device
        elif 0 <= layer < layers:
            of_layers[layer] = device
        else:
            raise ConfigError(f"device_map names layer {layer}; there are 0 to {layers - 1}.")
    everywhere = [others.pop(name) for name in ("", "gpt_neox") if name in others]
    missing = [layer for layer in range(layers) if layer not in of_layers and not everywhere]
    if missing:
        raise ConfigError(f'device_map leaves out layer {missing[0]}; "" stands for all the rest.')
    each = [of_layers.get(layer, *everywhere[:1]) for layer in range(layers)]
    known = [*others.values(), *everywhere, *(device for device in each if device != DISK), "cpu"]
    if len({str(device) for device in others.values()}) > 1 or known[0] == DISK:
        raise ConfigError(
            f"device_map={device_map!r} has what is no layer (embeddings, final layer norm, head) "
            'on several devices, or on disk: that stays on one here, such as {"": 0}.'
        )
    main = one_device(known[0])
    return Placement(
        tuple(main if device == DISK else one_device(device) for device in each),
        frozenset(layer for layer, device in enumerate(each) if device == DISK),
        main,
    )


def spread(model: nn.Module) -> None:
    """Tell the network of a model on which devices its layers are, if on several."""
    network = getattr(model, "gpt_neox", model)
    assert isinstance(network, Network)
    network.devices = devices_of(network)


def device_of(name: str, placement: Placement | None, one: torch.device) -> torch.device:
    """The device that a parameter goes to."""
    if placement is None:
        return one
    at = split_name(name)
    return placement.main if at is None else placement.devices[at[0]]


def streamed_names(parameters: Mapping[str, Tensor], placement: Placement | None) -> set[str]:
    """The parameters that stay in their files: matrices of the layers that find no room."""
    if placement is None:
        return set()
    layers = {
        name: split_name(name) for name, parameter in parameters.items() if parameter.dim() > 1
    }
    return {name for name, at in layers.items() if at is not None and at[0] in placement.streamed}


def stream_from(
    model: nn.Module,
    names: set[str],
    sources: Mapping[str, str],
    tensors: TensorSource,
    placement: Placement,
    dtype: torch.dtype,
) -> LayerStore:
    """Let a model read some of its weights from their files as it needs them.

    Args:
        model: whose parameters ``names`` are on ``meta``.
        names: of parameters.
        sources: where each parameter is in the checkpoint.
        tensors: the checkpoint.
        placement: where layers are.
        dtype: that weights are to have.

    Raises:
        CheckpointError: a weight is not in a safetensors file.
    """
    files: dict[str, OpenFile] = {}
    found: dict[str, dict[str, Place]] = {}
    layers: dict[int, dict[str, Place]] = {layer: {} for layer in sorted(placement.streamed)}
    try:
        for name in names:
            path = tensors.path(sources[name]) if name in sources else None
            if path is None or path.suffix != ".safetensors":
                raise CheckpointError(
                    f"{name!r} is in no safetensors file, and max_memory= would have it read from "
                    "there for each pass. Save the model as safetensors first (save_pretrained), "
                    "or load it without max_memory=."
                )
            if str(path) not in files:
                files[str(path)] = OpenFile(path)
                found[str(path)] = files[str(path)].places()
            at = split_name(name)
            assert at is not None
            layers[at[0]][at[1]] = found[str(path)][sources[name]]
        store = LayerStore(layers, dtype, placement.main)
        stream(model, store)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return store
