"""The tensors of a cross-layer transcoder, and what has to be true of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neox_lab.errors import ConfigError
from neox_lab.sae.activations import Activation

Pair = tuple[int, int]
"""The layer that a feature reads and one that it writes to."""


class CrossLayerWeights(NamedTuple):
    """The tensors of a cross-layer transcoder; a matrix that pairs share is one object.

    A transcoder of your own tensors, here random ones::

        import torch, neox_lab as nl
        from neox_lab.sae.activations import ReLU  # or TopK, JumpReLU

        model = nl.load()
        d, latents, layers = model.config.hidden_size, 300, model.config.num_hidden_layers
        weights = nl.sae.CrossLayerWeights(
            W_enc=[torch.randn(d, latents) for _ in range(layers)],
            b_enc=[torch.full((latents,), -20.0) for _ in range(layers)],
            W_dec={
                (source, target): 0.01 * torch.randn(latents, d)
                for source in range(layers) for target in range(source, layers)
            },
            b_dec=[torch.zeros(d) for _ in range(layers)],
        )
        mine = nl.sae.CrossLayerTranscoder(
            weights, [ReLU()] * layers, kind="ReLU",
            sites_in=[f"blocks.{layer}.mlp.hook_in" for layer in range(layers)],
            sites_out=[f"blocks.{layer}.hook_mlp_out" for layer in range(layers)],
        )
        mine.check(model, ["Mary has the key."])    # does it fit its sites?
        nl.features.active(model, mine.layer(2), "Mary has the key.")
        mine.save_pretrained("mine")                # nl.sae.load("mine") reads it

    Attributes:
        W_enc: of each layer ``[d_in, latent]``.
        b_enc: of each layer ``[latent]``.
        W_dec: for each layer and each that is not before it, ``[latent, d_out]``.
        b_dec: of each layer ``[d_out]``.
        W_skip: ``[d_out, d_in]`` for some pairs of layers: linear paths beside the features.
        offset: for each layer that is written to ``[latent]``, added to every activation that is
            not 0; or empty.
        scale: likewise, what that is multiplied by.
    """

    W_enc: Sequence[Tensor]
    b_enc: Sequence[Tensor]
    W_dec: Mapping[Pair, Tensor]
    b_dec: Sequence[Tensor]
    W_skip: Mapping[Pair, Tensor] = {}
    offset: Sequence[Tensor] = ()
    scale: Sequence[Tensor] = ()

    def check(self) -> None:
        """Refuse tensors that do not fit together or are not finite.

        Raises:
            ConfigError: names the tensor.
        """
        layers = len(self.W_enc)
        first = self.W_enc[0] if layers else torch.empty(0, dtype=torch.float32)
        if first.dim() != 2 or not self.b_dec or self.b_dec[0].dim() != 1:
            raise ConfigError("W_enc[0] must be [d_in, latent] and b_dec[0] [d_out].")
        (d_in, latents), d_out = first.shape, len(self.b_dec[0])
        pairs = {(i, j) for i in range(layers) for j in range(i, layers)}
        if set(self.W_dec) != pairs or not set(self.W_skip) <= pairs:
            raise ConfigError(f"W_dec needs a matrix for each pair of {layers} layers.")
        for name, shape in (
            ("W_enc", [d_in, latents]),
            ("b_enc", [latents]),
            ("W_dec", [latents, d_out]),
            ("b_dec", [d_out]),
            ("W_skip", [d_out, d_in]),
            ("offset", [latents]),
            ("scale", [latents]),
        ):
            held = getattr(self, name)
            if not isinstance(held, Mapping):
                if len(held) != layers and (held or name not in ("offset", "scale")):
                    raise ConfigError(f"{name} has {len(held)} tensors for {layers} layers.")
                held = dict(enumerate(held))
            for key, tensor in held.items():
                if list(tensor.shape) != shape:
                    raise ConfigError(
                        f"{name}[{key}] is {list(tensor.shape)}; expected {shape}, as in other "
                        "layers."
                    )
                if not tensor.is_floating_point():
                    raise ConfigError(f"{name}[{key}] is {tensor.dtype}; expected floating-point.")
                if not tensor.isfinite().all():
                    raise ConfigError(f"{name}[{key}] holds NaN or infinite numbers.")


def check_lists(
    layers: int,
    latents: int,
    lists: Mapping[str, Sequence[object]],
    activation: Sequence[Activation] | None,
) -> None:
    """Refuse what does not fit the weights.

    Args:
        layers: how many there are.
        latents: features of each.
        lists: of what there has to be one for each layer: sites, and statistics or none.
        activation: of each layer; None for one of all.

    Raises:
        ConfigError: names it.
    """
    listed = dict(lists) if activation is None else {**lists, "activation": activation}
    for name, given in listed.items():
        if len(given) != layers and (given or name not in ("into", "out")):
            raise ConfigError(f"{name} has {len(given)} entries for {layers} layers.")
    if not all(isinstance(site, str) for site in (*lists["sites_in"], *lists["sites_out"])):
        raise ConfigError("sites_in and sites_out must be names of hook points.")
    for layer, module in enumerate(activation or ()):
        for name, held in module.named_buffers() if isinstance(module, nn.Module) else ():
            if held.isnan().any() or held.numel() not in (1, latents):
                raise ConfigError(
                    f"{name} of layer {layer} is {list(held.shape)}; expected {latents} numbers."
                )
