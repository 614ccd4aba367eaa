"""``model.generate``: from arguments to a strategy, and from its steps to a result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from neox_lab.config import GPTNeoXConfig
from neox_lab.errors import GenerationError
from neox_lab.generation.lineup import Own, line_up, merge
from neox_lab.generation.outputs import GenerateDecoderOnlyOutput
from neox_lab.generation.processors import Processor
from neox_lab.generation.prompt import Prompt, eos_tokens, prepare, split_arguments
from neox_lab.generation.reader import Reader
from neox_lab.generation.sampling import Step, one_by_one
from neox_lab.generation.settings import FILE_NAME, GenerationConfig
from neox_lab.generation.stopping import (
    Criterion,
    EndToken,
    MaxLength,
    MaxTime,
    StoppingCriteriaList,
    StopStrings,
)
from neox_lab.hub import HubOptions, Source, find_file

if TYPE_CHECKING:
    from neox_lab.generation.model import LanguageModel

_log = logging.getLogger("neox_lab")


class Generates:
    """Text generation, for a causal language model to inherit."""

    config: GPTNeoXConfig
    tokenizer: Any

    @property
    def generation_config(self) -> GenerationConfig:
        """What ``generate`` does where a call does not say otherwise."""
        if "_generation_config" not in self.__dict__:
            made = GenerationConfig.from_model_config(self.config)
            self.__dict__["_generation_config"] = made
        return cast(GenerationConfig, self.__dict__["_generation_config"])

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.__dict__["_generation_config"] = config

    def _load_beside(self, source: Source, options: HubOptions) -> None:
        """Read ``generation_config.json`` if there is one."""
        path = find_file(source, FILE_NAME, options, required=False)
        if path is not None:
            self.generation_config = GenerationConfig.from_json_file(path)

    def _save_beside(self, directory: Source) -> None:
        """Write ``generation_config.json``."""
        self.generation_config.save_pretrained(directory)

    @torch.no_grad()
    def generate(
        self,
        inputs: str | list[str] | Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[Processor] = (),
        stopping_criteria: Sequence[Criterion] = (),
        prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        **settings: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Continue a text."""
        model = cast("LanguageModel", self)
        named, model_arguments = split_arguments(settings)
        given = generation_config or GenerationConfig()
        resolved = GenerationConfig(**named).resolved(given, self.generation_config)
        tokenizer = tokenizer if tokenizer is not None else self.tokenizer
        prompt = prepare(model, inputs, model_arguments, resolved, tokenizer)
        has_max = any(c.max_length is not None for c in (GenerationConfig(**named), given, self.generation_config))
        _settle_lengths(resolved, prompt, has_max, self.config)
        _check(resolved)
        prompt = prompt.repeated(max(resolved.num_beams, resolved.num_return_sequences))
        reader = Reader(model, prompt, resolved)
        own = Own(list(logits_processor or ()), prefix_allowed_tokens_fn)
        processors = line_up(resolved, prompt, own, self.config.vocab_size)
        stopping = _stopping(resolved, list(stopping_criteria or ()), tokenizer)
        steps = one_by_one(reader, prompt.ids, processors, stopping, resolved)
        return _collect(steps, reader, resolved)


def _settle_lengths(settings: GenerationConfig, prompt: Prompt, has_max: bool, config: GPTNeoXConfig) -> None:
    length = prompt.ids.shape[1]
    if settings.max_new_tokens is not None:
        settings.max_length = settings.max_new_tokens + length
    elif not has_max:
        settings.max_length = max(length + 1, min(settings.max_length + length, config.max_position_embeddings))
    if settings.min_new_tokens is not None:
        settings.min_length = settings.min_new_tokens + length
    if length >= settings.max_length:
        raise GenerationError(
            f"The prompt has {length} tokens and max_length={settings.max_length} counts them: "
            "there is no room for a new one. Pass max_new_tokens, or a larger max_length."
        )


def _check(settings: GenerationConfig) -> None:
    if settings.num_return_sequences > 1 and not settings.do_sample and settings.num_beams == 1:
        raise GenerationError(
            f"num_return_sequences={settings.num_return_sequences} with greedy search, which has "
            "one result. Pass do_sample=True or num_beams."
        )


def _stopping(settings: GenerationConfig, own: list[Criterion], tokenizer: Any) -> StoppingCriteriaList:
    made: list[Criterion] = [MaxLength(settings.max_length)]
    if settings.max_time is not None:
        made.append(MaxTime(settings.max_time))
    if settings.stop_strings is not None:
        strings = settings.stop_strings
        made.append(StopStrings([strings] if isinstance(strings, str) else strings, tokenizer))
    if eos_tokens(settings):
        made.append(EndToken(eos_tokens(settings)))
    return StoppingCriteriaList(merge(made, own))


def _collect(
    steps: Iterator[Step], reader: Reader, settings: GenerationConfig
) -> Tensor | GenerateDecoderOnlyOutput:
    scores: list[Tensor] = []
    logits: list[Tensor] = []
    for step in steps:
        scores += step.scores if settings.output_scores else ()
        logits += step.logits if settings.output_logits else ()
    if not settings.return_dict_in_generate:
        return step.ids
    return GenerateDecoderOnlyOutput(
        step.ids, tuple(scores) or None, tuple(logits) or None, past_key_values=reader.cache
    )
