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

from neox_lab.checks import check, shown, whole
from neox_lab.errors import ConfigError, InputError
from neox_lab.files import StrPath
from neox_lab.hooks.splicing import Spliced
from neox_lab.model.hook_points import HookPoint
from neox_lab.sae.activations import Activation
from neox_lab.sae.affine import Affine
from neox_lab.sae.answering import Answering
from neox_lab.sae.bags import rows_summed
from neox_lab.sae.codes import Codes, joined, require_codes
from neox_lab.sae.cross_layer_inputs import Inputs, Passed, by_layer, require
from neox_lab.sae.cross_layer_weights import CrossLayerWeights, check_lists
from neox_lab.sae.one_layer import TranscoderLayer
from neox_lab.sae.rows import Texts
from neox_lab.sae.saving import save_cross_layer
from neox_lab.sae.shared_top_k import SharedTopK
from neox_lab.sae.sites_checking import Rebuilt, SitesCheck, Tried, check_sites
from neox_lab.sae.splicing_layers import splice_layers

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_DENSE = 2**24  # numbers of the matrix [token, latent] that exist at a time while encoding


class CrossLayerTranscoder(Answering):
    """Features of every layer of a network that write to that layer and those after it.

    ``CrossLayerWeights`` shows how one is made of your own tensors.

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
        lists = {name: getattr(self, name) for name in ("sites_in", "sites_out", "into", "out")}
        activation = None if isinstance(self.activation, SharedTopK) else self.activation
        check_lists(self.layers, self.latents, lists, activation)

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

    def layer(self, number: int) -> TranscoderLayer:
        """The features that one layer reads, for ``nl.features``.

            nl.features.active(model, transcoder.layer(2), "The king went to the city")

        Raises:
            InputError: there is no such layer.
        """
        return TranscoderLayer(self, number)

    def rows(self, source: int, target: int) -> Tensor:
        """What a feature of activation 1 writes to a layer, ``[latent, d_out]``.

        Args:
            source: the layer that reads.
            target: the layer that is written to.

        Raises:
            InputError: there is no such pair of layers.
        """
        rows = self.W_dec(source, target)
        received = self._received(rows.new_ones(self.latents), target, None)
        return self._at_scale(received[:, None] * rows, target)

    def W_enc(self, layer: int) -> Tensor:  # noqa: N802
        """Encoder of a layer, ``[d_in, latent]``."""
        return self.encoders[layer].T

    def W_dec(self, source: int, target: int) -> Tensor:  # noqa: N802
        """What features of a layer write to one that is not before it, ``[latent, d_out]``.

        Args:
            source: the layer that reads.
            target: the layer that is written to.

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
        given = by_layer(inputs, self.sites_in, self.d_in)
        if not isinstance(self.activation, SharedTopK):
            return [self.encode_layer(layer, x) for layer, x in enumerate(given)]
        shape = given[0].shape[:-1]
        read = [self._read(layer, x).reshape(-1, self.d_in) for layer, x in enumerate(given)]
        layers = list(zip(read, self.encoders, self.b_enc, strict=True))
        return [_shaped(codes, shape) for codes in self.activation(layers)]

    def encode_layer(self, layer: int, x: Tensor) -> Codes:
        """The active features of one layer, which need no other.

        Args:
            layer: its number.
            x: what stands at ``sites_in[layer]``, ``[*tokens, d_in]``.

        Returns:
            Codes ``[*tokens, slot]``, in the transcoder's dtype.

        Raises:
            InputError: no such layer, another width, or features that are chosen among those of
                all layers.
        """
        layer = check("layer", layer, whole(least=0, most=self.layers - 1), InputError)
        if isinstance(self.activation, SharedTopK):
            raise InputError(f"{self!r} chooses among the features of tokens together; see encode.")
        require(x, self.sites_in[layer], self.d_in)
        read = self._read(layer, x)
        encoder, b_enc, activation = self.encoders[layer], self.b_enc[layer], self.activation[layer]
        parts = torch.split(read.reshape(-1, self.d_in), max(1, _DENSE // self.latents))
        pre = (torch.nn.functional.linear(part, encoder, b_enc) for part in parts)
        return _shaped(joined([activation(each) for each in pre]), x.shape[:-1])

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
        given = None if inputs is None else by_layer(inputs, self.sites_in, self.d_in)
        written = [self.written_at(target, codes, given) for target in range(self.layers)]
        if given is None:
            return written
        return [each.to(x.dtype) for each, x in zip(written, given, strict=True)]

    def written_at(
        self, target: int, codes: Sequence[Codes], inputs: Sequence[Tensor] | None = None
    ) -> Tensor:
        """What features of a layer and those before it write to it, ``[*tokens, d_out]``.

        Args:
            target: the layer that is written to.
            codes: of these layers at least, ``[*tokens, slot]``.
            inputs: what stood at ``sites_in`` of these layers; needed by skip paths.
        """
        total = self.b_dec[target].expand(*codes[0].indices.shape[:-1], -1)
        for source in range(target + 1):
            changed = self._changed(codes[source], target)
            total = total + rows_summed(changed, self.W_dec(source, target))
            skip = self._skip(source, target)
            if skip is not None and inputs is not None:
                total = total + torch.nn.functional.linear(self._read(source, inputs[source]), skip)
        return self.out[target].back(total) if self.out else total

    def written(self, source: int, target: int, before: Tensor, after: Tensor) -> Tensor:
        """How what stands at a layer changes with activations of one before it, or of its own.

        Args:
            source: the layer of the features.
            target: the layer that they write to.
            before: activations, ``[*tokens, latent]``.
            after: other activations, of the same shape.

        Returns:
            ``[*tokens, d_out]``, in the transcoder's dtype: for each feature its change times its
            row of ``W_dec``.
        """
        rows, changed = self.W_dec(source, target), None
        if not after.requires_grad:  # few features change, unless all are looked through
            changed = (after != before).flatten(0, -2).any(dim=0).nonzero()[:, 0]
            before, after, rows = before[..., changed], after[..., changed], rows[changed]
        received = [self._received(values, target, changed) for values in (before, after)]
        return self._at_scale((received[1] - received[0]).to(rows.dtype) @ rows, target)

    def difference(self, source: int, target: int, before: Passed, after: Passed) -> Tensor:
        """How what stands at a layer changes with what one before it reads, or with what it reads.

        Args:
            source: the layer that reads.
            target: the layer that is written to.
            before: what it reads, ``[*tokens, d_in]``, and the codes of that.
            after: likewise.

        Returns:
            ``[*tokens, d_out]``, in the transcoder's dtype.
        """
        rows, skip = self.W_dec(source, target), self._skip(source, target)
        sums = []
        for x, codes in (before, after):
            total = rows_summed(self._changed(codes, target), rows)
            if skip is not None:
                total = total + torch.nn.functional.linear(self._read(source, x), skip)
            sums.append(total)
        return self._at_scale(sums[1] - sums[0], target)

    def forward(self, inputs: Inputs) -> list[Tensor]:
        """``decode(encode(inputs), inputs)``: for each layer ``[*tokens, d_out]``."""
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

    def splice(
        self, points: Mapping[str, HookPoint], known: Mapping[str, int], error: bool
    ) -> list[Spliced]:
        """How it goes into a network; ``model.spliced(transcoder)`` asks.

        Args:
            points: the network's hook points.
            known: lengths of the network's own axes.
            error: what it misses is added.

        Raises:
            HookError: it does not fit there.
        """
        return splice_layers(self, points, known, error)

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
        if not self.offset and not self.scale:
            return codes
        values = self._received(codes.values, target, codes.indices)
        return Codes(codes.indices, values, codes.latents)

    def _received(self, values: Tensor, target: int, latents: Tensor | None) -> Tensor:
        """Activations as a layer receives them; of these latents, or of all."""
        index = slice(None) if latents is None else latents
        received = values
        if self.offset:
            received = received + self.offset[target][index]
        if self.scale:
            received = received * self.scale[target][index]
        return received.where(values != 0, 0) if self.offset else received

    def _at_scale(self, change: Tensor, target: int) -> Tensor:
        """A change of what is written, as it stands in the network."""
        return change * self.out[target].scale if self.out else change

    def _skip(self, source: int, target: int) -> Tensor | None:
        """The linear path between two layers, ``[d_out, d_in]``, if there is one."""
        pair = source, target
        return self.skips[self._skip_of.index(pair)] if pair in self._skip_of else None

    def _read(self, layer: int, x: Tensor) -> Tensor:
        """An input as the encoder of its layer reads it."""
        x = x.to(self.b_dec[0].dtype)
        return self.into[layer].into(x) if self.into else x

    def __repr__(self) -> str:
        """What it is in one line."""
        return (
            f"CrossLayerTranscoder({self.kind}, {self.layers} layers of {self.latents:,} features, "
            f"{self.sites_in[0]} -> {self.sites_out[0]} and on, d={self.d_in})"
        )


def _shaped(codes: Codes, shape: Sequence[int]) -> Codes:
    """Codes ``[token, slot]`` with the tokens in their shape."""
    slots = codes.indices.shape[-1]
    indices, values = (x.view(*shape, slots) for x in (codes.indices, codes.values))
    return Codes(indices, values, codes.latents)
