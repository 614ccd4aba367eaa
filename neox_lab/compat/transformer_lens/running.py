"""Running a model with TransformerLens's arguments, with hooks and with a cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from torch import Tensor

from neox_lab.checks import check, one_of
from neox_lab.compat.transformer_lens.cache import ActivationCache
from neox_lab.compat.transformer_lens.hook_points import Hooks
from neox_lab.compat.transformer_lens.past_key_value_caching import HookedTransformerKeyValueCache
from neox_lab.compat.transformer_lens.text import Side, Text, Texts
from neox_lab.errors import InputError
from neox_lab.family.losses import text_loss
from neox_lab.hooks.names import Name
from neox_lab.hooks.storage import PosSlice

if TYPE_CHECKING:
    from neox_lab.compat.transformer_lens.model import HookedTransformer

Input: TypeAlias = "Text | Tensor"
ReturnType: TypeAlias = Literal["logits", "loss", "both", "logits_and_cache"] | None
_RETURN_TYPES = ("logits", "loss", "both", "logits_and_cache")


class Runs(Hooks, Texts):
    """Running the model."""

    def __call__(
        self,
        input: Input,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        attention_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
        labels: Tensor | None = None,
        **arguments: object,
    ) -> Any:
        """Run the model, with the hooks that are in force.

        Args:
            input: a text, several, token ids ``[pos]`` or ``[batch, pos]``, or with
                ``start_at_layer`` a residual stream ``[batch, pos, d_model]``.
            return_type: ``"logits"`` ``[batch, pos, vocab]``, ``"loss"`` in nats, ``"both"``,
                ``"logits_and_cache"`` (the cache for ``past_key_values=``), or None for None.
            loss_per_token: the loss of each token but the first, ``[batch, pos - 1]``.
            prepend_bos: as for ``to_tokens``.
            padding_side: as for ``to_tokens``; what is padded on the right is not masked.
            start_at_layer: first layer to run.
            stop_at_layer: layer to stop before; the residual stream there is returned then.
            attention_mask: 0 for padding ``[batch, pos]``.
            tokens: what the loss is of, where ``input`` is a residual stream.
            past_kv_cache: what was read before ``input``; it is extended unless it is frozen.
            labels: what the loss is of instead, ``[batch, pos]``, with -100 where none counts.
            arguments: any other of the model's forward pass.

        Raises:
            InputError: input that is none of these, or a loss without tokens.
        """
        given = self._arguments(input, prepend_bos, padding_side, attention_mask)
        given |= {"start_at_layer": start_at_layer, "stop_at_layer": stop_at_layer, **arguments}
        if past_kv_cache is not None:
            given["past_key_values"] = past_kv_cache.for_run()
        given["use_cache"] = return_type == "logits_and_cache"
        with self.in_force():
            output = self.native(**given)
        wanted = tokens if labels is None else labels
        return self._answer(output, given, wanted, return_type, loss_per_token)

    forward = __call__

    def _arguments(
        self,
        input: Input,
        prepend_bos: bool | None,
        padding_side: Side | None,
        attention_mask: Tensor | None,
    ) -> dict[str, Any]:
        """Arguments of the native forward pass."""
        mask = attention_mask
        if not isinstance(input, Tensor):
            batch = self.encoded(input, prepend_bos, padding_side)
            input = batch["input_ids"]
            if mask is None and (padding_side or self.tokenizer.padding_side) == "left":
                mask = batch["attention_mask"]
        given: dict[str, Any] = dict(
            self.native.prepare_inputs(input if input.dim() > 1 else input[None])
        )
        return given | {"attention_mask": mask, "use_cache": False}

    def _answer(
        self,
        output: Any,
        given: dict[str, Any],
        tokens: Tensor | None,
        return_type: ReturnType,
        per_token: bool,
    ) -> Any:
        """What a call returns, of what the native forward pass did."""
        check("return_type", return_type or "logits", one_of(*_RETURN_TYPES), InputError)
        if given.get("stop_at_layer") is not None:
            return output.last_hidden_state
        if return_type is None or return_type == "logits":
            return None if return_type is None else output.logits
        if return_type == "logits_and_cache":
            return output.logits, output.past_key_values
        tokens = given.get("input_ids") if tokens is None else tokens
        if tokens is None:
            raise InputError("A loss needs tokens: pass tokens= beside a residual stream.")
        loss = self.loss_fn(output.logits, tokens, given["attention_mask"], per_token)
        return loss if return_type == "loss" else (output.logits, loss)

    def loss_fn(
        self,
        logits: Tensor,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Cross entropy of each next token, in nats; see ``text_loss``."""
        return text_loss(logits, tokens, attention_mask, per_token=per_token)

    def input_to_embed(
        self,
        input: Input,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        """The residual stream before layer 0, tokens, None, and the mask."""
        given = self._arguments(input, prepend_bos, padding_side, attention_mask)
        with self.in_force():
            output = self.native(**given, stop_at_layer=0)
        return output.last_hidden_state, given.get("input_ids"), None, given["attention_mask"]

    def run_with_cache(
        self,
        input: Input,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        *,
        return_type: ReturnType = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        attention_mask: Tensor | None = None,
        tokens: Tensor | None = None,
        names_filter: Name | Iterable[Name] | None = None,
        device: str | None = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: PosSlice | None = None,
        **arguments: Any,
    ) -> tuple[Any, Any]:
        """Run once and keep activations.

        Args:
            input: as for the call, whose arguments this takes.
            return_cache_object: False returns a dict of tensors.
            remove_batch_dim: of one row, keep tensors without the first axis.
            return_type: as for the call.
            loss_per_token: as for the call.
            prepend_bos: as for the call.
            padding_side: as for the call.
            attention_mask: as for the call.
            tokens: as for the call.
            names_filter: what to keep: a name, several, or a function of names; None for all.
            device: keep tensors there.
            incl_bwd: keep gradients of the returned scalar, as ``<name>_grad``.
            reset_hooks_end: has no meaning: what keeps activations is no hook that could stay.
            clear_contexts: empty every hook point's ``ctx`` afterwards.
            pos_slice: which positions to keep.
            arguments: ``start_at_layer``, ``stop_at_layer``, and those of the model's forward pass.

        Returns:
            What the call returns, and the activations.
        """
        given = self._arguments(input, prepend_bos, padding_side, attention_mask)

        def answer(output: Any) -> Any:
            return self._answer(output, given | arguments, tokens, return_type, loss_per_token)

        named = dict(given)
        inputs = (
            named.pop("inputs_embeds", None) if "input_ids" not in given else named.pop("input_ids")
        )
        with self.in_force():
            output, kept = self.native.run_with_cache(
                inputs,
                names_filter=None if names_filter is None else self.names_of(names_filter),
                device=device,
                pos_slice=pos_slice,
                incl_bwd=answer if incl_bwd else False,
                keep_graph=not incl_bwd,
                **named | arguments,
            )
        if clear_contexts:
            self.clear_contexts()
        cache = ActivationCache(kept, cast("HookedTransformer", self))
        if remove_batch_dim:
            cache.remove_batch_dim()
        return answer(output), cache if return_cache_object else dict(cache)
