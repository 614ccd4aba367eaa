"""One call of ``generate``: everything settled before the first step runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neox_lab.checks import several, shown
from neox_lab.errors import GenerationError
from neox_lab.generation.assisted import Assistant, Drafter, PromptLookup, draft_and_check
from neox_lab.generation.beams import BeamSearch
from neox_lab.generation.captured import records
from neox_lab.generation.captured_stepper import CapturedStepper
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.model_stepper import ModelStepper
from neox_lab.generation.processor_order import UserProcessors, merge, processors_in_order
from neox_lab.generation.processors import Processor
from neox_lab.generation.prompt import Prompt, eos_tokens, prepare, split_arguments
from neox_lab.generation.sampling import Step, one_by_one
from neox_lab.generation.stopping import (
    Criterion,
    EndToken,
    MaxLength,
    MaxTime,
    StoppingCriteriaList,
    StopStrings,
)
from neox_lab.generation.streamers import BaseStreamer
from neox_lab.notices import tell_of_length

if TYPE_CHECKING:
    from neox_lab.family.contract import LanguageModel
    from neox_lab.tokenizer import GPTNeoXTokenizerFast

_log = logging.getLogger("neox_lab")


@dataclass
class Companions:
    """What goes with a prompt and settings.

    Attributes:
        logits_processor: the user's processors.
        stopping_criteria: the user's criteria.
        prefix_allowed_tokens_fn: see ``processors.PrefixConstrained``.
        assistant_model: drafts tokens; a model of this package or of transformers.
        streamer: is shown tokens.
        negative_prompt_ids: for guidance, ``[batch, pos]``.
        negative_prompt_attention_mask: its padding.
        tokenizer: for texts and stop strings.
    """

    logits_processor: Sequence[Processor] | None = None
    stopping_criteria: Sequence[Criterion] | None = None
    prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]] | None = None
    assistant_model: LanguageModel | None = None
    streamer: BaseStreamer | None = None
    negative_prompt_ids: Tensor | None = None
    negative_prompt_attention_mask: Tensor | None = None
    tokenizer: GPTNeoXTokenizerFast | None = None

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> Companions:
        """Companions among ``arguments``, which are taken out of them."""
        names = [field.name for field in fields(cls) if field.name in arguments]
        return cls(**{name: arguments.pop(name) for name in names})


class GenerateCall:
    """Settings, prompt, processors and criteria of one call, and the strategy they amount to.

    Attributes:
        settings: resolved.
        prompt: repeated for beams and returned sequences.
        new_tokens: how many may come, at most.
        stepper: has read nothing yet.
        beams: the beam search, if it is one.
        steps: run the strategy by iterating over this.
    """

    def __init__(
        self,
        model: LanguageModel,
        inputs: object,
        config: object,
        companions: Companions,
        arguments: Mapping[str, Any],
    ) -> None:
        """Settle everything; nothing runs yet.

        Args:
            model: the model, whose ``generation_config`` counts last.
            inputs: the prompt, see ``prompt.prepare``.
            config: settings that count where ``arguments`` have none: a GenerationConfig, of this
                package or of transformers, or None.
            companions: what goes with the prompt.
            arguments: settings and named inputs of the model.

        Raises:
            GenerationError: unknown, impossible or contradictory arguments.
        """
        others = [field.name for field in fields(Companions)]
        named, model_arguments = split_arguments(arguments, others)
        second = GenerationConfig() if config is None else GenerationConfig.taken_from(config)
        places = (GenerationConfig(**named), second, model.generation_config)
        self.model, self.companions = model, companions
        off = {name for name, value in named.items() if value is None}
        self.settings = places[0].resolved(*places[1:], off=off)
        tokenizer = companions.tokenizer
        prompt = prepare(model, inputs, model_arguments, self.settings, tokenizer)
        by_hand = "max_length" not in off and any(p.max_length is not None for p in places)
        settle_lengths(self.settings, by_hand, prompt, model.config.max_position_embeddings)
        refuse_contradictions(self.settings, companions, prompt)
        times = max(self.settings.num_beams, self.settings.num_return_sequences)
        self.prompt = prompt.repeated(times)
        self.new_tokens = self.settings.max_length - self.prompt.ids.shape[1]
        self.stepper = self._stepper()
        own = UserProcessors(
            functions("logits_processor", companions.logits_processor),
            companions.prefix_allowed_tokens_fn,
            self._without_prompt(),
        )
        vocab = model.config.vocab_size
        self.processors = processors_in_order(self.settings, self.prompt, own, vocab)
        self.stopping = stopping_criteria(self.settings, companions, self.prompt.padding)
        self.beams: BeamSearch | None = None
        self.steps = self._strategy()

    def _stepper(self) -> ModelStepper:
        """What runs the model: by recorded steps, where the device has some and no step is more."""
        settings, others = self.settings, self.companions
        own = (others.logits_processor, others.stopping_criteria, others.prefix_allowed_tokens_fn)
        wanted = {n: getattr(settings, n) for n in ("output_hidden_states", "output_attentions")}
        more = (
            any(wanted.values())
            or settings.num_beams > 1
            or self.drafts
            or settings.guidance_scale not in (None, 1)
            or any(each is not None and not (isinstance(each, list) and not each) for each in own)
        )
        if settings.use_cache and not more and records(self.model.device):
            wants_cache = settings.return_dict_in_generate
            return CapturedStepper(self.model, self.prompt, self.new_tokens, wants_cache)
        return ModelStepper(self.model, self.prompt, self.new_tokens, settings.use_cache, **wanted)

    @property
    def drafts(self) -> bool:
        """Whether something guesses tokens for the model to check."""
        assistant = self.companions.assistant_model
        return assistant is not None or self.settings.prompt_lookup_num_tokens is not None

    def _strategy(self) -> Iterable[Step]:
        parts = (self.prompt.ids, self.processors, self.stopping, self.settings)
        if self.settings.num_beams > 1:
            self.beams = BeamSearch(self.stepper, *parts)
            return self.beams
        drafter = self._drafter()
        if drafter is not None:
            return draft_and_check(self.stepper, drafter, *parts)
        return one_by_one(self.stepper, *parts)

    def _drafter(self) -> Drafter | None:
        assistant = self.companions.assistant_model
        if assistant is not None:
            prompt = replace(self.prompt, cache=None)
            return Assistant(
                ModelStepper(assistant, prompt, self.new_tokens), self.processors, self.settings
            )
        if self.settings.prompt_lookup_num_tokens is not None:
            return PromptLookup(self.settings)
        return None

    def _without_prompt(self) -> Callable[[Tensor], Tensor] | None:
        """For guidance: what the model says after the negative prompt and the new tokens."""
        if self.settings.guidance_scale in (None, 1):
            return None
        negative = self.companions.negative_prompt_ids
        mask = self.companions.negative_prompt_attention_mask
        length = self.prompt.ids.shape[1]
        start = Prompt(self.prompt.ids[:, -1:])
        if negative is not None:
            start = Prompt(negative.to(self.model.device), mask=mask)
            start = start.repeated(self.prompt.ids.shape[0] // negative.shape[0])
        # Beams change places, and keys and values of this stepper would not follow them.
        use_cache = self.settings.use_cache and self.settings.num_beams == 1
        stepper = ModelStepper(self.model, start, self.new_tokens, use_cache)

        def logits(ids: Tensor) -> Tensor:
            return stepper.step(torch.cat((start.ids, ids[:, length:]), dim=1)).logits[:, -1]

        return logits


def settle_lengths(
    settings: GenerationConfig, by_hand: bool, prompt: Prompt, max_positions: int
) -> None:
    """Turn limits on new tokens into limits on the whole text, in ``settings``.

    Args:
        settings: resolved.
        by_hand: whether somebody set ``max_length``; otherwise there are 20 new tokens, or as
            many as the model has positions for.
        prompt: where the text begins.
        max_positions: positions the model was made for; a ``NeoxLabWarning`` tells of a text that
            may become longer.

    Raises:
        GenerationError: the prompt leaves no room for a new token.
    """
    length = prompt.ids.shape[1]
    # Vectors that stand for no ids are not in the returned text, but max_length counts them.
    apart = 0
    if prompt.embeds is not None and prompt.embeds.shape[1] != length:
        apart = prompt.embeds.shape[1]
    if settings.max_new_tokens is not None:
        if by_hand:
            _log.warning("Both max_new_tokens and max_length are set; max_new_tokens counts.")
        settings.max_length = settings.max_new_tokens + length
    elif not by_hand:
        room = max_positions - length - apart
        settings.max_length = length + max(1, min(settings.max_length, room))
    elif apart:
        _require_room(apart, settings.max_length)
        settings.max_length -= apart
    _require_room(length, settings.max_length)
    tell_of_length(settings.max_length + apart, max_positions, "The text may come to have")
    if settings.min_new_tokens is not None:
        settings.min_length = settings.min_new_tokens + length
    elif apart:
        settings.min_length = max(0, settings.min_length - apart)


def _require_room(length: int, max_length: int) -> None:
    if length >= max_length:
        raise GenerationError(
            f"The prompt has {length} tokens, and max_length={max_length} counts them: there is "
            "no room for a new one. Pass max_new_tokens, or a larger max_length."
        )


def refuse_contradictions(
    settings: GenerationConfig, companions: Companions, prompt: Prompt
) -> None:
    """Refuse settings that cannot be obeyed together.

    Args:
        settings: resolved.
        companions: what goes with the prompt.
        prompt: not repeated yet.

    Raises:
        GenerationError: the first rule that is broken, in words.
    """
    several, beams = settings.num_return_sequences, settings.num_beams
    drafting = [
        name
        for name, value in (
            ("assistant_model", companions.assistant_model),
            ("prompt_lookup_num_tokens", settings.prompt_lookup_num_tokens),
        )
        if value is not None
    ]
    rules = (
        (
            several > 1 and not settings.do_sample and beams == 1,
            f"num_return_sequences={several}: greedy search has one result. Pass do_sample=True, "
            "or num_beams.",
        ),
        (
            settings.do_sample and settings.temperature == 0,
            "temperature=0.0 leaves nothing to draw; for greedy search pass do_sample=False.",
        ),
        (
            1 < beams < several,
            f"num_return_sequences={several} is more than num_beams={beams}.",
        ),
        (
            beams > 1 and companions.streamer is not None,
            f"streamer with num_beams={beams}: which text is best is known only at the end.",
        ),
        (
            settings.stop_strings is not None and companions.tokenizer is None,
            "stop_strings needs a tokenizer: pass tokenizer=, or set model.tokenizer.",
        ),
        (
            prompt.cache is not None and settings.cache_implementation is not None,
            "past_key_values and cache_implementation were both given; the cache is already there.",
        ),
        (
            len(drafting) > 1,
            "assistant_model and prompt_lookup_num_tokens were both given; one of them drafts.",
        ),
        *_rules_for_drafting(drafting, settings, companions, prompt),
    )
    for broken, message in rules:
        if broken:
            raise GenerationError(message)


def _rules_for_drafting(
    drafting: list[str], settings: GenerationConfig, companions: Companions, prompt: Prompt
) -> list[tuple[bool, str]]:
    if not drafting:
        return []
    name = drafting[0]
    one_text = f"{name} works on one text"
    rules = [
        (prompt.ids.shape[0] > 1, f"{one_text}; the batch has {prompt.ids.shape[0]}."),
        (settings.num_return_sequences > 1, f"{one_text}; num_return_sequences asks for more."),
        (settings.num_beams > 1, f"{name} cannot be combined with num_beams."),
        (not settings.use_cache, f"{name} needs use_cache=True."),
        (prompt.embeds is not None, f"{name} needs the tokens of the prompt, not inputs_embeds."),
        (
            settings.guidance_scale not in (None, 1),
            f"{name} cannot be combined with guidance_scale.",
        ),
    ]
    assistant = companions.assistant_model
    if assistant is not None:
        rules.append(
            (
                not _predicts_tokens(assistant),
                f"assistant_model is a {type(assistant).__name__}, which predicts no tokens; "
                "expected a model with head='causal-lm', or one of transformers that generates.",
            )
        )
        own, other = companions.tokenizer, getattr(assistant, "tokenizer", None)
        differ = own is not None and other is not None and own.get_vocab() != other.get_vocab()
        rules.append((differ, "assistant_model has another vocabulary than this model."))
    return rules


def _predicts_tokens(model: object) -> bool:
    """Whether it is a model that writes text; one that does not say so is believed."""
    says = getattr(model, "can_generate", None)
    return isinstance(model, nn.Module) and (bool(says()) if callable(says) else True)


def stopping_criteria(
    settings: GenerationConfig, companions: Companions, padding: Tensor | None
) -> StoppingCriteriaList:
    """All criteria of one call; the user's come last or take the place of a built-in one.

    Args:
        settings: resolved.
        companions: the tokenizer, and the user's own criteria.
        padding: True where the prompt is padding ``[batch, prompt_pos]``, or None.
    """
    made: list[Criterion] = [MaxLength(settings.max_length)]
    if settings.max_time is not None:
        made.append(MaxTime(settings.max_time))
    if settings.stop_strings is not None:
        strings = settings.stop_strings
        strings = [strings] if isinstance(strings, str) else list(strings)
        assert companions.tokenizer is not None  # refuse_contradictions saw to it
        made.append(StopStrings(strings, companions.tokenizer, padding))
    if eos_tokens(settings):
        made.append(EndToken(eos_tokens(settings)))
    return StoppingCriteriaList(
        merge(made, functions("stopping_criteria", companions.stopping_criteria))
    )


def functions(name: str, given: object) -> list[Any]:
    """The processors or criteria of a call; none where ``given`` is None.

    Raises:
        GenerationError: it is something else than a list of what can be called.
    """
    if given is None:
        return []
    listed = several(name, given, "a list of functions", GenerationError)
    if wrong := [item for item in listed if not callable(item)]:
        raise GenerationError(f"{name} holds {shown(wrong[0])}; expected functions.")
    return listed
