r"""The local replacement model of one prompt: linear, and equal to the network there.

    MLP of a layer      what its active features write, what they miss (an error), a linear path
    attention           patterns as they were in the run
    layer norms         denominators as they were in the run

Held so, everything that is written into the residual stream reaches everything later along linear
maps, and the network's own numbers come out. What one feature adds to another's activation is then
exact: the vector that it writes times a covector, carried back from the reader layer by layer:

    logits      γ(W_U[:, token] - mean) through the final norm
    feature     its encoder row, through the second layer norm of its layer

    parallel    g ← g + LN1ᵀ Attᵀ g + LN2ᵀ W_skipᵀ g          g at resid_post → g at resid_pre
    sequential  m = g + LN2ᵀ W_skipᵀ g;  g ← m + LN1ᵀ Attᵀ m

In parallel blocks a transcoder reads the stream that its layer's attention reads, so heads of a
layer carry effects to later layers only, and no two features of a layer are joined.

Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language Models", 2025; there
for sequential blocks.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.circuits.attribution_graphs.transcoders import AFFINE, NORMED, Transcoders
from neox_lab.model.parts import at_least_float32, plain_layer_norm
from neox_lab.sae import Codes

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_AT_ONCE = 2**24  # numbers of what features write that are held at a time: 64 MB in float32


@dataclasses.dataclass(frozen=True)
class Features:
    """All active features, by layer, then position.

    Attributes:
        layer: ``[feature]``.
        pos: ``[feature]``.
        latent: ``[feature]``.
        activation: ``[feature]``.
    """

    layer: Tensor
    pos: Tensor
    latent: Tensor
    activation: Tensor

    def __len__(self) -> int:
        return len(self.layer)


class _Norm:
    """A layer norm with the denominators of the run: linear but for its bias."""

    def __init__(self, module: torch.nn.Module, name: str, scale: Tensor) -> None:
        norm = plain_layer_norm(module, name)
        self.weight, self.bias = at_least_float32(norm.weight), at_least_float32(norm.bias)
        self.scale = scale  # [pos, 1]

    def back(self, g: Tensor, *, affine: bool = True) -> Tensor:
        """From covectors of what it returns ``[*, pos, d_model]`` to those of what it reads."""
        if affine:
            g = g * self.weight
        return (g - g.mean(dim=-1, keepdim=True)) / self.scale

    def at(self, pos: Tensor) -> _Norm:
        """The same at some positions, for covectors ``[row, d_model]``."""
        made = object.__new__(_Norm)
        made.weight, made.bias, made.scale = self.weight, self.bias, self.scale[pos]
        return made


class LocalReplacement:
    """What one run of one prompt was, and what is linear about it.

    Attributes:
        ids: the prompt ``[pos]``.
        features: what is active, positions in ``held`` left out.
        errors: what the features miss of each MLP ``[layer, pos, d_model]``; where there are no
            features, all that it wrote.
        embeddings: of the tokens ``[pos, d_model]``.
        logits: at the last position ``[vocab]``.
        streams: what each layer's features read.
        codes: as they were encoded, by layer ``[pos, slot]``.
    """

    @torch.no_grad()
    def __init__(
        self, model: HookedModel, ids: Tensor, transcoders: Transcoders, held: Tensor
    ) -> None:
        """Run the prompt.

        Args:
            model: with an unembedding.
            ids: the prompt ``[pos]``.
            transcoders: of some of its layers.
            held: True for positions whose MLP outputs are taken as they are ``[pos]``.
        """
        self.model, self.ids, self.transcoders, self.held = model, ids, transcoders, held
        self.layers = model.config.num_hidden_layers
        self.parallel = model.config.use_parallel_residual
        names = ["hook_embed", "blocks.*.attn.hook_pattern", "blocks.*.ln1.hook_scale"]
        names += ["blocks.*.ln2.hook_scale", "ln_final.hook_scale", "blocks.*.hook_mlp_out"]
        names += transcoders.read_at.values()
        output, cache = model.run_with_cache(ids[None], names)
        self.run = {name: at_least_float32(cache[name][0]) for name in cache}
        self.logits = at_least_float32(output.logits[0, -1])
        self.embeddings = self.run["hook_embed"]
        self.streams = {at: self.run[name] for at, name in transcoders.read_at.items()}
        self.codes = self._chosen(transcoders.encode(self.streams))
        self.features = self._features()
        self._number_slots()
        self.constants = torch.zeros_like(self.mlp_out)
        self._skips: dict[int, Tensor] = {}
        for layer in range(self.layers):
            self._split_mlp(layer)
        self.errors = self.mlp_out - self.constants - self.linear - self.from_features()

    @property
    def mlp_out(self) -> Tensor:
        """What the MLPs wrote ``[layer, pos, d_model]``."""
        return torch.stack([self.run[f"blocks.{at}.hook_mlp_out"] for at in range(self.layers)])

    @property
    def sources(self) -> int:
        """Features, errors and tokens, in this order."""
        return len(self.features) + self.layers * len(self.ids) + len(self.ids)

    def _chosen(self, found: dict[int, Codes]) -> dict[int, Codes]:
        """Codes without positions that are held."""
        return {
            layer: Codes(c.indices, c.values.masked_fill(self.held[:, None], 0), c.latents)
            for layer, c in found.items()
        }

    def _features(self) -> Features:
        parts = []
        for layer, codes in self.codes.items():
            pos, slot = (codes.values != 0).nonzero().unbind(dim=1)
            chosen = (codes.indices[pos, slot], at_least_float32(codes.values[pos, slot]))
            parts.append((torch.full_like(pos, layer), pos, *chosen))
        return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _number_slots(self) -> None:
        """The number of the feature in each slot of the codes, -1 for none."""
        self.numbers: dict[int, Tensor] = {}
        begin = 0
        for layer, codes in self.codes.items():
            active = codes.values != 0
            numbers = torch.full_like(codes.indices, -1)
            count = int(active.sum())
            numbers[active] = torch.arange(begin, begin + count, device=numbers.device)
            self.numbers[layer], begin = numbers, begin + count

    def norm(self, layer: int, which: int) -> _Norm:
        """The first or second layer norm of a layer."""
        block = self.model.backbone.at_home(layer)
        module = block.input_layernorm if which == 1 else block.post_attention_layernorm
        name = f"blocks.{layer}.ln{which}"
        return _Norm(module, name, self.run[f"{name}.hook_scale"])

    def final_norm(self) -> _Norm:
        """The final layer norm."""
        module = self.model.backbone.final_layer_norm
        return _Norm(module, "ln_final", self.run["ln_final.hook_scale"])

    def _split_mlp(self, layer: int) -> None:
        """What an MLP writes whatever its input, and along the linear path."""
        if layer == 0:
            self.linear = torch.zeros_like(self.constants)
        if layer not in self.transcoders.read_at:
            return
        free = (~self.held)[:, None]
        skip = self.transcoders.skip(layer)
        self.constants[layer] = at_least_float32(self.transcoders.b_dec(layer)) * free
        if skip is None:
            return
        matrix = at_least_float32(skip)
        self._skips[layer] = matrix
        shift = matrix @ self.reading_bias(layer)
        self.constants[layer] += shift * free
        self.linear[layer] = (self.streams[layer] @ matrix.T - shift) * free

    def reading_bias(self, layer: int) -> Tensor:
        """What stands in what a layer's features read whatever the stream is, ``[d_model]``."""
        name = self.transcoders.read_at[layer]
        bias = self.norm(layer, 2).bias
        return bias if name.endswith(AFFINE) else torch.zeros_like(bias)

    def read_back(self, layer: int, g: Tensor, pos: Tensor | None = None) -> Tensor:
        """From covectors of what a layer's features read to those of the stream before.

        Args:
            layer: which.
            g: ``[row, pos, d_model]``, or with ``pos`` ``[row, d_model]``.
            pos: of each row.
        """
        name, norm = self.transcoders.read_at[layer], self.norm(layer, 2)
        norm = norm if pos is None else norm.at(pos)
        if name.endswith((AFFINE, NORMED)):
            return norm.back(g, affine=name.endswith(AFFINE))
        return g

    def from_features(self) -> Tensor:
        """What the features write ``[layer, pos, d_model]``."""
        total = torch.zeros_like(self.mlp_out)
        for into in range(self.layers):
            for layer in self.transcoders.writers(into):
                for some, vectors, _ in self._vectors(layer, into):
                    total[into, some] += vectors.sum(dim=1)
        return total

    def _vectors(self, layer: int, into: int) -> list[tuple[slice, Tensor, Tensor]]:
        """What features write, ``[pos, slot, d_model]``, some positions at a time."""
        codes, found = self.codes[layer], []
        width = max(1, codes.indices.shape[1]) * self.embeddings.shape[1]
        step = max(1, _AT_ONCE // width)
        for begin in range(0, len(self.ids), step):
            some = slice(begin, min(begin + step, len(self.ids)))
            rows = self.transcoders.written(layer, into, codes.indices[some])
            vectors = at_least_float32(rows) * at_least_float32(codes.values[some, :, None])
            found.append((some, vectors, self.numbers[layer][some]))
        return found

    def attention_back(self, layer: int, g: Tensor) -> Tensor:
        """From covectors of what attention writes to those of the stream it reads.

        Args:
            layer: which.
            g: ``[row, pos, d_model]``.
        """
        weights = self.model.blocks[layer]
        W_V, W_O = at_least_float32(weights.W_V), at_least_float32(weights.W_O)  # noqa: N806
        heads, d_head, d_model = W_O.shape
        rows, length, _ = g.shape
        u = (g.reshape(-1, d_model) @ W_O.reshape(-1, d_model).T).view(rows, length, heads, d_head)
        u = u.permute(2, 1, 0, 3).reshape(heads, length, -1)  # [head, query_pos, row * d_head]
        pattern = self.run[f"blocks.{layer}.attn.hook_pattern"]
        v = torch.bmm(pattern.mT, u).view(heads, length, rows, d_head).permute(2, 1, 0, 3)
        x = v.reshape(-1, heads * d_head) @ W_V.transpose(1, 2).reshape(-1, d_model)
        return self.norm(layer, 1).back(x.view(rows, length, d_model))

    def attention_constant(self, layer: int) -> Tensor:
        """What attention writes whatever the stream is, ``[d_model]``."""
        weights = self.model.blocks[layer]
        bias = at_least_float32(self.norm(layer, 1).bias)
        value = torch.einsum("d,hde->he", bias, at_least_float32(weights.W_V))
        value = value + at_least_float32(weights.b_V)
        written = torch.einsum("he,hed->d", value, at_least_float32(weights.W_O))
        return written + at_least_float32(weights.b_O)

    @torch.no_grad()
    def trace(
        self, layer: Tensor, pos: Tensor, covectors: Tensor, constants: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What every source adds to some numbers, and what is added whatever they are.

        Args:
            layer: whose features' input each number is read from, not increasing, ``[row]``; the
                number of layers for the final residual stream.
            pos: where ``[row]``.
            covectors: of the stream there ``[row, d_model]``.
            constants: what the numbers have besides ``[row]``.

        Returns:
            ``[row, source]`` and ``[row]``.
        """
        g = self.embeddings.new_zeros(len(layer), len(self.ids), self.embeddings.shape[1])
        values = g.new_zeros(len(layer), self.sources)
        constants = constants.clone()
        first_error = len(self.features)
        begun = self._begin(g, 0, layer, pos, covectors, self.layers)
        for at in reversed(range(self.layers)):
            own, length = g[:begun], len(self.ids)
            for writer in self.transcoders.writers(at):
                self._add_features(values[:begun], own, writer, at)
            errors = torch.einsum("rpd,pd->rp", own, self.errors[at])
            values[:begun, first_error + at * length : first_error + (at + 1) * length] = errors
            constants[:begun] += torch.einsum("rpd,pd->r", own, self.constants[at])
            skipped = self._skip_back(at, own)
            if self.parallel:
                constants[:begun] += own.sum(dim=1) @ self.attention_constant(at)
                own += self.attention_back(at, own) + skipped
                begun = self._begin(g, begun, layer, pos, covectors, at)
            else:
                own += skipped
                begun = self._begin(g, begun, layer, pos, covectors, at)
                own = g[:begun]
                constants[:begun] += own.sum(dim=1) @ self.attention_constant(at)
                own += self.attention_back(at, own)
        values[:, -len(self.ids) :] = torch.einsum("rpd,pd->rp", g, self.embeddings)
        return values, constants

    @staticmethod
    def _begin(
        g: Tensor, begun: int, layer: Tensor, pos: Tensor, covectors: Tensor, at: int
    ) -> int:
        """Add the covectors of a layer; how many rows have begun then."""
        end = begun + int((layer[begun:] == at).sum())
        rows = torch.arange(begun, end, device=g.device)
        g[rows, pos[begun:end]] += covectors[begun:end]
        return end

    def _skip_back(self, layer: int, g: Tensor) -> Tensor:
        if layer not in self._skips:
            return g.new_zeros(())
        free = g.masked_fill(self.held[:, None], 0)
        return self.read_back(layer, free @ self._skips[layer])

    def _add_features(self, values: Tensor, g: Tensor, writer: int, into: int) -> None:
        """What features of one layer add by what they write into another."""
        for some, vectors, numbers in self._vectors(writer, into):
            shares = torch.bmm(g[:, some].transpose(0, 1), vectors.mT)  # [pos, row, slot]
            there = numbers >= 0
            values[:, numbers[there]] += shares.permute(1, 0, 2)[:, there]
