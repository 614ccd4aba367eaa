"""A cross-layer transcoder: features that read one layer and write to it and all after it.

    codes[i] = activation(read[i] @ W_enc[i] + b_enc[i])      read[i] stands at sites_in[i]
    written[j] = sum over i <= j of codes[i] @ W_dec[i, j], and b_dec[j]

``written[j]`` is to be what stands at ``sites_out[j]``, in general what the MLP of layer j writes.
Ameisen et al., Circuit Tracing: Revealing Computational Graphs in Language Models, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.checks import shown
from neox_lab.errors import ConfigError, InputError
from neox_lab.files import StrPath
from neox_lab.sae.activations import Activation
from neox_lab.sae.affine import Affine
from neox_lab.sae.bags import rows_summed
from neox_lab.sae.codes import Codes, joined, require_codes
from neox_lab.sae.cross_layer_weights import CrossLayerWeights
from neox_lab.sae.rows import Texts
from neox_lab.sae.saving import save_cross_layer
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.sae.sites_checking import Rebuilt, SitesCheck, Tried, check_sites

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Inputs = Mapping[str, Tensor] | Mapping[int, Tensor] | Sequence[Tensor]
"""What stands at ``sites_in``: in their order, by name, or by number of layer."""

_DENSE = 2**24  # numbers of the matrix [token, latent] that exist at a time while encoding


class CrossLayerTranscoder(nn.Module):
    """Features of every layer of a network that write to that layer and those after it.

    Attributes:
        sites_in: hook points it reads, by layer.
        sites_out: hook points it writes, by layer.
        kind: what it is called, such as ``"JumpReLU"``.
        sources: where each fact about it came from.
        decoder_of: which of ``decoders`` is of a pair of layers; pairs can share one.
    """

    def __init__(
        self,
        weights: CrossLayerWeights,
        activation: Sequence[Activation] | SharedTopK,
        *,
        sites_in: Sequence[str],
        sites_out: Sequence[str],
        into: Sequence[Affine] = (),
        out: Sequence[Affine] = (),
        kind: str,
        sources: Mapping[str, str] | None = None,
    ) -> None:
        """Check that everything fits together.

        Args:
            weights: see the class.
            activation: of each layer, or one for all.
            sites_in: hook points.
            sites_out: hook points.
            into: what is done to the inputs of each layer; nothing by default.
            out: what outputs are to look like; undone at the end.
            kind: what it is called.
            sources: where what is known comes from.

        Raises:
            ConfigError: shapes that do not fit, or numbers that are not finite.
        """
        super().__init__()
        weights.check()
        self.sites_in, self.sites_out = tuple(sites_in), tuple(sites_out)
        self.kind, self.sources = kind, dict(sources or {})
        self.encoders = nn.ParameterList([w.T.contiguous() for w in weights.W_enc])
        self.b_enc = nn.ParameterList(weights.b_enc)
        self.b_dec = nn.ParameterList(weights.b_dec)
        own: dict[int, int] = {}
        self.decoder_of = {
            pair: own.setdefault(id(w), len(own)) for pair, w in weights.W_dec.items()
        }
        distinct = {id(w): w for w in weights.W_dec.values()}
        self.decoders = nn.ParameterList([distinct[key].contiguous() for key in own])
        self._skip_of = list(weights.W_skip)
        self.skips = nn.ParameterList(list(weights.W_skip.values()))
        self.offset, self.scale = (nn.ParameterList(w) for w in (weights.offset, weights.scale))
        self.into, self.out = list(into), list(out)
        self.statistics = nn.ModuleList([*into, *out])  # so that they move along
        self.activation = activation
        self._check_rest()
        if not isinstance(activation, SharedTopK):  # so that thresholds move along
            self.activations = nn.ModuleList(e for e in activation if isinstance(e, nn.Module))

    def _check_rest(self) -> None:
        """Refuse what does not fit the weights.

        Raises:
            ConfigError: names it.
        """
        listed: dict[str, Sequence[object]] = {
            name: getattr(self, name) for name in ("sites_in", "sites_out", "into", "out")
        }
        activation = () if isinstance(self.activation, SharedTopK) else self.activation
        if not isinstance(self.activation, SharedTopK):
            listed["activation"] = activation
        for name, given in listed.items():
            if len(given) != self.layers and (given or name not in ("into", "out")):
                raise ConfigError(f"{name} has {len(given)} entries for {self.layers} layers.")
        if not all(isinstance(site, str) for site in (*self.sites_in, *self.sites_out)):
            raise ConfigError("sites_in and sites_out must be names of hook points.")
        for layer, module in enumerate(activation):
            for name, held in module.named_buffers() if isinstance(module, nn.Module) else ():
                if held.isnan().any() or held.numel() not in (1, self.latents):
                    raise ConfigError(
                        f"{name} of layer {layer} is {list(held.shape)}; expected "
                        f"{self.latents} numbers."
                    )

    @property
    def layers(self) -> int:
        """How many layers it spans."""
        return len(self.encoders)

    @property
    def latents(self) -> int:
        """How many features each layer has."""
        return self.encoders[0].shape[0]

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.encoders[0].shape[1]

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.b_dec[0].shape[0]

    @property
    def weights(self) -> CrossLayerWeights:
        """The tensors."""
        return CrossLayerWeights(
            [self.W_enc(layer) for layer in range(self.layers)],
            [*self.b_enc],
            {pair: self.decoders[number] for pair, number in self.decoder_of.items()},
            [*self.b_dec],
            dict(zip(self._skip_of, self.skips, strict=True)),
            [*self.offset],
            [*self.scale],
        )

    def W_enc(self, layer: int) -> Tensor:  # noqa: N802
        """Encoder of a layer, ``[d_in, latent]``."""
        return self.encoders[layer].T

    def W_dec(self, source: int, target: int) -> Tensor:  # noqa: N802
        """What features of a layer write to one that is not before it, ``[latent, d_out]``.

        Raises:
            InputError: there is no such pair of layers.
        """
        if (source, target) not in self.decoder_of:
            raise InputError(
                f"Features of layer {source} do not write to layer {target}; a feature writes to "
                f"its layer and to those after it, of {self.layers}."
            )
        return self.decoders[self.decoder_of[source, target]]

    def encode(self, inputs: Inputs) -> list[Codes]:
        """The active features of tokens, by layer.

        Args:
            inputs: what stands at each of ``sites_in``, ``[*tokens, d_in]``, for all layers: in
                their order, by name (a cache will do), or by number.

        Returns:
            Codes ``[*tokens, slot]``, in the transcoder's dtype.

        Raises:
            InputError: a layer is missing, or has another width or other tokens.
        """
        given = self._inputs(inputs)
        shape = given[0].shape[:-1]
        read = [x.reshape(-1, self.d_in) for x in self._read(given)]
        layers = list(zip(read, self.encoders, self.b_enc, strict=True))
        if isinstance(self.activation, SharedTopK):
            found = self.activation(layers)
        else:
            step = max(1, _DENSE // self.latents)
            found = [
                joined([
                    activation(torch.nn.functional.linear(part, encoder, b_enc))
                    for part in torch.split(x, step)
                ])
                for activation, (x, encoder, b_enc) in zip(self.activation, layers, strict=True)
            ]  # fmt: skip
        return [
            Codes(
                codes.indices.view(*shape, codes.indices.shape[-1]),
                codes.values.view(*shape, codes.values.shape[-1]),
                self.latents,
            )
            for codes in found
        ]

    def decode(self, codes: Sequence[Codes], inputs: Inputs | None = None) -> list[Tensor]:
        """What the features write, by layer.

        Args:
            codes: of every layer ``[*tokens, slot]``.
            inputs: what was encoded; needed by skip paths.

        Returns:
            Of each layer ``[*tokens, d_out]``, in the dtype of the inputs, or the transcoder's.

        Raises:
            InputError: codes of another transcoder, or the inputs are needed.
        """
        if not isinstance(codes, list | tuple) or len(codes) != self.layers:
            raise InputError(
                f"codes={shown(codes)}; expected a list of those of {self.layers} layers."
            )
        codes = [require_codes(each, self.latents) for each in codes]
        if len({each.indices.shape[:-1] for each in codes}) > 1:
            raise InputError("The codes of the layers are of other tokens each.")
        if inputs is None and self._skip_of:
            raise InputError("Give decode the inputs that were encoded: they have a part in it.")
        given = None if inputs is None else self._inputs(inputs)
        read = [] if given is None or not self._skip_of else self._read(given)
        written = []
        for target in range(self.layers):
            total = self.b_dec[target].expand(*codes[0].indices.shape[:-1], -1)
            for source in range(target + 1):
                changed = self._changed(codes[source], target)
                total = total + rows_summed(changed, self.W_dec(source, target))
            for skip, (source, reached) in zip(self.skips, self._skip_of, strict=True):
                if reached == target:
                    total = total + torch.nn.functional.linear(read[source], skip)
            if self.out:
                total = self.out[target].back(total)
            written.append(total if given is None else total.to(given[target].dtype))
        return written

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """``decode(encode(inputs), inputs)``."""
        return self.decode(self.encode(inputs), inputs)

    def check(self, model: HookedModel, texts: str | Texts) -> SitesCheck:
        """Try it on texts.

        Args:
            model: whose activations.
            texts: a few thousand tokens like those it was trained on, or lists of token ids.

        Returns:
            FVU and L0 of each layer, with and without the first token of texts; ``warnings`` say
            what is odd.

        Raises:
            HookNameError: the model has no such site.
            HookError: another width.
            InputError: no model, no texts, dropout is on, or there is no token.
            DataError: a text is longer than the model can read.
        """
        tried = Tried(
            f"{self.kind}, {self.layers} layers of {self.latents:,} features",
            (self.d_in, self.d_out),
            self.latents,
            self._tried,
        )
        return check_sites(tried, [model], self.sites_in, self.sites_out, texts)

    def save_pretrained(self, folder: StrPath) -> Path:
        """Write everything to ``dictionary.safetensors`` in a folder, for ``nl.sae.load``.

        Args:
            folder: made if need be; a file that is there is replaced when the new one is whole.

        Returns:
            Where the file is.

        Raises:
            InputError: ``folder`` is no path.
            ConfigError: an activation is one of your own, or numbers are not finite.
            CheckpointError: the file cannot be written.
        """
        return save_cross_layer(self, folder)

    def require_sound(self) -> None:
        """Refuse what would not be read again.

        Raises:
            ConfigError: numbers that are not finite, or sites for other layers.
        """
        self.weights.check()
        self._check_rest()
        for name, held in self.statistics.named_buffers():
            if not held.isfinite().all():
                raise ConfigError(f"Statistics of activations ({name}) hold NaN or infinity.")

    def _tried(self, inputs: list[Tensor], order: Tensor) -> Rebuilt:
        """What a check measures."""
        device = self.b_dec[0].device
        x, order = [each.to(device) for each in inputs], order.to(device)
        codes = self.encode(x)
        mixed = [Codes(each.indices[order], each.values[order], each.latents) for each in codes]
        shuffled = self.decode(mixed, [each[order] for each in x])
        return Rebuilt([each.count for each in codes], self.decode(codes, x), shuffled)

    def _changed(self, codes: Codes, target: int) -> Codes:
        """Activations as a layer receives them."""
        values = codes.values
        if self.offset:
            values = values + self.offset[target][codes.indices]
        if self.scale:
            values = values * self.scale[target][codes.indices]
        if not self.offset and not self.scale:
            return codes
        return Codes(codes.indices, values.where(codes.values != 0, 0), codes.latents)

    def _read(self, given: list[Tensor]) -> list[Tensor]:
        """Inputs as the encoders read them."""
        dtype = self.b_dec[0].dtype
        read = [x.to(dtype) for x in given]
        return [f.into(x) for f, x in zip(self.into, read, strict=True)] if self.into else read

    def _inputs(self, inputs: Inputs) -> list[Tensor]:
        """The inputs by layer.

        Raises:
            InputError: a layer is missing, or has another width or other tokens.
        """
        if isinstance(inputs, Mapping):
            found: dict[object, Tensor] = dict(inputs.items())
            by_name = [found.get(name, found.get(i)) for i, name in enumerate(self.sites_in)]
        elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
            by_name = list(inputs)
        else:
            raise InputError(f"inputs={shown(inputs)}; expected tensors by layer, or by hook name.")
        missing = [name for x, name in zip(by_name, self.sites_in, strict=False) if x is None]
        if missing or len(by_name) != self.layers:
            said = f"{', '.join(missing[:3])} are missing" if missing else f"got {len(by_name)}"
            raise InputError(f"inputs: expected what stands at {self.layers} sites; {said}.")
        given = []
        for x, name in zip(by_name, self.sites_in, strict=True):
            if not isinstance(x, Tensor) or x.dim() < 1 or x.shape[-1] != self.d_in:
                what = list(x.shape) if isinstance(x, Tensor) else shown(x)
                raise InputError(f"At {name}: {what}; expected [*tokens, {self.d_in}].")
            given.append(x)
        if len({x.shape for x in given}) > 1:
            raise InputError(f"inputs have shapes {[list(x.shape) for x in given]}; expected one.")
        return given

    def __repr__(self) -> str:
        """What it is in one line."""
        return (
            f"CrossLayerTranscoder({self.kind}, {self.layers} layers of {self.latents:,} features, "
            f"{self.sites_in[0]} -> {self.sites_out[0]} and on, d={self.d_in})"
        )
