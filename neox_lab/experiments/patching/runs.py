"""The run that gets patched, and where the patches come from.

Both are activations by hook name and layer. The patched run is kept whole: it is what every
variant shares below the patched layer, left of the patched position, and in every part of a
block that a patch does not reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from neox_lab.experiments.patching.prompts import Prompts
from neox_lab.experiments.patching.sites import Site
from neox_lab.model.masking import AttentionMask, attention_mask
from neox_lab.model.network import Network
from neox_lab.model.rotary import rotate

if TYPE_CHECKING:
    from neox_lab.model.block import Block

Source = Callable[[str, int], Tensor]
"""From a hook name (relative to its block) and a layer to the activations ``[batch, pos, ...]``
that are patched in."""

BASE_HOOKS = (
    "hook_resid_pre",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_v",
    "attn.hook_z",
    "hook_attn_out",
    "hook_mlp_out",
)


def activations(
    network: Network, ids: Tensor, mask: Tensor | None, hooks: Iterable[str]
) -> tuple[Tensor, Source]:
    """Run the layers once and keep some activations.

    Args:
        network: embedding and blocks.
        ids: tokens ``[batch, pos]``.
        mask: 1 for text and 0 for padding ``[batch, pos]``, or None.
        hooks: hook names relative to a block.

    Returns:
        The residual stream after the last block, and the activations.
    """
    layers = len(network.layers)
    names = [f"blocks.{layer}.{hook}" for hook in hooks for layer in range(layers)]
    arguments = {} if mask is None else {"attention_mask": mask}
    run, cache = network.run_with_cache(  # type: ignore[operator]
        ids, names, stop_at_layer=layers, use_cache=False, **arguments
    )

    def source(hook: str, layer: int) -> Tensor:
        found: Tensor = cache[f"blocks.{layer}.{hook}"]
        return found

    return run.last_hidden_state, source


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


class BaseRun:
    """The run that gets patched.

    Attributes:
        network: embedding and blocks.
        blocks: the blocks.
        layers: activations of each block.
        final: residual stream after the last block ``[batch, pos, d_model]``.
        batch: pairs in it.
        length: positions.
        blind: pairs padded in front ``[batch]``. Queries there may look at nothing, so they look
            evenly at everything, also ahead (see ``masking``): no text reads from them, but their
            own logits depend on all positions.
    """

    def __init__(self, network: Network, prompts: Prompts, final: Tensor, run: Source) -> None:
        """Nothing is run: see ``plain_run`` and ``both_runs``.

        Args:
            network: embedding and blocks.
            prompts: the prompts.
            final: residual stream after the last block.
            run: activations at ``BASE_HOOKS``.
        """
        self.network = network
        self.blocks = [cast("Block", block) for block in network.layers]
        self.mask = prompts.mask
        self.batch, self.length = prompts.ids.shape
        self.blind = ~prompts.own[:, 0]
        self.final = final
        self._visible: dict[int, AttentionMask] = {}
        self.layers = [
            LayerRun(*(run(hook, layer) for hook in BASE_HOOKS))
            for layer in range(len(network.layers))
        ]
        positions = torch.arange(self.length, device=final.device)
        cos, sin = network.rotary.angles(positions[None])
        self.cos, self.sin = cos[0], sin[0]  # [pos, 1, rotary_ndims]

    def visible(self, first: int = 0) -> AttentionMask:
        """Who may look at whom, for queries from position ``first`` on and keys everywhere."""
        if first not in self._visible:
            like = self.final
            self._visible[first] = attention_mask(
                self.mask, self.batch, self.length - first, first, like.dtype, like.device
            )
        return self._visible[first]

    def mix(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, pair: Tensor | None = None
    ) -> Tensor:
        """What every head reads, ``[row, pos, head, d_head]``.

        Args:
            layer: whose attention.
            q: rotated queries ``[row, pos, head, d_head]``.
            k: rotated keys.
            v: values.
            pair: which pair each row belongs to; None if rows are the pairs.
        """
        mask = for_rows(self.visible(), pair)
        attention = self.blocks[layer].attention
        z: Tensor = attention.mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return z.transpose(1, 2)

    def turned(self, x: Tensor) -> Tensor:
        """Queries or keys ``[batch, pos, head, d_head]``, rotated."""
        return rotate(x, self.cos, self.sin)

    def at(self, hook: str, layer: int) -> Tensor:
        """The activation a site replaces, as ``replaced`` in ``arrivals`` compares it."""
        run = self.layers[layer]
        match hook:
            case "hook_resid_mid":
                return run.attn_out + run.resid_pre
            case "hook_resid_post":
                last = layer + 1 == len(self.layers)
                return self.final if last else self.layers[layer + 1].resid_pre
            case "attn.hook_q" | "attn.hook_k" | "attn.hook_v" | "attn.hook_z":
                found: Tensor = getattr(run, hook[-1])
                return found
            case _:
                found = getattr(run, hook.removeprefix("hook_"))
                return found


def needed_hooks(sites: Iterable[Site]) -> list[str]:
    """Hook names that the source must provide."""
    return list(dict.fromkeys(site.hook for site in sites))


def plain_run(network: Network, prompts: Prompts) -> BaseRun:
    """Run ``prompts`` once."""
    return BaseRun(network, prompts, *activations(network, prompts.ids, prompts.mask, BASE_HOOKS))


def both_runs(
    network: Network, prompts: Prompts, twins: Prompts, hooks: Iterable[str]
) -> tuple[BaseRun, Tensor, Source]:
    """Run two batches of prompts as one, which takes hardly longer than one of short prompts.

    Returns:
        The run of ``prompts``, and of ``twins`` the residual stream after the last block and the
        activations at ``hooks``.
    """
    count = len(prompts.ids)
    mask = None
    if prompts.mask is not None or twins.mask is not None:
        mask = torch.cat((prompts.own, twins.own)).long()
    names = dict.fromkeys((*BASE_HOOKS, *hooks))
    final, run = activations(network, torch.cat((prompts.ids, twins.ids)), mask, names)
    base = BaseRun(network, prompts, final[:count], lambda hook, layer: run(hook, layer)[:count])
    return base, final[count:], lambda hook, layer: run(hook, layer)[count:]


def for_rows(mask: AttentionMask, pair: Tensor | None) -> AttentionMask:
    """The mask of rows that belong to pairs ``[row]``, from that of the pairs."""
    if pair is None or mask.bias is None or mask.bias.shape[0] == 1:
        return mask
    return mask._replace(bias=mask.bias[pair])
