"""The model without a head: tokens in, final residual stream out."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from neox_lab.checks import SWITCH, check, shown
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import InputError
from neox_lab.family.base import GPTNeoXPreTrainedModel
from neox_lab.model.hook_points import HookPoint, Taps, Watcher
from neox_lab.model.key_value_cache import BorrowedCache, KeyValueCache, is_cache
from neox_lab.model.network import Network, layer_span
from neox_lab.model.outputs import BaseModelOutputWithPast
from neox_lab.notices import tell
from neox_lab.other_names import refuse

_log = logging.getLogger("neox_lab")

_OF_TRAINING = frozenset({"num_items_in_batch", "return_loss"})
_OF_OTHERS = frozenset(
    """
    labels shift_labels cache_position token_type_ids head_mask cross_attn_head_mask
    encoder_hidden_states encoder_attention_mask decoder_input_ids decoder_attention_mask
    special_tokens_mask offset_mapping overflow_to_sample_mapping length cu_seq_lens_q
    cu_seq_lens_k max_length_q max_length_k logits_to_keep
    """.split()
)


class RunOptions(TypedDict, total=False):
    """Arguments that every class's ``forward`` passes on to the network.

    Attributes:
        output_attentions: also return every layer's attention pattern.
        output_hidden_states: also return the residual stream before every layer; a number or
            numbers (negative ones count from the end) for some of them, and None for the rest.
        start_at_layer: first block to run; ``inputs_embeds`` is the residual stream entering it.
        stop_at_layer: block to stop before; a BaseModelOutputWithPast with the residual stream
            entering it is returned, without final layer norm or head.
        cache: what transformers from 5.24 on calls ``past_key_values``; of both, this counts.
    """

    output_attentions: bool | None
    output_hidden_states: bool | int | list[int] | None
    start_at_layer: int | None
    stop_at_layer: int | None
    cache: KeyValueCache | None


class RunArguments(RunOptions, total=False):
    """All arguments of ``GPTNeoXModel.run`` besides the taps; see ``GPTNeoXModel.forward``."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    past_key_values: KeyValueCache | None
    use_cache: bool | None


class GPTNeoXModel(GPTNeoXPreTrainedModel, Network):
    """GPT-NeoX without a head (Black et al., arXiv:2204.06745).

    Args:
        config: shape of the model; weights are drawn as ``config.initializer_range`` says.
    """

    head = "base"

    def __init__(self, config: GPTNeoXConfig) -> None:
        Network.__init__(self, config)
        self._set_up(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        *,
        return_dict: bool | None = None,
        taps: Taps | None = None,
        **options: Unpack[RunOptions],
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Run the network.

        Args:
            input_ids: token ids ``[batch, pos]``; or give ``inputs_embeds``.
            attention_mask: 1 for text and 0 for padding, ``[batch, past + pos]``, or 4-D, see
                ``neox_lab.model.masking.attention_mask``.
            position_ids: absolute positions ``[batch or 1, pos]``; default: continue the cache.
            inputs_embeds: vectors ``[batch, pos, d_model]`` instead of token ids.
            past_key_values: cache of earlier positions, extended in place.
            use_cache: return a cache; default ``config.use_cache``.
            return_dict: False returns a plain tuple.
            taps: hooks of this run, from a head that brings them.
            options: see ``RunOptions``.

        Raises:
            InputError: arguments that do not fit together.
        """
        output = self.run(
            self.hook_stack.taps() if taps is None else taps,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **options,
        )
        return output if self.wants_dict(return_dict) else output.to_tuple()

    def run(
        self,
        taps: Taps,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        cache: KeyValueCache | None = None,
        **without_meaning: object,
    ) -> BaseModelOutputWithPast:
        """What ``forward`` does, for a head that brings the taps of its own run.

        Args:
            taps: the hooks of this run.
            input_ids: see ``forward``, as for the rest.
            attention_mask: likewise.
            position_ids: likewise.
            inputs_embeds: likewise.
            past_key_values: likewise.
            use_cache: likewise.
            output_attentions: likewise.
            output_hidden_states: likewise.
            start_at_layer: likewise.
            stop_at_layer: likewise.
            cache: likewise.
            without_meaning: names that mean nothing to this model are ignored with a warning, as
                transformers ignores them.

        Raises:
            InputError: arguments that do not fit together.
            TypeError: an argument that looks like a misspelt one.
        """
        if without_meaning:
            _ignore(without_meaning)
        for tensor in (input_ids, attention_mask, position_ids, inputs_embeds):
            if not (tensor is None or isinstance(tensor, Tensor)):
                raise InputError(
                    f"An argument of forward is a {type(tensor).__name__}, {shown(tensor, 60)}; "
                    "expected a tensor: torch.tensor(...)."
                )
        first, last = layer_span(start_at_layer, stop_at_layer, len(self.layers))
        if first > 0 and input_ids is not None:
            raise InputError(
                f"start_at_layer={start_at_layer} takes the residual stream entering that layer, "
                "[batch, pos, d_model], as inputs or inputs_embeds; got token ids."
            )
        given = past_key_values if cache is None else cache
        keys_values = self._cache(given, use_cache)
        watch = _Recorder(self, first, last)
        if _default(output_attentions, self.config.output_attentions):
            taps = taps.with_more(watch.attentions())
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_hidden_states:
            taps = taps.with_more(watch.hidden_states(output_hidden_states))

        residual = inputs_embeds
        if residual is None or first == 0:
            residual = self.embed(input_ids, inputs_embeds, taps)
        residual = self.run_layers(
            residual,
            first=first,
            last=last,
            position_ids=position_ids,
            mask=attention_mask,
            keys_values=keys_values,
            taps=taps,
        )
        if stop_at_layer is None:
            residual = self.normalize(residual, taps)
        kept = keys_values if _default(use_cache, self.config.use_cache) else None
        return BaseModelOutputWithPast(
            last_hidden_state=residual,
            past_key_values=kept.owner if isinstance(kept, BorrowedCache) else kept,
            hidden_states=watch.all_states(residual),
            attentions=watch.all_patterns(residual),
        )

    def wants_dict(self, return_dict: bool | None) -> bool:
        """Whether to return an output object instead of a tuple."""
        return bool(_default(return_dict, self.config.return_dict))

    def _cache(self, given: KeyValueCache | None, use_cache: bool | None) -> KeyValueCache | None:
        """The cache of this run; None for a run without one.

        Raises:
            InputError: a cache of another kind or model, or together with checkpointing.
        """
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            if given is not None:
                raise InputError("Gradient checkpointing cannot be combined with past_key_values.")
            return None
        if given is None:
            wanted = _default(use_cache, self.config.use_cache)
            return KeyValueCache(len(self.layers)) if wanted else None
        if not isinstance(given, KeyValueCache):
            if not is_cache(given):
                raise InputError(
                    f"past_key_values is a {type(given).__name__}; expected the KeyValueCache that "
                    "an earlier call returned, or transformers' DynamicCache (not offloaded, not "
                    "quantized)."
                )
            given = BorrowedCache(given, len(self.layers))
        if len(given) != len(self.layers):
            raise InputError(
                f"past_key_values is of a model with {len(given)} layers; this one has "
                f"{len(self.layers)}."
            )
        return given


class _Recorder:
    """Watchers for ``output_hidden_states`` and ``output_attentions``: hooks like any other."""

    def __init__(self, model: GPTNeoXModel, first: int, last: int) -> None:
        self.layers = range(first, last)
        self.ends = len(model.layers)
        self.points = model.hook_points
        self.wanted: Collection[int] | None = None
        self.states: dict[int | None, Tensor] = {}
        self.patterns: tuple[Tensor, ...] | None = None

    def hidden_states(self, which: bool | int | list[int]) -> list[Watcher]:
        """Those of all layers, or, by number, of some; the last one is that after all of them."""
        self.wanted = range(self.ends + 1)
        if which is not True:
            numbers = [which] if isinstance(which, int) else which
            self.wanted = [self.wanted[n] for n in numbers if -self.ends - 1 <= n <= self.ends]

        def keep(tensor: Tensor, point: HookPoint) -> None:
            self.states[point.layer] = tensor

        layers = [layer for layer in self.layers if layer in self.wanted]
        return self._at("hook_resid_pre", keep, layers)

    def all_states(self, residual: Tensor) -> tuple[Tensor | None, ...] | None:
        """What was kept, None where nothing was to be, and ``residual`` at the end, where it is."""
        if self.wanted is None:
            return None
        kept = {layer: state.to(residual.device) for layer, state in self.states.items()}
        ending = residual if self.layers.stop in self.wanted else None
        return (*(kept.get(layer) for layer in self.layers), ending)

    def attentions(self) -> list[Watcher]:
        self.patterns = ()

        def keep(tensor: Tensor, _point: HookPoint) -> None:
            assert self.patterns is not None
            self.patterns = (*self.patterns, tensor)

        return self._at("attn.hook_pattern", keep, self.layers)

    def all_patterns(self, residual: Tensor) -> tuple[Tensor, ...] | None:
        """What was kept, where ``residual`` is."""
        return self.patterns and tuple(pattern.to(residual.device) for pattern in self.patterns)

    def _at(
        self, name: str, keep: Callable[[Tensor, HookPoint], None], layers: Iterable[int]
    ) -> list[Watcher]:
        points = [self.points[f"blocks.{layer}.{name}"] for layer in layers]
        return [Watcher(point, keep, writes=False) for point in points]


def _ignore(names: Iterable[str]) -> None:
    """Warn of arguments without a meaning; those that training hands every model go in silence.

    Raises:
        TypeError: one of them looks like a misspelt argument of ``forward``, or is one that only
            TransformerLens has.
    """
    unknown = [name for name in names if name not in _OF_TRAINING]
    refuse("forward", unknown)
    known = [*RunArguments.__annotations__, *_OF_TRAINING, "return_dict"]
    for name in unknown:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in _OF_OTHERS and close:
            raise TypeError(f"forward() has no argument {name!r}. Did you mean {close[0]!r}?")
    if unknown:
        tell(f"forward() of a GPT-NeoX model makes nothing of {', '.join(unknown)}: ignored.")


def _default(value: bool | None, otherwise: bool) -> bool:
    if value is None:
        return otherwise
    return (
        value
        if isinstance(value, bool)
        else check("a switch of forward", value, SWITCH, InputError)
    )
