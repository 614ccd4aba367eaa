"""Plain runs: activations by hook name and layer, of prompts in which nothing is patched.

The patched run is kept whole: it is what every variant shares below the patched layer, left of the
patched position, and in every part of a block that a patch does not reach. Whoever goes up its
layers asks for one at a time, ``run.layer(number)``, and for ``run.final`` at the top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.family import GPTNeoXModel
from neox_lab.model.attention import masked_scores
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
}
"""What is kept of a run that gets patched, and the attribute of ``LayerRun`` that holds it."""

_DERIVED = ("hook_resid_mid", "hook_resid_post", "attn.hook_q", "attn.hook_k", PATTERN)
"""What follows from that, see ``PlainRun.at``."""


def hook_name(hook: str, layer: int) -> str:
    """The full name of a hook relative to a block; a full name stays what it is."""
    return hook if hook.startswith(("blocks.", "hook_embed")) else f"blocks.{layer}.{hook}"


def first_columns(found: Tensor, hook: str, length: int) -> Tensor:
    """The first ``length`` positions of activations, of queries and keys alike in patterns."""
    return found[:, :, :length, :length] if hook == PATTERN else found[:, :length]


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
    """

    resid_pre: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    z: Tensor
    attn_out: Tensor
    mlp_out: Tensor


class PlainRun:
    """The run that gets patched.

    Attributes:
        blocks: the network's blocks.
        final: residual stream after the last block ``[batch, pos, d_model]``.
        batch: pairs in it.
        length: positions.
        mask: 1 for text and 0 for padding ``[batch, pos]``, or None.
        blind: pairs padded in front ``[batch]``. Queries there may look at nothing, so they look
            evenly at everything, also ahead (see ``masking``): no text reads from them, but their
            own logits depend on all positions.
    """

    def __init__(
        self, model: HookedModel, prompts: Prompts, final: Tensor, activations: Activations
    ) -> None:
        """Nothing is run: see ``plain_run`` and ``both_runs``.

        Args:
            model: the model.
            prompts: the prompts.
            final: residual stream after the last block.
            activations: what was kept of it.
        """
        self.blocks = blocks_of(model)
        self.mask = prompts.mask
        self.batch, self.length = prompts.ids.shape
        self.blind = ~prompts.own[:, 0]
        self.final = final
        self._activations = activations
        self._layers: dict[int, LayerRun] = {}
        self._visible: dict[int, AttentionMask] = {}
        positions = torch.arange(self.length, device=final.device)
        cos, sin = model.backbone.rotary.angles(positions[None])
        self.cos, self.sin = cos[0], sin[0]  # [pos, 1, rotary_ndims]

    def layer(self, number: int) -> LayerRun:
        """The activations of one layer."""
        if number not in self._layers:
            self._layers[number] = LayerRun(*(self._activations(hook, number) for hook in _KEPT))
        return self._layers[number]

    def empty(self, *sizes: int) -> Tensor:
        """A tensor of the residual stream's dtype and device, not filled."""
        return self.layer(0).resid_pre.new_empty(sizes)

    def visible(self, first: int = 0) -> AttentionMask:
        """Who may look at whom, for queries from position ``first`` on and keys everywhere."""
        if first not in self._visible:
            like = self.layer(0).resid_pre
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
        return self._activations(hook, layer)

    def at(self, hook: str, layer: int) -> Tensor:
        """The run's activation at a hook that patches replace; queries and keys are rotated."""
        run = self.layer(layer)
        match hook:
            case "hook_resid_mid":
                return run.attn_out + run.resid_pre
            case "hook_resid_post":
                last = layer + 1 == len(self.blocks)
                return self.final if last else self.layer(layer + 1).resid_pre
            case "attn.hook_q":
                return run.q
            case "attn.hook_k":
                return run.k
            case "attn.hook_pattern":
                return self._pattern(layer)
        if hook in _KEPT:
            kept: Tensor = getattr(run, _KEPT[hook])
            return kept
        return self._activations(hook, layer)

    def _pattern(self, layer: int) -> Tensor:
        """The run's attention weights ``[batch, head, pos, source_pos]``."""
        run, attention = self.layer(layer), self.blocks[layer].attention
        q, k = run.q.transpose(1, 2), run.k.transpose(1, 2)
        scores = masked_scores(q, k, self.visible(), attention.scale)
        return scores.softmax(dim=-1).to(run.q.dtype)


def blocks_of(model: HookedModel) -> list[Block]:
    """The network's blocks, in order."""
    network = model.backbone
    return [network.block(layer) for layer in range(len(network.layers))]


def run_and_keep(
    model: HookedModel, prompts: Prompts, hooks: Iterable[str]
) -> tuple[Tensor, Activations]:
    """Run the layers once and keep some activations.

    Args:
        model: the model.
        prompts: tokens and padding.
        hooks: hook names relative to a block, or full ones.

    Returns:
        The residual stream after the last block, and the activations.
    """
    network = model.backbone
    assert isinstance(network, GPTNeoXModel)
    layers = len(network.layers)
    names = [hook_name(hook, layer) for hook in hooks for layer in range(layers)]
    output, cache = network.run_with_cache(
        prompts.ids, names, stop_at_layer=layers, use_cache=False, attention_mask=prompts.mask
    )
    return output.last_hidden_state, lambda hook, layer: cache[hook_name(hook, layer)]


def hooks_to_keep(hooks: Iterable[str]) -> list[str]:
    """What has to be kept of a run that gets patched at ``hooks``, for ``PlainRun.at``."""
    return list(dict.fromkeys([*_KEPT, *(hook for hook in hooks if hook not in _DERIVED)]))


def plain_run(model: HookedModel, prompts: Prompts, kept: Iterable[str]) -> PlainRun:
    """Run ``prompts``, which get patched, once, and keep what stands at hooks ``kept``."""
    return PlainRun(model, prompts, *run_and_keep(model, prompts, kept))


def both_runs(
    model: HookedModel, patched: Prompts, source: Prompts, kept: Iterable[str]
) -> tuple[PlainRun, Tensor, Activations]:
    """Run two batches of prompts as one, which takes hardly longer than one of short prompts.

    Returns:
        The run of ``patched``, and of ``source`` the residual stream after the last block and the
        activations at hooks ``kept``.
    """
    count = len(patched.ids)
    mask = None
    if patched.mask is not None or source.mask is not None:
        mask = torch.cat((patched.own, source.own)).long()
    both = Prompts(torch.cat((patched.ids, source.ids)), mask)
    final, found = run_and_keep(model, both, dict.fromkeys(kept))
    run = PlainRun(model, patched, final[:count], lambda hook, layer: found(hook, layer)[:count])
    return run, final[count:], lambda hook, layer: found(hook, layer)[count:]


def for_variants(mask: AttentionMask, pair: Tensor | None) -> AttentionMask:
    """The mask of variants that belong to pairs ``[variant]``, from that of the pairs."""
    if pair is None or mask.bias is None or mask.bias.shape[0] == 1:
        return mask
    return mask._replace(bias=mask.bias[pair])
