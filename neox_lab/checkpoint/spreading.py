"""Where the weights of a checkpoint go, if not all to the memory of one device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neox_lab.checkpoint.reading import TensorSource
from neox_lab.errors import CheckpointError
from neox_lab.streaming import LayerStore, stream
from neox_lab.streaming.files import OpenFile, Place
from neox_lab.streaming.placement import Placement, split_name


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
