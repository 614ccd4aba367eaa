"""Taking the residual stream apart, with the activations of a cache.

Whatever a block reads is a sum:

    resid_pre[l] = embed + Σ_{k<l} (attn_out[k] + mlp_out[k])
    attn_out[k]  = Σ_head z[head] W_O[head] + b_O
    mlp_out[k]   = Σ_neuron post[neuron] W_out[neuron] + b_out

With its scale taken from the run, layer norm is linear, so each part also has its share in every
logit, and the shares add up (Elhage et al., 2021, "A Mathematical Framework for Transformer
Circuits"). Names, arguments, defaults and orders are TransformerLens's. Where the two differ:

* Parallel blocks have no residual stream "in the middle". ``incl_mid`` gives ``resid_pre +
  attn_out`` there, labelled ``"{l}_mid"``: what the block would leave without its MLP. Their MLPs
  read ``resid_pre``, so ``mlp_input`` adds nothing of the same block.
* The remainder of ``layer=0`` is the input of block 0.

A ``layer`` is what is read: 0 is the input of the first block; the number of layers, -1 and None
are what the head reads, the default. Rows of the batch never mix, so padding harms nobody else.
The sums hold without dropout, and as long as no hook replaced a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from neox_lab.errors import HookError
from neox_lab.head_names import head_name
from neox_lab.hooks.logit_attribution import (
    DecompositionView,
    LogitShares,
    in_one_dtype,
)
from neox_lab.model.attention import head_results
from neox_lab.selections import Selection, entry, read, take

Stack = Tensor | tuple[Tensor, list[str]]
"""Components ``[component, batch, pos, d_model]``; with ``return_labels`` a pair with labels."""


class CacheArithmetic(LogitShares):
    """Sums and decompositions of the residual stream, over activations by name."""

    def make_on_access(self, name: str, maker: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        """Let ``maker`` produce the tensor of ``name`` each time it is asked for."""
        raise NotImplementedError

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Selection = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack:
        """The residual stream entering each block up to ``layer``: what a logit lens reads.

        Args:
            layer: how far; by default to the end, whose entry is labelled ``final_post``.
            incl_mid: also what stands between attention and MLP of every block before ``layer``.
            apply_ln: at the end, the final layer norm of each entry by itself, weight and bias
                included (``W_U`` then gives logits); at an earlier layer see apply_ln_to_stack.
            pos_slice: positions to take.
            mlp_input: end with what the MLP of ``layer`` reads (sequential blocks).
            return_labels: also return ``["0_pre", "1_pre", .., "final_post"]``.

        Returns:
            ``[layers covered, batch, pos, d_model]``.

        Raises:
            HookNameError: something needed was not kept; the message says what to name.
        """
        layer = self._layer(layer, mlp_input)
        entries, labels = [], []
        for block in range(layer + 1):
            entries.append(self._stream(block, pos_slice))
            labels.append("final_post" if block == self._layers else f"{block}_pre")
            if block < layer and incl_mid:
                entries.append(self._middle(block, pos_slice))
                labels.append(f"{block}_mid")
        if mlp_input and not self._parallel:
            entries.append(self._middle(layer, pos_slice))
            labels.append(f"{layer}_mid")
        stack = torch.stack(entries)
        if apply_ln:
            at_end = layer == self._layers
            stack = self.apply_ln_to_stack(stack, layer, mlp_input, pos_slice, recompute_ln=at_end)
        return (stack, labels) if return_labels else stack

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Selection = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack:
        """What embedding, attention and MLPs wrote before ``layer``; it sums to what is read there.

        Args:
            layer: what is read.
            mlp_input: by the MLP of ``layer`` instead of its attention.
            mode: ``"attn"`` or ``"mlp"`` leaves out what the others wrote.
            apply_ln: see apply_ln_to_stack.
            pos_slice: positions to take.
            incl_embeds: begin with the embedding.
            return_labels: also return ``["embed", "0_attn_out", "0_mlp_out", ..]``.

        Returns:
            ``[component, batch, pos, d_model]``.

        Raises:
            HookError: an unknown mode.
            HookNameError: something needed was not kept; the message says what to name.
        """
        if mode not in ("all", "mlp", "attn"):
            raise HookError(f"mode={mode!r}; expected 'all', 'mlp' or 'attn'.")
        view = self._view(layer, mlp_input, pos_slice, apply_ln)
        wanted = {"embed": "hook_embed"} if incl_embeds else {}
        for block in range(view.layer):
            if mode != "mlp":
                wanted[f"{block}_attn_out"] = f"blocks.{block}.hook_attn_out"
            if mode != "attn":
                wanted[f"{block}_mlp_out"] = f"blocks.{block}.hook_mlp_out"
        if mode != "mlp" and self._reads_own_attention(view):
            wanted[f"{view.layer}_attn_out"] = f"blocks.{view.layer}.hook_attn_out"
        parts = [tensor[None] for tensor in self._fetch(wanted.values(), pos_slice)]
        return self._finish(parts, list(wanted), view, return_labels)

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Selection = None,
        apply_ln: bool = False,
    ) -> Stack:
        """What each head before ``layer`` wrote, by layer, then head.

        Args:
            layer: what is read.
            return_labels: also return ``["L0H0", "L0H1", .., "remainder"]``.
            incl_remainder: end with the rest of the residual stream, so that all sums to it.
            pos_slice: positions to take.
            apply_ln: see apply_ln_to_stack.

        Returns:
            ``[layer * head, batch, pos, d_model]``.

        Raises:
            HookNameError: neither ``hook_result`` nor ``hook_z`` was kept.
        """
        view = self._view(layer, False, pos_slice, apply_ln)
        parts, labels = self._heads(view.layer, view)
        if incl_remainder:
            self._add_remainder(parts, labels, view)
        return self._finish(parts, labels, view, return_labels)

    def stack_neuron_results(
        self,
        layer: int | None,
        pos_slice: Selection = None,
        neuron_slice: Selection = None,
        return_labels: bool = False,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        project_output_onto: Tensor | None = None,
        mlp_input: bool = False,
    ) -> Stack:
        """What each neuron before ``layer`` wrote, by layer, then neuron. Large: mind memory.

        Args:
            layer: what is read.
            pos_slice: positions to take.
            neuron_slice: neurons of each layer to take.
            return_labels: also return ``["L0N0", "L0N1", .., "remainder"]``.
            incl_remainder: end with the rest of the residual stream.
            apply_ln: see apply_ln_to_stack.
            project_output_onto: directions ``[d_model]`` or ``[d_model, output]``; their products
                with the components are returned, and the components are never made.
            mlp_input: read by the MLP of ``layer`` instead of its attention.

        Returns:
            ``[layer * neuron, batch, pos, d_model]``, or ``[.., output]``, or without that axis
            for one direction.

        Raises:
            HookNameError: ``hook_post`` was not kept.
        """
        view = self._view(layer, mlp_input, pos_slice, apply_ln, project_output_onto)
        parts, labels = self._neurons(view, neuron_slice)
        if incl_remainder:
            self._add_remainder(parts, labels, view)
        return self._finish(parts, labels, view, return_labels)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Selection = None,
        pos_slice: Selection = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What each neuron of block ``layer`` wrote, ``[batch, pos, neuron, d_model]``.

        Args:
            layer: number of the block.
            neuron_slice: neurons to take; one number drops the axis.
            pos_slice: positions to take.
            project_output_onto: as in stack_neuron_results.

        Raises:
            HookNameError: ``hook_post`` was not kept.
        """
        layer = entry("layer", layer, self._layers, HookError)
        weight = self._network.at_home(layer).neurons().writing().weight.T  # [d_mlp, d_model]
        (post,) = self._fetch([f"blocks.{layer}.mlp.hook_post"], pos_slice)
        post = take(post, -1, neuron_slice, "neuron_slice", HookError)
        weight = take(weight, 0, neuron_slice, "neuron_slice", HookError)
        post, weight = in_one_dtype(post, weight)
        if project_output_onto is None:
            return post[..., None] * weight
        projected = weight @ project_output_onto.to(weight)
        return post * projected if project_output_onto.dim() == 1 else post[..., None] * projected

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Selection = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Stack:
        """Everything that was added up, in the order heads, neurons (or MLPs), embedding, biases.

        Args:
            layer: what is read.
            mlp_input: by the MLP of ``layer`` instead of its attention.
            expand_neurons: neuron by neuron; False keeps each ``mlp_out`` whole, bias included.
            apply_ln: see apply_ln_to_stack.
            pos_slice: positions to take.
            return_labels: also return ``["L0H0", .., "L0N0", .., "embed", "bias"]``.
            project_output_onto: as in stack_neuron_results.

        Returns:
            ``[component, batch, pos, d_model]``; it sums to what is read.

        Raises:
            HookNameError: something needed was not kept; the message says what to name.
        """
        view = self._view(layer, mlp_input, pos_slice, apply_ln, project_output_onto)
        parts, labels = self._heads(view.layer + self._reads_own_attention(view), view)
        if expand_neurons:
            neurons, neuron_labels = self._neurons(view, None)
            parts, labels = parts + neurons, labels + neuron_labels
        else:
            names = [f"blocks.{block}.hook_mlp_out" for block in range(view.layer)]
            parts += [view.along(out)[None] for out in self._fetch(names, pos_slice)]
            labels += [f"{block}_mlp_out" for block in range(view.layer)]
        (embed,) = self._fetch(["hook_embed"], pos_slice)
        bias = self._running_model.accumulated_bias(view.layer, mlp_input, expand_neurons).detach()
        for tensor in (embed, bias.to(embed.device).expand_as(embed)):
            parts.append(view.along(tensor)[None])
        return self._finish(parts, [*labels, "embed", "bias"], view, return_labels)

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Tensor:
        """One activation of every block before ``layer``, ``[layer, ..]``.

        Args:
            activation_name: short name, such as ``"pattern"``.
            layer: block to stop before; by default after the last.
            sublayer_type: ``"ln1"`` or ``"ln2"`` for scales.

        Raises:
            HookNameError: unknown, or not kept.
        """
        part = (sublayer_type,) if sublayer_type else ()
        blocks = range(self._layer(layer))
        return torch.stack([self[(activation_name, block, *part)] for block in blocks])  # type: ignore[index]

    def compute_head_results(self) -> None:
        """Let ``cache["result", l]`` be had for every block, from ``z`` where it was not kept.

        Raises:
            HookNameError: neither ``hook_result`` nor ``hook_z`` was kept.
        """
        for block in range(self._layers):
            name = f"blocks.{block}.attn.hook_result"
            if name not in self:
                base = f"blocks.{block}.attn.hook_z"
                self._fetch([base], None)
                self.make_on_access(name, partial(_made, base, self._output_weight(block)))

    def _output_weight(self, block: int) -> Tensor:
        """``[d_model, head * d_head]``."""
        return self._network.at_home(block).attention.writing().weight.detach()

    def _heads(self, layers: int, view: DecompositionView) -> tuple[list[Tensor], list[str]]:
        """What each head of the first ``layers`` blocks wrote, and labels."""
        parts, labels = [], []
        for block in range(layers):
            name = f"blocks.{block}.attn.hook_result"
            if name in self:
                (result,) = self._fetch([name], view.pos_slice)
            else:
                (z,) = self._fetch([f"blocks.{block}.attn.hook_z"], view.pos_slice)
                result = _results(z, self._output_weight(block))
            parts.append(view.along(result).movedim(-2, 0))
            labels += [head_name(block, head) for head in range(result.shape[-2])]
        return parts, labels

    def _neurons(
        self, view: DecompositionView, neuron_slice: Selection
    ) -> tuple[list[Tensor], list[str]]:
        """What each neuron before ``view`` wrote, and labels."""
        chosen = None if neuron_slice is None else read("neuron_slice", neuron_slice, HookError)
        chosen = [chosen] if isinstance(chosen, int) else chosen
        parts, labels = [], []
        for block in range(view.layer):
            results = self.get_neuron_results(block, chosen, view.pos_slice, view.onto)
            parts.append(results.movedim(-2, 0))
            neurons = torch.arange(self._network.block(block).neurons().d_mlp)
            neurons = take(neurons, 0, chosen, "neuron_slice", HookError)
            labels += [f"L{block}N{neuron}" for neuron in neurons.tolist()]
        return parts, labels

    def _read(self, view: DecompositionView) -> Tensor:
        """The residual stream that is read, ``[batch, pos, d_model]``."""
        if self._reads_own_attention(view):
            return self._middle(view.layer, view.pos_slice)
        return self._stream(view.layer, view.pos_slice)

    def _add_remainder(
        self, parts: list[Tensor], labels: list[str], view: DecompositionView
    ) -> None:
        rest = view.along(self._read(view))
        for part in parts:
            rest = rest - part.sum(dim=0)
        parts.append(rest[None])
        labels.append("remainder")

    def _finish(
        self, parts: list[Tensor], labels: list[str], view: DecompositionView, return_labels: bool
    ) -> Stack:
        """One stack of all parts, normalised if that is asked for."""
        if parts:
            stack = torch.cat(parts)
        else:
            stack = view.along(self._read(view))[None][:0]
        if view.apply_ln and view.onto is None:
            stack = self.apply_ln_to_stack(stack, view.layer, view.mlp_input, view.pos_slice)
        elif view.apply_ln:  # its directions are centred already
            stack = stack / self._scale(view.layer, view.mlp_input, view.pos_slice)
        if view.one_direction:
            stack = stack[..., 0]
        return (stack, labels) if return_labels else stack


def _made(base: str, weight: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    return _results(kept[base], weight)


def _results(z: Tensor, weight: Tensor) -> Tensor:
    """``head_results`` for ``z`` with or without a ``pos`` axis."""
    z, weight = in_one_dtype(z, weight)
    flat = z.reshape(1, -1, *z.shape[-2:])
    return head_results(flat, weight).reshape(*z.shape[:-1], -1)
