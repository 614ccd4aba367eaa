"""A linear map whose weight is in a store, read from its file when it is needed.

It is a ``Linear`` whose ``weight`` asks the store. Whatever computes with weights, wherever it
stands, gets the right ones and need not know. The parameter of that name is a mere description
(``meta``: shape and dtype without memory), which ``parameters()``, ``num_parameters()`` and the
like see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from neox_lab.errors import CheckpointError, DeviceError, TrainingError
from neox_lab.kernels.linear import Linear
from neox_lab.model.network import Network
from neox_lab.streaming.store import LayerStore


class StreamedLinear(Linear):
    """``Linear`` with its weight in a store; made of a plain one by ``stream``.

    Attributes:
        store: where the weight is.
        layer: of which block.
        key: name within the block.
    """

    store: LayerStore
    layer: int
    key: str

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight ``[out, in]``, read if it is not there; it stays for as long as it is held.

        Where ``torch.func.functional_call`` puts another in its place for a call, that one.
        """
        given = self._parameters.get("weight")
        if given is None or given.is_meta:
            return self.store.take(self.layer, self.key)
        return given

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        """Set an attribute.

        Raises:
            DeviceError: it is the weight, which is in its file.
        """
        if name == "weight":
            raise DeviceError(
                f"The weight of layer {self.layer} is read from its file for each pass and cannot "
                "be replaced. Load the model without max_memory= to change weights."
            )
        super().__setattr__(name, value)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any
    ) -> None:
        refuse_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _save_to_state_dict(self, *_given: Any) -> None:
        raise CheckpointError(
            f"The weight of layer {self.layer} is read from its file for each pass, and all of "
            "them may be more than fits into memory, so there is no state_dict() of it. Copy the "
            "files, load the model without max_memory=, or take the weights one after another: "
            "model.blocks[layer].W_in, or block.mlp.dense_h_to_4h.weight."
        )

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The product; the backward pass reads the weight again."""
        with self.store.noting():
            return super().__call__(*inputs, **named)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The description of the weight has nothing that could be moved; see ``refuse_moves``.
        description = self._parameters.pop("weight")
        try:
            return super()._apply(fn, recurse)
        finally:
            self._parameters = {"weight": description, **self._parameters}


def stream(model: nn.Module, store: LayerStore) -> None:
    """Let the store hold the matrices of the layers that it has.

    Args:
        model: one of the five classes; the matrices of those layers are on ``meta``.
        store: where they are.
    """
    network = _network(model)
    for layer in store.sources:
        block = network.block(layer)
        for key in store.sources[layer]:
            module = block.get_submodule(key.rpartition(".")[0])
            assert type(module) is Linear
            assert module.weight.is_meta
            description = torch.empty(module.weight.shape, dtype=store.dtype, device="meta")
            module.weight = nn.Parameter(description, requires_grad=False)
            module.__class__ = StreamedLinear
            assert isinstance(module, StreamedLinear)
            module.store, module.layer, module.key = store, layer, key
    network.store = store


def store_of(model: nn.Module) -> LayerStore | None:
    """The store that a model's layers are in; None for a model that is in memory."""
    store = _network(model).store
    assert store is None or isinstance(store, LayerStore)
    return store


def _network(model: nn.Module) -> Network:
    network = getattr(model, "gpt_neox", model)
    assert isinstance(network, Network)
    return network


def refuse_moves(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Raise if ``fn``, which ``.to()``, ``.half()`` or ``.cuda()`` is about, changes what streams.

    Raises:
        DeviceError: it would move or convert layers that are in files.
    """
    if (store := store_of(model)) is None:
        return
    now = torch.empty(0, dtype=store.dtype, device=store.device)
    then = fn(now)
    if (then.dtype, then.device) != (now.dtype, now.device):
        raise DeviceError(
            f"This model reads layers from files, as {store.dtype} on {store.device}; it cannot be "
            f"turned into {then.dtype} on {then.device}. Load it again with dtype= and device=."
        )


def refuse_loading(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Raise if ``state_dict`` has weights of layers that are in files; PyTorch would drop them.

    Args:
        model: or a part of one.
        state_dict: what is to be loaded into it.
        prefix: of its names there.

    Raises:
        DeviceError: it has some.
    """
    for name, module in model.named_modules(prefix=prefix.rstrip(".")):
        key = f"{name}.weight".lstrip(".")
        if isinstance(module, StreamedLinear) and key in state_dict:
            raise DeviceError(
                f"{key} is read from its file for each pass, so other weights cannot be loaded "
                "into it. Load the model without max_memory= to change weights."
            )


def refuse_writing(model: nn.Module) -> None:
    """Raise if layers of ``model`` are in files.

    Raises:
        DeviceError: they are.
    """
    if store_of(model) is not None:
        raise DeviceError(
            "Layers of this model are read from their files for each pass, so other weights cannot "
            "be loaded into them. Load the model without max_memory= to change weights."
        )


def refuse_training(model: nn.Module) -> None:
    """Raise if layers of ``model`` are in files.

    Raises:
        TrainingError: they are.
    """
    if store_of(model) is not None:
        raise TrainingError(
            "Layers of this model are read from their files for each pass, so nothing could be "
            "learned by them. Load the model without max_memory= to train it; gradients with "
            "respect to activations work as it is."
        )


def refuse_saving(model: nn.Module) -> None:
    """Raise if layers of ``model`` are in files.

    Raises:
        CheckpointError: they are.
    """
    if store_of(model) is not None:
        raise CheckpointError(
            "Layers of this model are read from their files for each pass, so saving would copy "
            "what is there already: copy the files. To convert them, load the model without "
            "max_memory=."
        )
