"""The whole network, and the one loop over its layers.

    tokens ── embed_in ──► residual ──► block 0 ──► … ──► block L-1 ──► final_layer_norm ──► out

``run_layers`` is the only place where a transformer is computed in this package. Generation,
sweeps, lenses and widgets drive it: it starts before any layer and stops before any other, from
a residual stream, cached keys and values, and positions of the caller's choosing.

Black et al., GPT-NeoX-20B, arXiv:2204.06745; Biderman et al., Pythia, arXiv:2304.01373.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from neox_lab.config import ATTENTION_PATHS, GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.model.block import Block, layer_norm
from neox_lab.model.elsewhere import Elsewhere
from neox_lab.model.hook_points import NO_TAPS, Taps
from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.model.masking import attention_mask, own_positions, packed_texts
from neox_lab.model.rotary import RotaryTable
from neox_lab.selections import whole_number

_NOTHING = nullcontext()


class Store(Protocol):
    """Where layers are that do not stay in memory."""

    def going(self, first: int, last: int) -> AbstractContextManager[Iterable[int]]:
        """The layers ``first`` to ``last - 1``, to be run one after the other inside."""


class Network(nn.Module):
    """Embedding, blocks and final layer norm, under Hugging Face's parameter names.

    Attributes:
        store: what reads layers from their files for each pass; None where all are in memory.
        devices: the device of each layer, to which the residual stream moves; None where all are
            on one. What is no layer is on one device, to which it comes back.
    """

    store: Store | None = None
    devices: tuple[torch.device, ...] | None = None

    def __init__(self, config: GPTNeoXConfig) -> None:
        """Build the modules ``config`` describes; weights are PyTorch's defaults."""
        super().__init__()
        self.d_model = config.hidden_size
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.emb_dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.rotary = RotaryTable(config)
        self.gradient_checkpointing = False
        if config._attn_implementation is None:
            config._attn_implementation = ATTENTION_PATHS[0]

    def block(self, layer: int) -> Block:
        """Block ``layer``, from 0."""
        block = self.layers[layer]
        assert isinstance(block, Block)
        return block

    def at_home(self, layer: int) -> Block:
        """Block ``layer``; of one on another device what moves there and back (``elsewhere``)."""
        block = self.block(layer)
        if self.devices is None:
            return block
        home = next(self.parameters()).device  # of the embedding
        if self.devices[layer] == home:
            return block
        return cast(Block, Elsewhere(block, self.devices[layer], home))

    def embed(self, input_ids: Tensor | None, embeds: Tensor | None, taps: Taps) -> Tensor:
        """The residual stream before block 0, ``[batch, pos, d_model]``.

        Args:
            input_ids: token ids ``[batch, pos]``, or None.
            embeds: vectors ``[batch, pos, d_model]`` instead of the ids' embeddings, or None.
            taps: hook points.

        Raises:
            InputError: both given or neither, of the wrong shape, or ids outside the vocabulary.
        """
        if (input_ids is None) == (embeds is None):
            raise InputError(
                "You must specify exactly one of input_ids or inputs_embeds; got "
                f"{'both' if embeds is not None else 'neither'}."
            )
        if input_ids is not None:
            embeds = self.look_up(input_ids)
        assert embeds is not None
        return self.emb_dropout(taps.outside("hook_embed", embeds))

    def look_up(self, input_ids: Tensor) -> Tensor:
        """Embeddings ``[batch, pos, d_model]`` of ``input_ids`` ``[batch, pos]``.

        Raises:
            InputError: they are no whole numbers, have other axes, or are not in the vocabulary.
        """
        if input_ids.dtype is not torch.int64:
            input_ids = _as_ids(input_ids)
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            raise InputError(
                f"input_ids is a {input_ids.dtype} tensor of shape {list(input_ids.shape)}; "
                "expected whole numbers [batch, pos]. For a single sequence use input_ids[None]."
            )
        try:
            return self.embed_in(input_ids)
        except IndexError:
            size = getattr(self.embed_in, "num_embeddings", "unknown")
            raise InputError(
                f"input_ids goes from {int(input_ids.min())} to {int(input_ids.max())}, but ids "
                f"must be at least 0 and below vocab_size, which is {size}. If tokens were added "
                "to the tokenizer: model.resize_token_embeddings(len(tokenizer))."
            ) from None

    def run_layers(
        self,
        residual: Tensor,
        *,
        first: int = 0,
        last: int | None = None,
        position_ids: Tensor | None = None,
        mask: Tensor | None = None,
        keys_values: KeyValueCache | None = None,
        taps: Taps = NO_TAPS,
    ) -> Tensor:
        """Run blocks ``first`` to ``last - 1``.

        Args:
            residual: residual stream entering block ``first``, ``[batch, pos, d_model]``.
            first: number of the first block to run.
            last: number of the block to stop before; None means all the way.
            position_ids: absolute positions ``[batch or 1, pos]``; None continues the cache.
                Where they restart and there is neither a mask nor a cache, the row holds several
                texts that do not see each other, see ``packed_texts``.
            mask: padding or visibility, see ``attention_mask``; covers past and new positions.
            keys_values: keys and values of earlier positions, extended in place.
            taps: hook points.

        Returns:
            The residual stream entering block ``last``, ``[batch, pos, d_model]``.

        Raises:
            InputError: shapes or layer numbers that do not fit.
        """
        last = len(self.layers) if last is None else last
        if not 0 <= first <= last <= len(self.layers):
            raise InputError(
                f"Cannot run layers {first} to {last}: this model has {len(self.layers)} layers, "
                "and a run goes from a lower to a higher one."
            )
        if residual.dim() != 3 or residual.shape[2] != self.d_model:
            raise InputError(
                f"The residual stream (inputs_embeds) has shape {list(residual.shape)}; expected "
                f"[batch, pos, {self.d_model}]."
            )
        if first == last:
            return residual
        batch, length, _ = residual.shape
        past = 0 if keys_values is None else keys_values.get_seq_length(first)
        given = position_ids
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=residual.device)[None]
        elif tuple(position_ids.shape) not in ((batch, length), (1, length)):
            raise InputError(
                f"position_ids has shape {list(position_ids.shape)}; expected [{batch}, {length}] "
                f"or [1, {length}]."
            )
        elif mask is None and keys_values is None:
            mask = packed_texts(position_ids)
        rotation = self.rotary.angles(position_ids)
        visible = attention_mask(mask, batch, length, past, residual.dtype, residual.device)
        if taps.located:
            taps.locate(own_positions(given, mask, length, past, residual.device), past)
        # Without gradients there is nothing that could be computed again.
        recompute = (
            self.gradient_checkpointing and self.training and torch.is_grad_enabled() and not taps
        )
        home = residual.device
        with _NOTHING if self.store is None else self.store.going(first, last) as streamed:
            for layer in range(first, last) if streamed is None else streamed:
                block, tap = self.layers[layer], taps.block(layer)
                if self.devices is not None:
                    device = self.devices[layer]
                    residual, visible = residual.to(device), visible.to(device)
                    rotation = rotation[0].to(device), rotation[1].to(device)
                if recompute:
                    residual = block(residual, rotation, visible, recompute=True)
                else:
                    kept = None if keys_values is None else keys_values.layers[layer]
                    residual = block(residual, rotation, visible, kept, tap)
        return residual if self.devices is None else residual.to(home)

    def attend_alone(
        self, layer: int, normalized: Tensor, mask: Tensor | None = None, taps: Taps = NO_TAPS
    ) -> Tensor:
        """What attention of one block writes, of what its layer norm returned.

        Args:
            layer: number of the block, from 0.
            normalized: ``[batch, pos, d_model]``, at positions 0 and up.
            mask: padding, see ``attention_mask``.
            taps: hook points.

        Returns:
            ``[batch, pos, d_model]``.
        """
        batch, length, _ = normalized.shape
        positions = torch.arange(length, device=normalized.device)[None]
        visible = attention_mask(mask, batch, length, 0, normalized.dtype, normalized.device)
        attention, rotation = self.block(layer).attention, self.rotary.angles(positions)
        written: Tensor = attention(normalized, rotation, visible, None, taps.block(layer))
        return written

    def normalize(self, residual: Tensor, taps: Taps = NO_TAPS) -> Tensor:
        """The final layer norm: from ``[..., d_model]`` to what the heads read."""
        return layer_norm(
            residual,
            self.final_layer_norm,
            taps.outside,
            "ln_final.hook_scale",
            "ln_final.hook_normalized",
        )


def layer_span(start: int | None, stop: int | None, layers: int) -> tuple[int, int]:
    """First block to run and block to stop before.

    Args:
        start: None for the first; negative numbers count from the end.
        stop: None for after the last; negative numbers count from the end.
        layers: how many there are.

    Raises:
        InputError: no whole numbers.
    """
    start = None if start is None else whole_number("start_at_layer", start, InputError)
    stop = None if stop is None else whole_number("stop_at_layer", stop, InputError)
    first = 0 if start is None else start + layers if start < 0 else start
    last = layers if stop is None else stop + layers if stop < 0 else stop
    return first, last


def _as_ids(ids: Tensor) -> Tensor:
    """Whole numbers of few bytes as those that an embedding takes; others as they are."""
    if ids.dtype in (torch.int8, torch.uint8, torch.int16):
        return ids.long()
    if ids.dtype == torch.bool or ids.is_complex():
        raise InputError(f"input_ids is a {ids.dtype} tensor; expected whole numbers.")
    return ids
