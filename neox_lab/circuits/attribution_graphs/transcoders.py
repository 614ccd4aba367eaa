"""Transcoders of a network's layers, as linear maps: what each active feature reads and writes.

A feature that is active has, as long as it stays so, an activation that is linear in what its
transcoder reads: row · x + bias. That holds for every kind of activation in ``nl.sae``, with the
row scaled where the kind scales. What it writes is its activation times a row of the decoder, into
its own layer, and for a cross-layer transcoder into all layers after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.hooks.names import exact
from neox_lab.sae import Codes, CrossLayerTranscoder, Dictionary, TrainedDictionary
from neox_lab.sae.activations import Activation, Gated
from neox_lab.sae.normalisation import constant_factor, unchanged
from neox_lab.sae.shared_top_k import SharedTopK

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

NORMED, AFFINE = "ln2.hook_normalized", "mlp.hook_in"
"""What may be read of the second layer norm: before and after its weight and bias."""

TranscodersLike = (
    Dictionary | CrossLayerTranscoder | Sequence[Dictionary] | Mapping[str, Dictionary]
)


class Transcoders:
    """Features by the layer whose MLP input they read.

    Attributes:
        read_at: the hook point that each layer's features read.
    """

    def __init__(self, model: HookedModel, given: TranscodersLike) -> None:
        """Find the layer of each.

        Raises:
            InputError: something that is no transcoder of an MLP, two of one layer, or a kind whose
                features are not linear in what they read.
            HookNameError: a site that the model lacks.
        """
        self.cross: CrossLayerTranscoder | None = None
        self.by_layer: dict[int, Dictionary] = {}
        self.read_at: dict[int, str] = {}
        width = model.config.hidden_size
        if isinstance(given, CrossLayerTranscoder):
            self._take_cross(model, given)
            sizes = given.d_in, given.d_out
        else:
            for each in _listed(given):
                self._take(model, each)
            first = next(iter(self.by_layer.values()))
            sizes = first.d_in, first.d_out
            for one in self.by_layer.values():
                if (one.d_in, one.d_out) != (width, width):
                    sizes = one.d_in, one.d_out
        if sizes != (width, width):
            raise InputError(
                f"The transcoders read {sizes[0]:,} and write {sizes[1]:,} numbers at a position; "
                f"the stream of this model has {width:,}. They belong to another model."
            )

    def _take(self, model: HookedModel, each: Dictionary) -> None:
        layer, name = _place(model, each.site_in, each.site_out, each)
        if layer in self.by_layer:
            raise InputError(f"Two transcoders of layer {layer}: give one for each.")
        if not isinstance(each.normalise, constant_factor) and each.normalise is not unchanged:
            raise InputError(
                f"{each!r} normalises each token by its own statistics, so that its features are "
                "not linear in what they read; an attribution graph needs one that does not."
            )
        _require_same(model, each, each.W_dec)
        self.by_layer[layer], self.read_at[layer] = each, name

    def _take_cross(self, model: HookedModel, given: CrossLayerTranscoder) -> None:
        self.cross = given
        _require_same(model, given, given.encoders[0])
        crossing = [pair for pair in given._skip_of if pair[0] != pair[1]]
        for name, held in (
            ("normalises its inputs", given.into),
            ("normalises its outputs", given.out),
            ("shifts activations for each layer", given.offset),
            ("scales activations for each layer", given.scale),
            ("has linear paths between layers", crossing),
        ):
            if held:
                raise InputError(
                    f"{given!r} {name}; attribution graphs of such a one are not built."
                )
        for at, (read, written) in enumerate(zip(given.sites_in, given.sites_out, strict=True)):
            layer, name = _place(model, read, written, given)
            if layer != at:
                raise InputError(
                    f"{given!r} reads {read!r} as number {at}; expected a site of layer {at}."
                )
            self.read_at[layer] = name

    @property
    def layers(self) -> list[int]:
        """Layers that have features."""
        return sorted(self.read_at)

    def encode(self, read: Mapping[int, Tensor]) -> dict[int, Codes]:
        """The active features of each layer, of what it reads ``[*tokens, d_model]``."""
        if self.cross is not None:
            return dict(enumerate(self.cross.encode([read[layer] for layer in self.layers])))
        return {layer: self.by_layer[layer].encode(read[layer]) for layer in self.layers}

    def reading(self, layer: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``[feature, d_model]`` and biases ``[feature]``: activation = row · x + bias."""
        if self.cross is not None:
            rows, bias = self.cross.encoders[layer][latents], self.cross.b_enc[layer][latents]
            kind = self.cross.activation
            chosen = None if isinstance(kind, SharedTopK) else kind[layer]
            return _scaled(rows, bias, chosen, latents)
        one = self.by_layer[layer]
        rows, bias = one.encoder[latents], one.b_enc[latents]
        if one.subtracts_b_dec:
            bias = bias - rows @ one.b_dec
        if isinstance(one.normalise, constant_factor):
            rows = rows * one.normalise.factor
        return _scaled(rows, bias, one.activation, latents)

    def written(self, layer: int, into: int, latents: Tensor) -> Tensor:
        """What features of a layer write into another at activation 1, ``[*latents, d_model]``."""
        if self.cross is not None:
            return self.cross.W_dec(layer, into)[latents]
        return self.by_layer[layer].rows[latents]

    def writers(self, into: int) -> list[int]:
        """The layers whose features write into a layer."""
        if self.cross is not None:
            return [layer for layer in self.layers if layer <= into]
        return [into] if into in self.by_layer else []

    def b_dec(self, layer: int) -> Tensor:
        """What is written without any feature, ``[d_model]``."""
        return self.cross.b_dec[layer] if self.cross is not None else self.by_layer[layer].b_dec

    def skip(self, layer: int) -> Tensor | None:
        """The linear path beside the features of a layer, ``[d_out, d_in]``."""
        if self.cross is None:
            return self.by_layer[layer].W_skip
        pairs = zip(self.cross._skip_of, self.cross.skips, strict=True)
        return next((matrix for pair, matrix in pairs if pair == (layer, layer)), None)

    def decoded(self, codes: Mapping[int, Codes], read: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What they write into each layer, of codes and what was read."""
        if self.cross is not None:
            listed = [codes[layer] for layer in self.layers]
            return dict(enumerate(self.cross.decode(listed, [read[at] for at in self.layers])))
        return {at: self.by_layer[at].decode(codes[at], read[at]) for at in self.layers}


def _require_same(model: HookedModel, what: object, weight: Tensor) -> None:
    """Refuse a transcoder on another device, or one of both in float64.

    Raises:
        InputError: it is.
    """
    if weight.device != model.device:
        raise InputError(
            f"{what!r} is on {weight.device}, the model on {model.device}; move one: "
            f"transcoder.to({str(model.device)!r})."
        )
    if (weight.dtype == torch.float64) != (model.dtype == torch.float64):
        raise InputError(
            f"{what!r} is in {weight.dtype}, the model in {model.dtype}; float64 goes with float64 "
            f"only: transcoder.to({model.dtype})."
        )


def _listed(given: object) -> list[Dictionary]:
    """Single dictionaries of whatever was given.

    Raises:
        InputError: they are none.
    """
    found = [given] if isinstance(given, Dictionary | TrainedDictionary) else given
    if isinstance(found, Mapping):
        found = list(found.values())
    if not isinstance(found, list | tuple) or not found:
        raise InputError(
            f"transcoders={shown(given)}; expected transcoders such as nl.sae.load gives: one, a "
            "list or a mapping of them, or a cross-layer transcoder."
        )
    found = [each.dictionary if isinstance(each, TrainedDictionary) else each for each in found]
    for each in found:
        if not isinstance(each, Dictionary):
            raise InputError(f"transcoders holds {shown(each)}; expected transcoders.")
    return list(found)


def _place(model: HookedModel, read: str, written: str, what: object) -> tuple[int, str]:
    """The layer of a transcoder, and the full name of what it reads.

    Raises:
        InputError: it does not read the MLP's input and write its output.
        HookNameError: the model has no such site.
    """
    reads = model.hook_points[exact(read, model.hook_points)]
    writes = model.hook_points[exact(written, model.hook_points)]
    stream = "hook_resid_pre" if model.config.use_parallel_residual else "hook_resid_mid"
    allowed = (AFFINE, NORMED, "hook_mlp_in", stream)
    end = reads.name.split(".", 2)[-1]
    if (
        reads.layer is None
        or end not in allowed
        or writes.name != (f"blocks.{reads.layer}.hook_mlp_out")
    ):
        raise InputError(
            f"{what!r} is no transcoder of an MLP in this model: it reads {reads.name!r} and "
            f"writes {writes.name!r}. An attribution graph needs ones that read "
            f"{', '.join(repr(name) for name in allowed)} of a block and write its hook_mlp_out"
            + ("." if read != written else "; of a mixed list give those with is_transcoder True.")
        )
    return reads.layer, reads.name


def _scaled(
    rows: Tensor, bias: Tensor, activation: Activation | None, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows and biases of the activation rather than of what it is chosen from."""
    if isinstance(activation, Gated):
        factor = activation.log_scale[latents].exp()
        return rows * factor[:, None], bias * factor + activation.magnitude_bias[latents]
    scale = getattr(activation, "scale", None)
    if isinstance(scale, Tensor):
        return rows * scale[latents][:, None], bias * scale[latents]
    return rows, bias
