"""Plain runs: activations by hook name and layer, of prompts in which nothing is patched.

A plain run is made while variants go up: ``Stream.advance`` runs one block and keeps what it shows,
until the next block is run. So no layer is asked for twice, and one layer's activations at a time
are held. The patched run is what every variant shares below the patched layer, left of the patched
position, and in every part of a block that a patch does not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.errors import HookNameError
from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.family import GPTNeoXModel
from neox_lab.hooks.hooking import Placement
from neox_lab.model.attention import masked_scores
from neox_lab.model.hook_points import HookPoint, Watcher
from neox_lab.model.masking import AttentionMask, attention_mask
from neox_lab.model.rotary import rotate

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.model.block import Block

Activations = Callable[[str, int], Tensor]
"""From a hook name (relative to its block) and a layer to activations ``[batch, pos, ...]``;
attention patterns are ``[batch, head, pos, source_pos]``."""

PATTERN = "attn.hook_pattern"

_KEPT = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_rot_q": "q",
    "attn.hook_rot_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
"""What is kept of a run that gets patched, and the attribute of ``LayerRun`` that holds it."""

_DERIVED = ("hook_resid_mid", "attn.hook_q", "attn.hook_k", PATTERN)
"""What follows from that, see ``PlainRun.at``."""


def hook_name(hook: str, layer: int) -> str:
    """The full name of a hook relative to a block; a full name stays what it is."""
    return hook if hook.startswith(("blocks.", "hook_embed")) else f"blocks.{layer}.{hook}"


def first_columns(found: Tensor, hook: str, length: int) -> Tensor:
    """The first ``length`` positions of activations, of queries and keys alike in patterns."""
    return found[:, :, :length, :length] if hook == PATTERN else found[:, :length]


class Stream:
    """A plain run on its way up, one block after the other.

    Where a function is spliced in that sums up what it found in earlier blocks, all blocks are run
    at once, and everything is kept.

    Attributes:
        network: the model without its head.
        prompts: what is run.
        at_once: whether all blocks are run at once.
        entering: the residual stream before the block that was run last ``[batch, pos, d_model]``;
            token ids ``[batch, pos]`` before the first.
        leaving: that after it.
    """

    def __init__(self, model: HookedModel, prompts: Prompts, hooks: Iterable[str]) -> None:
        """Nothing is run yet.

        Args:
            model: the model.
            prompts: tokens and padding.
            hooks: hook names relative to a block, or full ones: what is kept, on the device of
                the prompts.
        """
        network = model.backbone
        assert isinstance(network, GPTNeoXModel)
        self.network, self.prompts, self._hooks = network, prompts, list(dict.fromkeys(hooks))
        self._blocks = len(network.layers)
        self.at_once = any(each.since is not None for each in network.hook_stack.placements)
        self.start()

    def start(self) -> None:
        """Nothing is run yet, or it is forgotten."""
        self._found: dict[str, Tensor] = {}
        self._next = 0
        self.leaving = self.entering = self.prompts.ids

    def advance(self) -> None:
        """Run the next block, and keep what it shows instead of what the one before did."""
        first, last = self._next, self._next + 1
        self._next = last
        if self.at_once:
            last = self._blocks
        if not (self.at_once and first):
            self._found, self.entering = {}, self.leaving
            self.leaving = self._run(self.entering, first, last)

    def release(self) -> None:
        """Keep only the residual stream, until the next block is run."""
        if not self.at_once:
            self._found = {}

    def __call__(self, hook: str, layer: int) -> Tensor:
        """What the block that was run last showed at a hook.

        Raises:
            HookNameError: nothing passed there.
        """
        name = hook_name(hook, layer)
        if name not in self._found:
            raise HookNameError(f"The run did not pass {name!r}, so nothing can be patched there.")
        return self._found[name]

    def _run(self, entering: Tensor, first: int, last: int) -> Tensor:
        """Blocks ``first`` to ``last - 1``, and the embedding before block 0."""
        points = self.network.hook_points
        layers = range(first, last)
        names = dict.fromkeys(hook_name(hook, layer) for hook in self._hooks for layer in layers)
        among = [points[name] for name in names if name in points]
        placement = Placement(points, (), ())
        placement.entries = [
            ("plain run", [Watcher(point, self._keep, writes=False)])
            for point in among
            if (0 if point.layer is None else point.layer) in layers
        ]
        with self.network.hook_stack.placed(placement, must_fire=False):
            output = self.network(
                **{"inputs_embeds" if first else "input_ids": entering},
                start_at_layer=first,
                stop_at_layer=last,
                use_cache=False,
                attention_mask=self.prompts.mask,
            )
        found: Tensor = output.last_hidden_state
        return found

    def _keep(self, tensor: Tensor, point: HookPoint) -> None:
        self._found[point.name] = tensor.to(self.prompts.ids.device)


@dataclass
class LayerRun:
    """One layer of the run that gets patched.

    Attributes:
        resid_pre: residual stream entering the block ``[batch, pos, d_model]``.
        q: rotated queries ``[batch, pos, head, d_head]``.
        k: rotated keys.
        v: values.
        z: what each head read.
        attn_out: what attention adds ``[batch, pos, d_model]``.
        mlp_out: what the MLP adds.
        resid_post: residual stream leaving the block.
    """

    resid_pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor
    attn_out: Tensor
    mlp_out: Tensor
    resid_post: Tensor


class PlainRun:
    """The run that gets patched.

    Attributes:
        stream: makes it, a block at a time.
        blocks: the network's blocks.
        batch: pairs in it.
        length: positions.
        mask: 1 for text and 0 for padding ``[batch, pos]``, or None.
        blind: pairs padded in front ``[batch]``. Queries there may look at nothing, so they look
            evenly at everything, also ahead (see ``masking``): no text reads from them, but their
            own logits depend on all positions.
    """

    def __init__(self, model: HookedModel, prompts: Prompts, stream: Stream) -> None:
        """Nothing is run yet.

        Args:
            model: the model.
            prompts: those that get patched.
            stream: runs them, as the first rows of its batch.
        """
        self.stream = stream
        self.blocks = blocks_of(model)
        self.mask = prompts.mask
        self.batch, self.length = prompts.ids.shape
        self.blind = ~prompts.own[:, 0]
        self._layer: tuple[int, LayerRun] | None = None
        self._visible: dict[int, AttentionMask] = {}
        positions = torch.arange(self.length, device=prompts.ids.device)
        cos, sin = model.backbone.rotary.angles(positions[None])
        self.cos, self.sin = cos[0], sin[0]  # [pos, 1, rotary_ndims]

    def layer(self, number: int) -> LayerRun:
        """The activations of the layer that was run last."""
        if self._layer is None or self._layer[0] != number:
            self._layer = number, LayerRun(*(self.kept(hook, number) for hook in _KEPT))
        return self._layer[1]

    def release(self) -> None:
        """Forget the layer that was run last."""
        self._layer = None

    @property
    def entering(self) -> Tensor:
        """The residual stream before the block that was run last, see ``Stream``."""
        return self.stream.entering[: self.batch]

    @property
    def final(self) -> Tensor:
        """The residual stream after the last block that was run ``[batch, pos, d_model]``."""
        return self.stream.leaving[: self.batch]

    def empty(self, *sizes: int) -> Tensor:
        """A tensor of the residual stream's dtype and device, not filled."""
        return self.stream.leaving.new_empty(sizes)

    def visible(self, first: int = 0) -> AttentionMask:
        """Who may look at whom, for queries from position ``first`` on and keys everywhere."""
        if first not in self._visible:
            like = self.stream.leaving
            self._visible[first] = attention_mask(
                self.mask, self.batch, self.length - first, first, like.dtype, like.device
            )
        return self._visible[first]

    def mix(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, pair: Tensor | None = None
    ) -> Tensor:
        """What every head reads, ``[variant, pos, head, d_head]``.

        Args:
            layer: whose attention.
            q: rotated queries ``[variant, pos, head, d_head]``.
            k: rotated keys.
            v: values.
            pair: which pair each variant belongs to; None if variants are the pairs.
        """
        mask = for_variants(self.visible(), pair)
        attention = self.blocks[layer].attention
        z: Tensor = attention.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return z.transpose(1, 2)

    def rotated(self, x: Tensor) -> Tensor:
        """Queries or keys ``[batch, pos, head, d_head]``, rotated."""
        return rotate(x, self.cos, self.sin)

    def kept(self, hook: str, layer: int) -> Tensor:
        """What was kept of the run at a hook, as it is."""
        return self.stream(hook, layer)[: self.batch]

    def at(self, hook: str, layer: int) -> Tensor:
        """The run's activation at a hook that patches replace; queries and keys are rotated."""
        run = self.layer(layer)
        match hook:
            case "hook_resid_mid":
                return run.attn_out + run.resid_pre
            case "attn.hook_q":
                return run.q
            case "attn.hook_k":
                return run.k
            case "attn.hook_pattern":
                return self._pattern(layer)
        if hook in _KEPT:
            kept: Tensor = getattr(run, _KEPT[hook])
            return kept
        return self.kept(hook, layer)

    def _pattern(self, layer: int) -> Tensor:
        """The run's attention weights ``[batch, head, pos, source_pos]``."""
        run, attention = self.layer(layer), self.blocks[layer].attention
        q, k = run.q.transpose(1, 2), run.k.transpose(1, 2)
        scores = masked_scores(q, k, self.visible(), attention.scale)
        return scores.softmax(dim=-1).to(run.q.dtype)


def blocks_of(model: HookedModel) -> list[Block]:
    """The network's blocks, in order, as questions use them."""
    network = model.backbone
    return [network.at_home(layer) for layer in range(len(network.layers))]


def hooks_to_keep(hooks: Iterable[str]) -> list[str]:
    """What has to be kept of a run that gets patched at ``hooks``, for ``PlainRun.at``."""
    return list(dict.fromkeys([*_KEPT, *(hook for hook in hooks if hook not in _DERIVED)]))


def for_variants(mask: AttentionMask, pair: Tensor | None) -> AttentionMask:
    """The mask of variants that belong to pairs ``[variant]``, from that of the pairs."""
    if pair is None or mask.bias is None or mask.bias.shape[0] == 1:
        return mask
    return mask._replace(bias=mask.bias[pair])
