"""What can be set about generation, what values it takes, and what holds where nothing is set.

``SETTINGS`` says it of each setting; ``REFUSED`` names what transformers has beside them and this
package cannot obey, ``IGNORED`` what it has and what changes no text.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from neox_lab.checks import SWITCH, Kind, check, number, one_of, whole
from neox_lab.errors import GenerationError, nearest
from neox_lab.other_names import ARGUMENTS, ours

_log = logging.getLogger("neox_lab")


@runtime_checkable
class HasDict(Protocol):
    """An object that can be written as a dict, such as transformers' watermarking settings."""

    def to_dict(self) -> dict[str, Any]:
        """Its contents."""


_is_whole, _is_number = whole().accepts, number().accepts


def _is_list(value: object, accepts: Callable[[object], object]) -> bool:
    return isinstance(value, list | tuple) and all(map(accepts, value))


def _is_whole_list(value: object) -> bool:
    return _is_list(value, _is_whole)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


_COUNT, _AT_LEAST_ONE = whole(least=0), whole(above=0)
_SEVERAL = whole(above=0, most=2**16)  # each is a row of the batch
_POSITIVE, _FRACTION = number(above=0), number(least=0, most=1)
_SHARE, _CUTOFF = number(above=0, most=1), number(least=0, below=1)
_PAD: Kind[int] = Kind("a token id, or -1 for none", whole().accepts)
_TOKEN: Kind[int] = Kind("a token id", _COUNT.accepts)
_TOKENS: Kind[int | list[int]] = Kind(
    "a token id or a list of token ids", lambda v: _is_whole(v) or _is_whole_list(v)
)
_TOKEN_LIST: Kind[list[int]] = Kind("a list of token ids", _is_whole_list)
_TOKEN_LISTS: Kind[list[list[int]]] = Kind(
    "a list of lists of token ids, such as [[5], [7, 8]]",
    lambda v: _is_list(v, lambda word: _is_whole_list(word) and word) and bool(v),
)
_TEXTS: Kind[str | list[str]] = Kind(
    "a string or a list of strings",
    lambda v: _is_text(v) or (_is_list(v, _is_text) and bool(v)),
)
_BIAS: Kind[object] = Kind(
    "a dict from tuples of token ids to numbers, such as {(5,): -2.0}",
    lambda v: isinstance(v, dict | list) and bool(v),
)
_STOPPING: Kind[bool | str] = Kind(
    "True, False or 'never'", lambda v: isinstance(v, bool) or v == "never"
)
_DECAY: Kind[tuple[int, float]] = Kind(
    "a pair (start, factor)",
    lambda v: isinstance(v, list | tuple) and len(v) == 2 and _is_whole(v[0]) and _is_number(v[1]),
)
_CACHE: Kind[str] = Kind(
    "'dynamic' or 'static' (here both mean the same preallocated cache)",
    lambda v: v in ("dynamic", "static", "hybrid", "hybrid_chunked", "sliding_window"),
)
_WATERMARK: Kind[Mapping[str, Any] | HasDict] = Kind(
    "a dict", lambda v: isinstance(v, dict | HasDict)
)

# name: (value where nobody set one, what values it takes)
SETTINGS: dict[str, tuple[Any, Kind[Any]]] = {
    # how long
    "max_length": (20, _AT_LEAST_ONE),
    "max_new_tokens": (None, _AT_LEAST_ONE),
    "min_length": (0, _COUNT),
    "min_new_tokens": (None, _COUNT),
    "max_time": (None, _POSITIVE),
    "stop_strings": (None, _TEXTS),
    # strategy
    "do_sample": (False, SWITCH),
    "num_beams": (1, _SEVERAL),
    "early_stopping": (False, _STOPPING),
    "length_penalty": (1.0, number()),
    "num_return_sequences": (1, _SEVERAL),
    "use_cache": (True, SWITCH),
    "cache_implementation": (None, _CACHE),
    # sampling
    "temperature": (1.0, number(least=0)),
    "top_k": (50, _COUNT),
    "top_p": (1.0, _FRACTION),
    "top_h": (None, _SHARE),
    "min_p": (None, _FRACTION),
    "typical_p": (1.0, _SHARE),
    "epsilon_cutoff": (0.0, _CUTOFF),
    "eta_cutoff": (0.0, _CUTOFF),
    # changing scores
    "repetition_penalty": (1.0, _POSITIVE),
    "encoder_repetition_penalty": (1.0, _POSITIVE),
    "no_repeat_ngram_size": (0, _COUNT),
    "encoder_no_repeat_ngram_size": (0, _COUNT),
    "bad_words_ids": (None, _TOKEN_LISTS),
    "sequence_bias": (None, _BIAS),
    "forced_bos_token_id": (None, _TOKEN),
    "forced_eos_token_id": (None, _TOKENS),
    "suppress_tokens": (None, _TOKEN_LIST),
    "begin_suppress_tokens": (None, _TOKEN_LIST),
    "exponential_decay_length_penalty": (None, _DECAY),
    "guidance_scale": (None, number()),
    "remove_invalid_values": (False, SWITCH),
    "renormalize_logits": (False, SWITCH),
    "watermarking_config": (None, _WATERMARK),
    # special tokens
    "pad_token_id": (None, _PAD),
    "bos_token_id": (None, _TOKEN),
    "eos_token_id": (None, _TOKENS),
    # several tokens a step
    "prompt_lookup_num_tokens": (None, _AT_LEAST_ONE),
    "max_matching_ngram_size": (2, _AT_LEAST_ONE),
    "num_assistant_tokens": (20, _AT_LEAST_ONE),
    "num_assistant_tokens_schedule": (
        "constant",
        one_of("constant", "heuristic", "heuristic_transient"),
    ),
    "assistant_confidence_threshold": (0.4, _FRACTION),
    # what is returned
    "return_dict_in_generate": (False, SWITCH),
    "output_scores": (False, SWITCH),
    "output_logits": (False, SWITCH),
    "output_hidden_states": (False, SWITCH),
    "output_attentions": (False, SWITCH),
}

# What None means in a call, where it is not the same as the default.
OFF = {"top_k": 0}

# name: (values that ask for nothing, what it would ask for)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beam_groups": ((1,), "Group beam search"),
    "diversity_penalty": ((0.0,), "Group beam search"),
    "penalty_alpha": ((0.0,), "Contrastive search"),
    "low_memory": ((False,), "Contrastive search"),
    "constraints": (([],), "Constrained beam search"),
    "force_words_ids": (([],), "Constrained beam search"),
    "dola_layers": ((), "DoLa decoding"),
    "token_healing": ((False,), "Token healing"),
    "assistant_early_exit": ((), "Drafting with the first layers"),
    "assistant_ensemble_weight": ((), "Mixing with the assistant"),
    "use_mtp": ((False,), "Drafting with extra heads"),
}

# Settings of transformers that change no text, or are of other kinds of models.
IGNORED = frozenset(
    """
    assistant_lookbehind cache_config compile_config continuous_batching_config
    decoder_start_token_id disable_compile is_assistant max_cache_len prefill_chunk_size
    speculation_type target_lookbehind
    """.split()
)
KNOWN = frozenset({*SETTINGS, *REFUSED, *IGNORED})


def check_setting(name: str, value: object) -> None:
    """Refuse what is no setting, and values (None is one) that make no sense for it.

    Raises:
        GenerationError: the message names both.
    """
    if name in REFUSED:
        neutral, strategy = REFUSED[name]
        if value is not None and value not in neutral:
            raise GenerationError(
                f"{name}={value!r}: {strategy} is not part of this package. There is greedy "
                "search, sampling, beam search, beam sampling, prompt lookup and assisted decoding."
            )
        return
    if name not in SETTINGS:
        if name not in IGNORED and difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.85):
            raise GenerationError(no_setting(name))
        return
    if name == "pad_token_id" and isinstance(value, int) and value < 0:
        _log.warning("pad_token_id=%d is no token: rows that end early cannot be padded.", value)
    if name in ("max_length", "max_new_tokens") and type(value) is int and value == 0:
        raise GenerationError(f"{name}=0 leaves no room for a token; expected 1 or more.")
    if value is not None:
        check(name, value, SETTINGS[name][1], GenerationError)


def no_setting(name: str) -> str:
    """The sentence that says so, and names what is meant, or the nearest ones."""
    meant = ours(name, ARGUMENTS) or nearest(name, SETTINGS)
    return f"There is no generation setting {name!r}.{meant}"
