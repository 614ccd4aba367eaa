"""``model.generate`` and its relatives, for a causal language model to inherit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import GenerationError
from neox_lab.generation.generate_call import Companions, GenerateCall
from neox_lab.generation.generation_cache import GenerationCache
from neox_lab.generation.generation_config import FILE_NAME, GenerationConfig
from neox_lab.generation.output_builder import OutputBuilder
from neox_lab.generation.outputs import Generated
from neox_lab.generation.processors import Processor
from neox_lab.generation.sampling import Step
from neox_lab.generation.settings import HasDict
from neox_lab.generation.stopping import Criterion
from neox_lab.generation.stream import Describer, StreamStep
from neox_lab.generation.streamers import BaseStreamer, new_tokens
from neox_lab.hub import HubOptions, PathOrId, find_file
from neox_lab.interrupts import part_is_welcome, whole_answers
from neox_lab.model.key_value_cache import KeyValueCache
from neox_lab.progress import Progress

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel
    from neox_lab.hooks.names import Name
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")


class GenerationMixin:
    """Writing text, for ``GPTNeoXForCausalLM``; see ``LanguageModel`` for what else it needs."""

    config: GPTNeoXConfig
    tokenizer: GPTNeoXTokenizerFast | None
    _generation_config: GenerationConfig | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """What ``generate`` does where a call does not say otherwise."""
        if self._generation_config is None:
            self._generation_config = GenerationConfig.from_model_config(self.config)
        return self._generation_config

    @generation_config.setter
    def generation_config(self, config: object) -> None:
        self._generation_config = GenerationConfig.taken_from(config)

    def _load_beside(self, source: PathOrId, options: HubOptions) -> None:
        """Read ``generation_config.json`` if there is one."""
        path = find_file(source, FILE_NAME, options, required=False)
        if path is not None:
            self.generation_config = GenerationConfig.from_json_file(path)

    def _texts_beside(self) -> dict[str, str]:
        """``generation_config.json``."""
        self.generation_config.validate(strict=True)
        return {FILE_NAME: self.generation_config.to_json_string()}

    @torch.no_grad()
    def generate(
        self: LanguageModel,
        inputs: str | list[str] | Tensor | None = None,
        generation_config: GenerationConfig | HasDict | None = None,
        logits_processor: Sequence[Processor] | None = None,
        stopping_criteria: Sequence[Criterion] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
        synced_gpus: bool | None = None,
        assistant_model: LanguageModel | None = None,
        streamer: BaseStreamer | None = None,
        negative_prompt_ids: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        custom_generate: Callable[..., Generated] | None = None,
        **arguments: object,
    ) -> Generated:
        """Continue a text.

        Greedy search by default; ``do_sample=True`` draws, ``num_beams`` searches with beams,
        ``prompt_lookup_num_tokens`` or ``assistant_model`` read several tokens at once.
        Interrupting the kernel stops after the last whole step and returns what there is.

        Weights may be changed between steps, by hooks, streamers or the reader of ``stream``, with
        ``torch.no_grad()``: the next step has them. A change through ``.data``, which PyTorch does
        not count, may be seen only by the next call.

        Args:
            inputs: token ids ``[batch, pos]``, a text, or several texts (padded on the left);
                None starts from the beginning-of-text token.
            generation_config: settings, used where ``arguments`` have none; of this package or
                of transformers.
            logits_processor: processors of your own, called after the built-in ones.
            stopping_criteria: criteria of your own.
            prefix_allowed_tokens_fn: from a prompt's number and its text ``[pos]`` to the tokens
                that may come next.
            synced_gpus: without a meaning: the model is on one device.
            assistant_model: drafts tokens; a model of this package or of transformers.
            streamer: is shown tokens.
            negative_prompt_ids: for ``guidance_scale``, ``[batch, pos]``.
            negative_prompt_attention_mask: 0 where it is padding, ``[batch, pos]``.
            custom_generate: a strategy of your own, called with the model, token ids
                ``[batch, pos]``, ``logits_processor``, ``stopping_criteria``,
                ``generation_config`` (every setting) and ``attention_mask``; its result is
                returned.
            arguments: settings (see ``neox_lab.generation.settings.SETTINGS``); inputs of the
                model (``input_ids``, ``attention_mask``, ``position_ids``, ``inputs_embeds``;
                ``past_key_values`` or ``cache`` with the whole text as inputs); ``tokenizer``.

        Returns:
            Token ids ``[batch * num_return_sequences, pos]``, prompt included (unless it was
            ``inputs_embeds`` alone), filled up with the padding token; with
            ``return_dict_in_generate=True`` an object that holds more.

        Raises:
            GenerationError: unknown, impossible or contradictory arguments.
        """
        companions = Companions(
            logits_processor,
            stopping_criteria,
            prefix_allowed_tokens_fn,
            assistant_model,
            streamer,
            negative_prompt_ids,
            negative_prompt_attention_mask,
        )
        call = _settled(self, inputs, generation_config, arguments, companions)
        return _run(call) if custom_generate is None else _run_custom(call, custom_generate)

    @torch.no_grad()
    def stream(
        self: LanguageModel,
        inputs: str | Tensor | None = None,
        generation_config: GenerationConfig | HasDict | None = None,
        *,
        alternatives: int = 5,
        names_filter: Name | Iterable[Name] | None = None,
        **arguments: object,
    ) -> Iterator[StreamStep]:
        """Continue one text, token by token.

        ``for step in model.stream("The king"): print(step.text, end="")``. Nothing runs ahead:
        each token is computed when it is asked for, and stopping early leaves nothing behind.

        Args:
            inputs: a text or token ids ``[1, pos]``.
            generation_config: see ``generate``.
            alternatives: how many of the likeliest tokens each step names.
            names_filter: hook points whose activations each step carries: a name, glob, ...
            arguments: see ``generate``; no beams and no streamer.

        Yields:
            A ``StreamStep`` for each new token.

        Raises:
            GenerationError: as ``generate``; when the first token is asked for.
        """
        call = _settled(self, inputs, generation_config, arguments)
        if call.prompt.ids.shape[0] > 1 or call.beams is not None or call.companions.streamer:
            raise GenerationError("stream() continues one text, without num_beams or streamer.")
        cache = None if names_filter is None else _empty_cache(call)
        describer = Describer(call.companions.tokenizer, alternatives)
        steps = iter(call.steps)
        while True:
            with _filling(self, cache, names_filter):
                step = next(steps, None)
            if step is None:
                return
            activations = None if cache is None else cache.steps[-1]
            yield from describer.describe(step, activations)

    @torch.no_grad()
    def generate_with_cache(
        self: LanguageModel,
        inputs: str | list[str] | Tensor | None = None,
        names_filter: Name | Iterable[Name] | None = None,
        generation_config: GenerationConfig | HasDict | None = None,
        **arguments: object,
    ) -> tuple[Generated, GenerationCache]:
        """Continue a text and keep activations of every step, without running anything twice.

        Args:
            inputs: see ``generate``.
            names_filter: what to keep: a name, alias, glob, predicate, or several; None keeps
                every hook point.
            generation_config: see ``generate``.
            arguments: see ``generate``.

        Returns:
            What ``generate`` returns, and the activations.

        Raises:
            HookNameError: ``names_filter`` names no hook point.
            GenerationError: as ``generate``.
        """
        call = _settled(self, inputs, generation_config, arguments)
        cache = _empty_cache(call)
        with _filling(self, cache, names_filter):
            output = _run(call)
        ids = output if isinstance(output, Tensor) else output.sequences
        assert ids is not None
        if call.companions.tokenizer is not None and call.prompt.embeds is None:
            cache.pieces = call.companions.tokenizer.pieces(ids[0, :-1].tolist())
        cache.attention_mask = call.stepper.mask
        return output, cache

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: KeyValueCache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **more: object,
    ) -> dict[str, Any]:
        """Arguments of ``forward`` for one step of a loop of your own, as in transformers.

        Args:
            input_ids: the whole text ``[batch, pos]``.
            next_sequence_length: how many of the last tokens are to be read; None for all.
            cache: keys and values of what was read.
            attention_mask: of the whole text ``[batch, pos]``.
            inputs_embeds: read instead of the ids in the first step ``[batch, pos, d_model]``.
            is_first_iteration: whether this is the first step.
            more: further arguments of ``forward``; ``position_ids`` are cut to what is read, and
                ``past_key_values`` is ``cache`` by its older name.
        """
        start = 0 if next_sequence_length is None else -next_sequence_length
        made: dict[str, Any] = {"input_ids": None}
        if inputs_embeds is not None and is_first_iteration:
            read = made["inputs_embeds"] = inputs_embeds[:, start:].contiguous()
        else:
            read = made["input_ids"] = input_ids[:, start:].contiguous()
        if cache is not None:
            made["past_key_values"] = cache
        if attention_mask is not None:
            made["attention_mask"] = attention_mask
        if isinstance(positions := more.get("position_ids"), Tensor):
            made["position_ids"] = positions[:, -read.shape[1] :]
        more.pop("labels", None)
        return {**more, **made}

    def _supports_logits_to_keep(self) -> bool:
        """True; transformers asks an assistant."""
        return True

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """The score of each token that was generated.

        Args:
            sequences: ``output.sequences`` ``[batch, pos]``.
            scores: ``output.scores`` of the same call.
            beam_indices: ``output.beam_indices`` ``[row, new_pos]``, for beam search.
            normalize_logits: make the scores log probabilities first.

        Returns:
            ``[batch, new_pos]``; 0 where a text is shorter than the longest. Of beam search, each
            row's sum over (number of new tokens ** length_penalty) is its ``sequences_scores``.
        """
        stacked = torch.stack(tuple(scores))  # [new_pos, row, vocab]
        if normalize_logits:
            stacked = stacked.log_softmax(dim=-1)
        if beam_indices is None:
            new = stacked.shape[0]
            rows = torch.arange(stacked.shape[1], device=sequences.device)[:, None].expand(-1, new)
        else:
            new = int((beam_indices >= 0).sum(dim=1).max())
            rows = beam_indices[:, :new]
        tokens = sequences[:, sequences.shape[1] - new :]
        steps = torch.arange(new, device=sequences.device)
        return stacked[steps, rows.clamp(min=0), tokens].masked_fill(rows < 0, 0.0)


def _settled(
    model: LanguageModel,
    inputs: object,
    config: object,
    arguments: dict[str, Any],
    companions: Companions | None = None,
) -> GenerateCall:
    """The call these arguments amount to; companions are among them, or given apart."""
    found = Companions.taken_from(arguments)
    companions = found if companions is None else replace(companions, tokenizer=found.tokenizer)
    if companions.tokenizer is None:
        companions.tokenizer = model.tokenizer
    return GenerateCall(model, inputs, config, companions, arguments)


def _run(call: GenerateCall) -> Generated:
    """Run a call to its end, or to an interruption."""
    builder = OutputBuilder(call.prompt.ids, call.settings)
    streamer = call.companions.streamer
    if streamer is not None:
        if isinstance(streamer, type) or not hasattr(streamer, "end"):
            raise GenerationError(
                f"streamer={shown(streamer)}; expected an object with put() and end()."
            )
        streamer.put(call.prompt.ids.cpu())
    alone = call.stepper.alone() if streamer is None else nullcontext()
    welcome = part_is_welcome()
    # Hooks and processors that ask a question themselves want all of its answer.
    with alone, _counted(call) as steps, whole_answers():
        try:
            for step in steps:
                builder.add(step)
                if streamer is not None:
                    for tokens in new_tokens(step.ids, step.new):
                        streamer.put(tokens)
        except KeyboardInterrupt:
            if not welcome:
                raise
            count = builder.ids.shape[1] - call.prompt.ids.shape[1]
            _log.warning("Generation was interrupted; returning the %d tokens there are.", count)
            call.stepper.forget_beyond(builder.ids)
        finally:
            if streamer is not None:
                streamer.end()
    return builder.build(call.stepper, call.beams)


@contextmanager
def _counted(call: GenerateCall) -> Iterator[Iterable[Step]]:
    """The steps of a call; of a model whose layers are read for each token, with a bar."""
    if call.model.backbone.store is None or call.companions.streamer is not None:
        yield call.steps
        return
    with Progress(call.new_tokens, "token", delay=1) as bar:
        yield _told(call.steps, bar)


def _told(steps: Iterable[Step], bar: Progress) -> Iterator[Step]:
    """``steps``; ``bar`` hears of each."""
    for step in steps:
        bar.update(step.new)
        yield step


def _run_custom(call: GenerateCall, strategy: Callable[..., Generated]) -> Generated:
    """What a user's own strategy makes of a call."""
    if not callable(strategy):
        raise GenerationError(
            f"custom_generate={strategy!r}; expected a function. Code from the hub is not run."
        )
    return strategy(
        call.model,
        call.prompt.ids,
        logits_processor=call.processors,
        stopping_criteria=call.stopping,
        generation_config=call.settings,
        attention_mask=call.prompt.mask,
    )


def _empty_cache(call: GenerateCall) -> GenerationCache:
    """A cache for the steps of ``call``; refuses calls whose steps do not add up."""
    if not call.settings.use_cache or call.settings.num_beams > 1 or call.drafts:
        raise GenerationError(
            "Activations can be kept step by step only where each step reads one new token: "
            "with use_cache=True, and without num_beams, prompt_lookup_num_tokens or "
            "assistant_model."
        )
    return GenerationCache(call.model.hook_points)


@contextmanager
def _filling(
    model: LanguageModel, cache: GenerationCache | None, names: Name | Iterable[Name] | None
) -> Iterator[None]:
    """Keep activations in ``cache``, if there is one, for the duration of a ``with`` block."""
    if cache is None:
        yield
        return
    names = "*" if names is None else names
    several: Iterable[Name] = (
        [names] if isinstance(names, str | tuple) or callable(names) else names
    )
    with model.hooks([(name, cache) for name in several], must_fire=False):
        yield
