"""A component's share in what layer norm passes on, and in a logit.

Layer norm divides by one number per position. With that number taken from the run it is a linear
map, so that components of the residual stream can be sent through it one by one, and what they
become still adds up. Behind the final layer norm stands one matrix, the head: a component's share
in a logit is its product with a column of that matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neox_lab.errors import HookError, HookNameError, nearest
from neox_lab.model.hook_points import HookPoint
from neox_lab.model.output_heads import OUTPUT_HEADS
from neox_lab.model.parts import plain_layer_norm
from neox_lab.selections import Selection, take, whole_number

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel
    from neox_lab.model.network import Network

Tokens = str | int | Sequence[str] | Sequence[int] | Tensor
"""Tokens (for a language model) or labels, as text or as ids; a tensor may have any shape."""


@dataclass(frozen=True)
class DecompositionView:
    """Where and how a decomposition is looked at.

    Attributes:
        layer: whose input is decomposed; the number of layers stands for the head's.
        mlp_input: the input of that layer's MLP instead of its attention.
        pos_slice: which positions.
        apply_ln: after the layer norm that comes first there, with its scale from the run.
        onto: directions ``[d_model, output]`` onto which components are projected, or None;
            centred if ``apply_ln``, which has the same effect as centring the components.
        one_direction: whether to drop the axis ``output``.
    """

    layer: int
    mlp_input: bool
    pos_slice: Selection
    apply_ln: bool
    onto: Tensor | None
    one_direction: bool

    def along(self, tensor: Tensor) -> Tensor:
        """``[.., d_model]`` projected: ``[.., output]``; without directions the tensor itself."""
        if self.onto is None:
            return tensor
        tensor, onto = in_one_dtype(tensor, self.onto)
        return tensor @ onto


class LogitShares(Mapping[str, Tensor]):
    """Activations by name, with what it takes to weigh their parts against each other."""

    points: Mapping[str, HookPoint]
    _model: HookedModel | None
    has_batch_dim: bool = True
    """False where the activations are of one row, and have no axis for it."""

    def apply_ln_to_stack(
        self,
        residual_stack: Tensor,
        layer: int | None = None,
        mlp_input: bool = False,
        pos_slice: Selection = None,
        batch_slice: Selection = None,
        has_batch_dim: bool = True,
        recompute_ln: bool = False,
    ) -> Tensor:
        """Each component as the layer norm of ``layer`` passes it on, without weight and bias.

        Components are centred and divided by the scale of the run, so what summed to the residual
        stream now sums to ``hook_normalized``.

        Args:
            residual_stack: ``[.., batch, pos, d_model]`` with any axes in front, or none, such
                as ``[component, ..]`` or ``[layer, head, ..]``; without ``pos`` if one position
                was taken.
            layer: whose norm; by default the final one.
            mlp_input: layer norm 2 of that block instead of layer norm 1.
            pos_slice: the positions that were taken of the stack.
            batch_slice: rows to take, of the stack as well.
            has_batch_dim: False if the stack is of one row, which ``batch_slice`` numbers.
            recompute_ln: the final layer norm of each component by itself, weight and bias
                included: for a logit lens.

        Raises:
            HookError: shapes that do not fit, or ``recompute_ln`` at another layer.
            HookNameError: ``hook_scale`` was not kept.
        """
        layer = self._layer(layer, mlp_input)
        if recompute_ln:
            if layer != self._layers:
                raise HookError("recompute_ln is the final layer norm's; leave out layer.")
            if has_batch_dim and self.has_batch_dim:
                residual_stack = take(residual_stack, 1, batch_slice, "batch_slice", HookError)
            return self._final_norm(residual_stack)
        scale = self._scale(layer, mlp_input, pos_slice)
        return self._divided(residual_stack, scale, batch_slice, has_batch_dim)[0]

    def _divided(
        self, stack: Tensor, scale: Tensor, batch_slice: Selection, has_batch_dim: bool
    ) -> tuple[Tensor, int]:
        """The stack centred and divided, and how many of its axes are rows and positions.

        Raises:
            HookError: shapes that do not fit.
        """
        if self.has_batch_dim:
            axis = stack.dim() - scale.dim()
            if has_batch_dim and batch_slice is not None and axis >= 0:
                stack = take(stack, axis, batch_slice, "batch_slice", HookError)
            if not has_batch_dim and batch_slice is None and len(scale) == 1:
                batch_slice = 0
            scale = take(scale, 0, batch_slice, "batch_slice", HookError)
        places = scale.dim() - 1
        if not _fits(stack.shape[-1 - places : -1], scale.shape[:-1]):
            raise HookError(
                f"residual_stack has shape {list(stack.shape)}; for this layer norm's scale, "
                f"{list(scale.shape)}, expected {list(scale.shape[:-1])} before d_model. Where the "
                "stack is of some positions or rows, pass the pos_slice or batch_slice as well."
            )
        exact = stack.to(torch.promote_types(stack.dtype, scale.dtype))
        return (exact - exact.mean(dim=-1, keepdim=True)) / scale, places

    def logit_attrs(
        self,
        residual_stack: Tensor,
        tokens: Tokens,
        incorrect_tokens: Tokens | None = None,
        pos_slice: Selection = None,
        batch_slice: Selection = None,
        has_batch_dim: bool = True,
    ) -> Tensor:
        """Each component's share in a logit, or in the difference of two.

        The shares of a complete decomposition and ``logit_bias`` sum to what the head computes at
        each position. Layer norm is taken with its scale from the run.

        Args:
            residual_stack: ``[component, batch, pos, d_model]``, or another stack that
                apply_ln_to_stack takes.
            tokens: whose logit: one token for all; ``[batch]`` one a row; ``[pos]`` one a
                position (if the batch has another size); or ``[batch, pos]``. For other heads
                labels, or 0 and 1 for the start and the end of an answer.
            incorrect_tokens: whose logit is subtracted; same shape as ``tokens``.
            pos_slice: the positions that were taken of the stack.
            batch_slice: rows to take of the stack.
            has_batch_dim: False if the stack is of one row, which ``batch_slice`` numbers.

        Returns:
            ``[component, batch, pos]``: the stack without ``d_model``.

        Raises:
            HookError: ids out of range, or shapes that do not fit.
        """
        scale = self._scale(self._layers, False, pos_slice)
        stack, places = self._divided(residual_stack, scale, batch_slice, has_batch_dim)
        ids = self._ids(tokens)
        directions = self._directions(ids)
        if incorrect_tokens is not None:
            directions = directions - self._directions(self._matching_ids(incorrect_tokens, ids))
        if ids.dim() == 1 and places == 2:
            one_a_row = len(ids) == stack.shape[-3]
            directions = directions[:, None] if one_a_row else directions[None]
        if ids.dim() and not _fits(directions.shape[:-1], stack.shape[-1 - places : -1]):
            raise HookError(
                f"tokens has shape {list(ids.shape)}, the stack {list(stack.shape)}; expected one "
                "token, one a row, or one for each place of the stack."
            )
        return (stack * directions.to(stack.device)).sum(dim=-1)

    def logit_bias(self, tokens: Tokens, incorrect_tokens: Tokens | None = None) -> Tensor:
        """The part of a logit, or of a difference of two, that belongs to no component.

        It is what the bias of the final layer norm becomes in the head, and the head's own bias.

        Args:
            tokens: whose logit; see logit_attrs.
            incorrect_tokens: whose logit is subtracted.

        Returns:
            One number for each of ``tokens``.

        Raises:
            HookError: ids out of range.
        """
        ids = self._ids(tokens)
        bias = self._bias(ids)
        if incorrect_tokens is None:
            return bias
        return bias - self._bias(self._matching_ids(incorrect_tokens, ids))

    def _directions(self, ids: Tensor) -> Tensor:
        """What a component is multiplied with behind the final layer norm, ``[.., d_model]``."""
        rows, _ = self._head_rows(ids)
        return rows * self._final_layer_norm.weight.detach().to(rows)

    def _bias(self, ids: Tensor) -> Tensor:
        rows, bias = self._head_rows(ids)
        return rows @ self._final_layer_norm.bias.detach().to(rows) + bias

    def _head_rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``[.., d_model]`` and bias ``[..]`` of the head's outputs, float32 at least."""
        weight, bias = self._running_model.output_map
        rows = weight.detach()[ids]
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return rows, rows.new_zeros(ids.shape) if bias is None else bias.detach()[ids].to(rows)

    def _ids(self, tokens: Tokens) -> Tensor:
        """Ids of tokens or labels, of any shape.

        Raises:
            HookError: unknown labels, or ids out of range.
        """
        if not isinstance(tokens, str) and isinstance(tokens, Sequence):
            ids = torch.stack([self._ids(token) for token in tokens])
        else:
            ids = torch.as_tensor(self._id(tokens) if isinstance(tokens, str) else tokens)
        weight = self._running_model.output_map.weight
        allowed = (ids >= 0) & (ids < len(weight))
        if ids.is_floating_point() or ids.dtype == torch.bool or not allowed.all():
            raise HookError(
                f"tokens {ids.flatten()[:8].tolist()}: expected whole numbers from 0 to "
                f"{len(weight) - 1}."
            )
        return ids.to(weight.device)

    def _id(self, text: str) -> int:
        model = self._running_model
        labels = OUTPUT_HEADS[model.head].labels(model.config)
        if labels is None:
            return int(model.to_single_token(text))
        if text not in labels:
            raise HookError(f"No label {text!r}.{nearest(text, labels)} There are {[*labels]}.")
        return int(labels[text])

    def _matching_ids(self, tokens: Tokens, ids: Tensor) -> Tensor:
        others = self._ids(tokens)
        if others.shape != ids.shape:
            raise HookError(
                f"incorrect_tokens has shape {list(others.shape)}, tokens {list(ids.shape)}."
            )
        return others

    def _fetch(self, names: Iterable[str], pos_slice: Selection) -> list[Tensor]:
        """Activations by full name, at these positions.

        Raises:
            HookNameError: some are not in the cache; the message says what to name.
            HookError: no selection, or positions that the cache does not hold.
        """
        names = list(names)
        missing = [name for name in names if name not in self]
        if missing:
            wanted = dict.fromkeys(
                re.sub(r"\bblocks\.\d+\.", "blocks.*.", name) for name in missing
            )
            raise HookNameError(
                f"This needs {missing[0]!r}{' and others' if missing[1:] else ''}, which the cache "
                f"does not hold. Run with names_filter=[{', '.join(map(repr, wanted))}, ..]."
            )
        tensors = [self[name] for name in names]
        if pos_slice is None:
            return tensors
        cut = []
        for name, tensor in zip(names, tensors, strict=True):
            axis = self._axes(name).index("pos")
            cut.append(take(tensor, axis, pos_slice, "pos_slice", HookError))
        return cut

    def _axes(self, name: str) -> tuple[str, ...]:
        """Names of the axes of an activation, or of a gradient."""
        axes = self.points[name.removesuffix("_grad")].axes
        return axes if self.has_batch_dim else tuple(axis for axis in axes if axis != "batch")

    def _stream(self, layer: int, pos_slice: Selection) -> Tensor:
        """The residual stream entering block ``layer``, or the head."""
        entering = f"blocks.{layer}.hook_resid_pre"
        leaving = f"blocks.{layer - 1}.hook_resid_post"
        at_end = layer == self._layers
        name = leaving if at_end or (entering not in self and leaving in self) else entering
        return self._fetch([name], pos_slice)[0]

    def _middle(self, layer: int, pos_slice: Selection) -> Tensor:
        """The residual stream after block ``layer``'s attention."""
        prefix = f"blocks.{layer}.hook_"
        if not self._parallel:
            return self._fetch([f"{prefix}resid_mid"], pos_slice)[0]
        before, written = self._fetch([f"{prefix}resid_pre", f"{prefix}attn_out"], pos_slice)
        return before + written

    def _scale(self, layer: int, mlp_input: bool, pos_slice: Selection) -> Tensor:
        """What a layer norm divided by, ``[batch, pos, 1]``."""
        name = f"blocks.{layer}.ln{2 if mlp_input else 1}.hook_scale"
        return self._fetch(["ln_final.hook_scale" if layer == self._layers else name], pos_slice)[0]

    def _view(
        self,
        layer: int | None,
        mlp_input: bool,
        pos_slice: Selection,
        apply_ln: bool,
        onto: Tensor | None = None,
    ) -> DecompositionView:
        one = onto is not None and onto.dim() == 1
        if onto is not None:
            onto = onto[:, None] if one else onto
            onto = onto - onto.mean(dim=0) if apply_ln else onto
        return DecompositionView(
            self._layer(layer, mlp_input), mlp_input, pos_slice, apply_ln, onto, one
        )

    def _layer(self, layer: int | None, mlp_input: bool = False) -> int:
        """The layer that is read, from 0 to the number of layers.

        Raises:
            HookError: out of range, or the head has no MLP.
        """
        last = self._layers
        found = last if layer is None else whole_number("layer", layer, HookError)
        found = last if found == -1 else found
        if not 0 <= found <= last:
            raise HookError(
                f"layer={layer}; expected 0 to {last}, where {last}, -1 and None are what the head "
                "reads."
            )
        if mlp_input and found == last:
            raise HookError(f"mlp_input=True needs a layer from 0 to {last - 1}.")
        return found

    def _reads_own_attention(self, view: DecompositionView) -> bool:
        """Whether what is read contains what attention of the same block wrote."""
        return view.mlp_input and not self._parallel

    @property
    def _layers(self) -> int:
        return 1 + max(point.layer for point in self.points.values() if point.layer is not None)

    @property
    def _parallel(self) -> bool:
        return "blocks.0.hook_resid_mid" not in self.points

    @property
    def _running_model(self) -> HookedModel:
        """The model that ran.

        Raises:
            HookError: the cache does not know it.
        """
        if self._model is None:
            raise HookError(
                "This needs the model's weights. Pass the model when loading the cache: "
                "ActivationCache.load(path, model=model)."
            )
        return self._model

    @property
    def _network(self) -> Network:
        return self._running_model.backbone

    @property
    def _final_layer_norm(self) -> nn.LayerNorm:
        return plain_layer_norm(self._network.final_layer_norm, "final_layer_norm")

    def _final_norm(self, stack: Tensor) -> Tensor:
        norm = self._final_layer_norm
        stack, weight = in_one_dtype(stack, norm.weight)
        bias = norm.bias.detach().to(stack)
        return torch.nn.functional.layer_norm(stack, norm.normalized_shape, weight, bias, norm.eps)


def in_one_dtype(tensor: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """An activation, and a weight without its gradient, in their common dtype where it is."""
    dtype = torch.promote_types(tensor.dtype, weight.dtype)
    return tensor.to(dtype), weight.detach().to(tensor.device, dtype)


def _fits(shape: Sequence[int], places: Sequence[int]) -> bool:
    """Whether ``shape`` has as many axes as ``places``, each equal to it or 1."""
    return len(shape) == len(places) and all(
        size in (1, place) for size, place in zip(shape, places, strict=True)
    )
