"""Reading tokens into the model, one step at a time.

A ``ModelStepper`` knows what has been read so far: keys and values, padding, positions. It is
given the text so far, reads what is new in it, and returns the scores of what might come next, so
that the strategies (greedy, sampling, beams, assisted) need not know how a model is run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab import interrupts
from neox_lab.generation.prompt import Prompt
from neox_lab.kernels.decoding_layout import copies_pay, prepare_for_decoding
from neox_lab.kernels.linear import decoding
from neox_lab.memory import free_memory
from neox_lab.model.key_value_cache import KeyValueCache

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel

Preparation = Callable[..., dict[str, Any]]


@dataclass
class StepOutput:
    """What the model says in a step.

    Attributes:
        logits: float32 ``[batch, kept, vocab]``, for the last ``kept`` positions read.
        hidden_states: per layer ``[batch, pos, d_model]``, if asked for.
        attentions: per layer ``[batch, head, query_pos, key_pos]``, if asked for.
    """

    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class ModelStepper:
    """A model in the middle of a text.

    Attributes:
        cache: keys and values read so far; None where every step reads everything again.
        steps: how many steps were made.
        mask: 1 for text and 0 for padding ``[batch, pos]`` of what was read; None without padding.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: Prompt,
        new_tokens: int,
        use_cache: bool = True,
        **wanted: bool,
    ) -> None:
        """Nothing is read yet.

        Args:
            model: the model.
            prompt: where the text begins.
            new_tokens: how many may come, at most.
            use_cache: keep keys and values instead of reading everything again each step.
            wanted: ``output_hidden_states``, ``output_attentions``.
        """
        self._products: Callable[[], AbstractContextManager[None]] = nullcontext
        if not _has_a_budget(model) and copies_pay(model.dtype, new_tokens):
            prepare_for_decoding(model.modules(), free_memory(model.device))
            self._products = decoding
        self.model, self.wanted = model, wanted
        self._cache_name = _name_of_cache(model)
        self.cache = prompt.cache
        if use_cache and self.cache is None:
            self.cache = KeyValueCache(model.config.num_hidden_layers)
        self.steps = 0
        self._embeds = prompt.embeds
        self._ids_in_prompt = prompt.ids.shape[1]
        # Read columns of the prompt: they may be fewer or more than its ids.
        self._prompt_length = self._ids_in_prompt if self._embeds is None else self._embeds.shape[1]
        self.mask = prompt.mask
        self._positions = prompt.positions
        self._prepare = _own_preparation(model)
        self._inserted = 0  # positions in the cache that belong to no token of the text

    def alone(self) -> AbstractContextManager[None]:
        """For whoever makes all steps at once, without anybody's code between them."""
        return nullcontext()

    def step(self, ids: Tensor, keep: int = 1) -> StepOutput:
        """Read on to the end of ``ids``.

        Args:
            ids: the whole text so far ``[batch, pos]``.
            keep: for how many of the last positions logits are wanted.

        Returns:
            What the model says about these positions.
        """
        past = 0 if self.cache is None else self.cache.get_seq_length() - self._inserted
        new = self._unread(ids, past)
        length = next(iter(new.values())).shape[1]
        mask, positions = self._mask_and_positions(past, length)
        inputs: dict[str, Any] = {**new, "attention_mask": mask, "position_ids": positions}
        inputs[self._cache_name] = self.cache
        if self._prepare is not None:
            inputs = self._prepared(self._prepare, ids, inputs, length)
        with self._marked(past, length, positions), self._products():
            output = self.model(
                **inputs,
                use_cache=self.cache is not None,
                logits_to_keep=keep,
                return_dict=True,
                **self.wanted,
            )
        self.steps += 1
        if self._prepare is not None and self.cache is not None:
            self._inserted = self.cache.get_seq_length() - past - length
        return StepOutput(output.logits.float(), output.hidden_states, output.attentions)

    def _prepared(
        self, prepare: Preparation, ids: Tensor, inputs: dict[str, Any], length: int
    ) -> dict[str, Any]:
        """The inputs of a step as the model's own ``prepare_inputs_for_generation`` makes them.

        It may put vectors before those of the text, or keys and values before all, as learnt
        prompts do. It does so where there is no cache yet, so an empty one is not shown to it.

        Args:
            prepare: the method.
            ids: the whole text so far ``[batch, pos]``.
            inputs: what would be read without it.
            length: how many positions that is.
        """
        inputs = dict(inputs)
        cache = inputs.pop(self._cache_name)
        inputs.pop("input_ids", None)
        made = prepare(
            ids,
            next_sequence_length=length,
            past_key_values=cache if cache is not None and cache.get_seq_length() else None,
            is_first_iteration=self.steps == 0 or "inputs_embeds" in inputs,
            **inputs,
        )
        by_either_name = [made.pop(name, None) for name in ("cache", "past_key_values")]
        given = next((given for given in by_either_name if given is not None), None)
        if self.cache is not None and given is not None:
            self.cache = given
        return {**made, self._cache_name: self.cache if given is None else given}

    def _unread(self, ids: Tensor, past: int) -> dict[str, Tensor]:
        """The part of the text after the first ``past`` positions, as an argument of forward."""
        if self._embeds is None:
            return {"input_ids": ids[:, past:]}
        generated = ids[:, self._ids_in_prompt :]
        if past >= self._prompt_length:
            return {"input_ids": generated[:, past - self._prompt_length :]}
        embed = self.model.backbone.embed_in
        embeds = torch.cat((self._embeds, embed(generated).to(self._embeds.dtype)), dim=1)
        return {"inputs_embeds": embeds[:, past:]}

    def _mask_and_positions(self, past: int, length: int) -> tuple[Tensor | None, Tensor | None]:
        """Visibility of everything, None if unpadded; positions of what is new, None if plain."""
        given = None if self._positions is None else self._given_positions(past + length)[:, past:]
        if self.mask is None:
            return None, given
        missing = past + length - self.mask.shape[1]
        if missing > 0:
            ones = self.mask.new_ones(self.mask.shape[0], missing)
            self.mask = torch.cat((self.mask, ones), dim=1)
        mask = self.mask[:, : past + length]
        if given is not None:
            return mask, given
        # Padding does not count as a position.
        positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
        return mask, positions[:, past:]

    def _given_positions(self, length: int) -> Tensor:
        """Positions ``[batch, length]``: those given with the prompt, and on from the last."""
        assert self._positions is not None
        more = torch.arange(1, max(0, length - self._prompt_length) + 1, device=self.model.device)
        return torch.cat((self._positions, self._positions[:, -1:] + more), dim=1)[:, :length]

    @contextmanager
    def _marked(self, past: int, length: int, positions: Tensor | None) -> Iterator[None]:
        """Let hooks know for the duration of one run which step and positions it is about."""
        stack = getattr(self.model, "hook_stack", None)  # assistants of transformers have none
        if stack is None or not stack.placements:
            yield
            return
        if positions is None:
            positions = torch.arange(past, past + length, device=self.model.device)[None]
        generated = max(0, min(length, past + length - self._prompt_length))
        with interrupts.certainly(lambda: stack.mark(step=None, positions=None, generated=0)):
            stack.mark(step=self.steps, positions=positions, generated=generated)
            yield

    def select(self, rows: Tensor) -> None:
        """Go on with batch rows ``rows`` ``[batch]`` in place of the present ones."""
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]
        if self._positions is not None:
            self._positions = self._positions[rows]

    def forget_beyond(self, ids: Tensor) -> None:
        """Keep only what was read of all but the last token of ``ids`` ``[batch, pos]``."""
        if self.cache is not None:
            kept = ids.shape[1] - 1 - self._ids_in_prompt + self._prompt_length
            kept += self._inserted
            self.cache.crop(min(0, kept - self.cache.get_seq_length()))


def _has_a_budget(model: LanguageModel) -> bool:
    """Whether memory for weights was limited: then there is no second copy of those that stay."""
    network = getattr(model, "backbone", None)  # assistants of transformers have none
    return network is not None and network.store is not None


def _own_preparation(model: LanguageModel) -> Preparation | None:
    """The method by which a model, or what wraps it, prepares its inputs; None for the plain way.

    A subclass may define ``prepare_inputs_for_generation``; peft sets it on the model it wraps.
    """
    method: Preparation | None = getattr(model, "prepare_inputs_for_generation", None)
    plain = method is None or method.__module__.startswith(("neox_lab.", "transformers."))
    return None if plain else method


def _name_of_cache(model: LanguageModel) -> str:
    """What ``forward`` calls the cache; assistants of transformers 5.24 warn of the old name."""
    if hasattr(model, "hook_stack"):
        return "past_key_values"
    names = inspect.signature(getattr(model, "forward", model)).parameters
    return "cache" if "cache" in names else "past_key_values"
