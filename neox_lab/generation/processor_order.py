"""Which processors a call of ``generate`` needs, in which order.

The order is transformers': what adds or forbids first, then the user's own processors, then (only
for sampling) temperature and the cut-offs, at the end watermark and normalization. A processor of
the user's that has the type of one of the others takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import GenerationError
from neox_lab.generation import processors as p
from neox_lab.generation import warpers as w
from neox_lab.generation.generation_config import GenerationConfig
from neox_lab.generation.prompt import Prompt, eos_tokens
from neox_lab.generation.stopping import Criterion

Rule = TypeVar("Rule", p.Processor, Criterion)


@dataclass
class UserProcessors:
    """What the user brought to choose tokens with.

    Attributes:
        processors: called after the built-in ones.
        allowed_tokens: ``prefix_allowed_tokens_fn``, or None.
        without_prompt: logits of the negative prompt, for guidance, or None.
    """

    processors: Sequence[p.Processor] = ()
    allowed_tokens: Callable[[int, Tensor], Sequence[int]] | None = None
    without_prompt: Callable[[Tensor], Tensor] | None = None


def processors_in_order(
    settings: GenerationConfig, prompt: Prompt, own: UserProcessors, vocab: int
) -> p.LogitsProcessorList:
    """All processors of one call, in the order in which they run.

    Args:
        settings: resolved.
        prompt: repeated for beams and returned sequences.
        own: what the user brought.
        vocab: size of the vocabulary.

    Raises:
        GenerationError: a processor needs something that is not there.
    """
    built_in = [
        *_shifting(settings, prompt, own),
        *_repeating(settings, prompt),
        *_banning(settings, prompt, own),
        *_ending(settings, prompt),
    ]
    ordered = p.LogitsProcessorList(merge(built_in, own.processors))
    if settings.do_sample:
        ordered.extend(_warpers(settings))
    if settings.watermarking_config is not None:
        from neox_lab.generation.watermark import Watermark

        mark = Watermark.from_config(settings.watermarking_config, vocab, prompt.padding)
        ordered.append(mark)
    if settings.renormalize_logits:
        ordered.append(p.LogitNormalization())
    return ordered


def merge(built_in: Sequence[Rule], own: Sequence[Rule]) -> list[Rule]:
    """Processors or criteria of both lists; one of ``own`` replaces a built-in one of its type."""
    by_type = {type(item): item for item in reversed(own) if not _is_function(item)}
    merged: list[Rule] = [by_type.get(type(item), item) for item in built_in]
    merged += [item for item in own if not any(item is other for other in merged)]
    return merged


def _is_function(item: object) -> bool:
    """True for plain functions, whose common type says nothing about what they do."""
    return type(item).__name__ in ("function", "method", "builtin_function_or_method", "partial")


def _shifting(settings: GenerationConfig, prompt: Prompt, own: UserProcessors) -> list[p.Processor]:
    made: list[p.Processor] = []
    if own.without_prompt is not None:
        made.append(p.ClassifierFreeGuidance(settings.guidance_scale, own.without_prompt))
    if settings.sequence_bias is not None:
        made.append(p.SequenceBias(_as_mapping(settings.sequence_bias), prompt.padding))
    return made


def _as_mapping(biases: object) -> dict[tuple[int, ...], float]:
    """``{(5, 7): -2.0}`` from that, or from ``[[[5, 7], -2.0]]`` as JSON has it."""
    pairs = biases.items() if isinstance(biases, dict) else biases
    try:
        return {tuple(sequence): float(amount) for sequence, amount in pairs}  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError) as error:
        raise GenerationError(
            f"sequence_bias={shown(biases)}; expected a dict from tuples of token ids to numbers, "
            "such as {(5, 7): -2.0}."
        ) from error


def _repeating(settings: GenerationConfig, prompt: Prompt) -> list[p.Processor]:
    made: list[p.Processor] = []
    if settings.encoder_repetition_penalty != 1.0:
        ids = _prompt_ids(prompt, "encoder_repetition_penalty")
        made.append(p.EncoderRepetitionPenalty(settings.encoder_repetition_penalty, ids))
    if settings.repetition_penalty != 1.0:
        made.append(p.RepetitionPenalty(settings.repetition_penalty, prompt.padding))
    if settings.no_repeat_ngram_size > 0:
        made.append(p.NoRepeatNGram(settings.no_repeat_ngram_size, prompt.padding))
    if settings.encoder_no_repeat_ngram_size > 0:
        ids = _prompt_ids(prompt, "encoder_no_repeat_ngram_size")
        made.append(p.EncoderNoRepeatNGram(settings.encoder_no_repeat_ngram_size, ids))
    return made


def _prompt_ids(prompt: Prompt, name: str) -> Tensor:
    """The prompt's tokens, with ``PADDING`` where there is none."""
    if prompt.embeds is not None:
        raise GenerationError(f"{name} needs the tokens of the prompt, but it is inputs_embeds.")
    return p.without_padding(prompt.ids, prompt.padding)


def _banning(settings: GenerationConfig, prompt: Prompt, own: UserProcessors) -> list[p.Processor]:
    made: list[p.Processor] = []
    eos, length = eos_tokens(settings), prompt.ids.shape[1]
    if settings.bad_words_ids is not None:
        made.append(p.NoBadWords(settings.bad_words_ids, eos, prompt.padding))
    if eos and settings.min_length > 0:
        made.append(p.MinLength(settings.min_length, eos))
    if eos and settings.min_new_tokens:
        made.append(p.MinNewTokens(length, settings.min_new_tokens, eos))
    if own.allowed_tokens is not None:
        rows = max(settings.num_beams, settings.num_return_sequences)
        made.append(p.PrefixConstrained(own.allowed_tokens, rows))
    return made


def _ending(settings: GenerationConfig, prompt: Prompt) -> list[p.Processor]:
    made: list[p.Processor] = []
    eos, length = eos_tokens(settings), prompt.ids.shape[1]
    forced_bos, forced_eos = settings.forced_bos_token_id, settings.forced_eos_token_id
    if forced_bos is not None:
        made.append(p.ForcedBOS(forced_bos))
    if forced_eos is not None:
        tokens = [forced_eos] if isinstance(forced_eos, int) else forced_eos
        made.append(p.ForcedEOS(settings.max_length, tokens))
    if settings.remove_invalid_values:
        made.append(p.InfNanRemove())
    if settings.exponential_decay_length_penalty is not None:
        if not eos:
            raise GenerationError("exponential_decay_length_penalty needs an eos_token_id.")
        start, factor = settings.exponential_decay_length_penalty
        made.append(p.ExponentialDecayLengthPenalty(start + length, factor, eos))
    if settings.suppress_tokens is not None:
        made.append(p.SuppressTokens(settings.suppress_tokens))
    if settings.begin_suppress_tokens is not None:
        first = length + 1 if length <= 1 and forced_bos is not None else length
        made.append(p.SuppressTokensAtBegin(settings.begin_suppress_tokens, first))
    return made


def _warpers(settings: GenerationConfig) -> list[p.Processor]:
    # Beams that all end must not be left without a way to go on.
    at_least = 1 if settings.num_beams == 1 else max(2, len(eos_tokens(settings)) + 1)
    made: list[p.Processor] = []
    if settings.temperature != 1.0:
        made.append(w.Temperature(settings.temperature))
    if settings.top_h is not None:
        made.append(w.TopH(settings.top_h))
    if settings.top_k != 0:
        made.append(w.TopK(settings.top_k, at_least))
    if settings.top_p < 1.0:
        made.append(w.TopP(settings.top_p, at_least))
    if settings.min_p is not None:
        made.append(w.MinP(settings.min_p, at_least))
    if settings.typical_p < 1.0:
        made.append(w.Typical(settings.typical_p, at_least))
    if settings.epsilon_cutoff > 0:
        made.append(w.Epsilon(settings.epsilon_cutoff, at_least))
    if settings.eta_cutoff > 0:
        made.append(w.Eta(settings.eta_cutoff, at_least))
    return made
