"""What can be set about generation, and what holds where nothing is set.

A ``GenerationConfig`` remembers only what somebody set; everything else is None. When ``generate``
runs, four places are asked in this order, and the first that has a value wins:

    arguments of generate  >  generation_config=  >  model.generation_config  >  DEFAULTS

so a saved preference never overrides what is written in the call. None in a call switches a
setting off (``eos_token_id=None``: no token ends the text) even if another place sets it.

Whatever else has ``to_dict`` will do as a ``GenerationConfig``, transformers' above all.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from neox_lab.checks import SWITCH, Kind, check, number, one_of, plain, whole
from neox_lab.errors import GenerationError, nearest
from neox_lab.files import read_json, write_text

if TYPE_CHECKING:
    from neox_lab.config import GPTNeoXConfig

_log = logging.getLogger("neox_lab")

FILE_NAME = "generation_config.json"


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
    lambda v: bool(v) and _is_list(v, lambda word: word and _is_whole_list(word)),
)
_TEXTS: Kind[str | list[str]] = Kind(
    "a string or a list of strings",
    lambda v: _is_text(v) or (bool(v) and _is_list(v, _is_text)),
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
    lambda v: v in ("dynamic", "static"),
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
    "num_beams": (1, _AT_LEAST_ONE),
    "early_stopping": (False, _STOPPING),
    "length_penalty": (1.0, number()),
    "num_return_sequences": (1, _AT_LEAST_ONE),
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
_OFF = {"top_k": 0}

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
_KNOWN = frozenset({*SETTINGS, *REFUSED, *IGNORED})

_NOTES = ("_from_model_config", "transformers_version")

# Settings that only sampling, or only beam search, looks at.
_OF_SAMPLING = (
    *("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)
_OF_BEAMS = ("early_stopping", "length_penalty")
_OF_OUTPUTS = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")


class GenerationMode(StrEnum):
    """The strategies, by transformers' names for them."""

    GREEDY_SEARCH = "greedy_search"
    SAMPLE = "sample"
    BEAM_SEARCH = "beam_search"
    BEAM_SAMPLE = "beam_sample"
    ASSISTED_GENERATION = "assisted_generation"


class GenerationConfig:
    """Settings of ``generate``; an attribute that nobody set is None.

    ``GenerationConfig(max_new_tokens=50, do_sample=True)``; see ``SETTINGS`` for all names and
    what holds without them. Values are checked when they are set; numbers may be NumPy's, and
    tokens a tensor. Attributes that are no settings, nor look like one that is misspelt, are kept
    and saved, with a warning.

    Raises:
        GenerationError: an unknown name, a value that makes no sense, or a strategy that
            transformers 5 removed.
    """

    def __init__(self, **values: object) -> None:
        self.__dict__["_values"] = {}
        self.__dict__["_foreign"] = {}
        self._set(values)

    def _set(self, values: Mapping[str, object]) -> None:
        """Set several settings.

        Raises:
            GenerationError: an unknown name, or a value that makes no sense.
        """
        for name, value in values.items():
            if name not in _KNOWN:
                raise GenerationError(_no_setting(name))
            setattr(self, name, value)

    def update(self, **values: object) -> dict[str, object]:
        """Set several at once; None forgets a setting.

        Returns:
            What is no setting, and was left out.

        Raises:
            GenerationError: a value that makes no sense.
        """
        known = {n: v for n, v in values.items() if n in _KNOWN}
        self._set(known)
        return {n: v for n, v in values.items() if n not in known}

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            self.__dict__[name] = value  # somebody's note, neither saved nor read
            return
        value = plain(value)
        _check_setting(name, value)
        if name in REFUSED:
            return  # a value that asks for nothing
        place = self._values if name in SETTINGS else self._foreign
        if value is None:
            place.pop(name, None)
            return
        place[name] = value
        if name not in SETTINGS:
            warnings.warn(f"{name}={value!r} has no effect on generation here.", stacklevel=2)

    def __getattr__(self, name: str) -> Any:
        if name in SETTINGS:
            return self.__dict__["_values"].get(name)
        foreign = self.__dict__.get("_foreign", {})
        if name in foreign or name in _KNOWN:
            return foreign.get(name)
        raise AttributeError(f"GenerationConfig has no setting {name!r}.{nearest(name, SETTINGS)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *SETTINGS]

    def resolved(self, *fallbacks: GenerationConfig, off: Collection[str] = ()) -> GenerationConfig:
        """A copy with every setting set: here, in the first of ``fallbacks``, or by default.

        Args:
            fallbacks: asked in this order for what is not set here.
            off: names of settings that are switched off, whatever the others say.
        """
        result = GenerationConfig()
        for name, (default, _) in SETTINGS.items():
            places = () if name in off else (self, *fallbacks)
            values = (config._values.get(name) for config in places)
            otherwise = _OFF.get(name, default) if name in off else default
            value = next((v for v in values if v is not None), otherwise)
            result._values[name] = copy.copy(value)
        return result

    def to_dict(self) -> dict[str, Any]:
        """What was set, and what a file held beside it."""
        return copy.deepcopy({**self._foreign, **self._values})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: object) -> GenerationConfig:
        """From the contents of a ``generation_config.json``; names unknown here are kept.

        Args:
            values: contents of the file.
            overrides: settings that replace those of the file.

        Raises:
            GenerationError: a value that makes no sense.
        """
        config = cls()
        for name, value in values.items():
            if name in SETTINGS or name in REFUSED:
                setattr(config, name, value)
            elif name not in _NOTES:
                config._foreign[name] = value
        config._set(overrides)
        return config

    @classmethod
    def taken_from(cls, config: object) -> GenerationConfig:
        """``config`` if it is one, or the settings of another library's.

        Raises:
            GenerationError: it holds no settings, or one that this package cannot obey.
        """
        if isinstance(config, GenerationConfig):
            return config
        if not isinstance(config, HasDict):
            raise GenerationError(
                f"generation_config is a {type(config).__name__}; expected a GenerationConfig."
            )
        return cls.from_dict({n: v for n, v in config.to_dict().items() if v is not None})

    @classmethod
    def from_model_config(cls, config: GPTNeoXConfig) -> GenerationConfig:
        """Special tokens of a model, and the settings that older files keep in its config."""
        kept = {n: v for n, v in config.generation_defaults.items() if n in SETTINGS}
        tokens = {n: getattr(config, n) for n in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return cls.from_dict({**kept, **tokens})

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], config_file_name: str = FILE_NAME, **more: object
    ) -> GenerationConfig:
        """Read ``generation_config.json`` of a directory or a model on the hub.

        Args:
            source: directory or hub id.
            config_file_name: name of the file.
            more: ``revision, subfolder, cache_dir, force_download, local_files_only, token``, and
                settings that replace those of the file.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
            GenerationError: a value that makes no sense.
        """
        from neox_lab.hub import HubOptions, find_file

        options = HubOptions.take(more)
        path = find_file(source, config_file_name, options)
        assert path is not None  # find_file raises where a required file is missing
        return cls.from_json_file(path, **more)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str], **overrides: object) -> GenerationConfig:
        """Read one JSON file.

        Args:
            path: where it is.
            overrides: settings that replace those of the file.

        Raises:
            CheckpointError: it holds no settings.
            GenerationError: a value that makes no sense.
        """
        return cls.from_dict(read_json(path), **overrides)

    def save_pretrained(
        self, directory: str | os.PathLike[str], config_file_name: str = FILE_NAME
    ) -> None:
        """Write the settings into a directory, which is made if need be.

        Raises:
            GenerationError: settings that have no effect together.
            OSError: the file cannot be written; one that was there is kept.
        """
        self.validate(strict=True)
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_text(Path(directory) / config_file_name, self.to_json_string())

    def validate(self, strict: bool = False) -> None:
        """Look for settings that have no effect beside the others.

        Args:
            strict: raise an error instead of a warning in the log.

        Raises:
            GenerationError: a combination that ``generate`` refuses; with ``strict`` also
                settings without an effect.
        """
        several, beams = self.num_return_sequences or 1, self.num_beams or 1
        if several > 1 and (several > beams if beams > 1 else not self.do_sample):
            raise GenerationError(
                f"num_return_sequences={several} goes with do_sample=True, or with num_beams of "
                "at least as many."
            )
        idle = [(name, "do_sample=True") for name in _OF_SAMPLING if not self.do_sample]
        idle += [(name, "num_beams above 1") for name in _OF_BEAMS if beams == 1]
        if not self.return_dict_in_generate:
            idle += [(name, "return_dict_in_generate=True") for name in _OF_OUTPUTS]
        found = [
            f"{name}={self._values[name]!r} has no effect without {needed}"
            for name, needed in idle
            if self._values.get(name) not in (None, SETTINGS[name][0])
        ]
        if found and strict:
            raise GenerationError(f"{'; '.join(found)}.")
        for message in found:
            _log.warning("%s.", message)

    def get_generation_mode(self, assistant_model: object = None) -> GenerationMode:
        """The strategy these settings amount to, with or without an assistant."""
        if (self.num_beams or 1) > 1:
            return GenerationMode.BEAM_SAMPLE if self.do_sample else GenerationMode.BEAM_SEARCH
        if assistant_model is not None or self.prompt_lookup_num_tokens is not None:
            return GenerationMode.ASSISTED_GENERATION
        return GenerationMode.SAMPLE if self.do_sample else GenerationMode.GREEDY_SEARCH

    def to_json_string(self) -> str:
        """The text of ``generation_config.json``: sorted keys, indented by 2."""
        values = self.to_dict()
        if isinstance(values.get("sequence_bias"), dict):
            # JSON has no tuples as keys.
            values["sequence_bias"] = [[list(k), v] for k, v in values["sequence_bias"].items()]
        return json.dumps(values, indent=2, sort_keys=True, default=_as_dict) + "\n"

    def __eq__(self, other: object) -> bool:
        """Whether the same settings were made."""
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"GenerationConfig({settings})"


def _check_setting(name: str, value: object) -> None:
    """Refuse what is no setting, and values (None is one) that make no sense for it."""
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
            raise GenerationError(_no_setting(name))
        return
    if name == "pad_token_id" and isinstance(value, int) and value < 0:
        _log.warning("pad_token_id=%d is no token: rows that end early cannot be padded.", value)
    if name in ("max_length", "max_new_tokens") and value == 0 and not isinstance(value, bool):
        raise GenerationError(f"{name}=0 leaves no room for a token; expected 1 or more.")
    if value is not None:
        check(name, value, SETTINGS[name][1], GenerationError)


def _no_setting(name: str) -> str:
    return f"There is no generation setting {name!r}.{nearest(name, SETTINGS)}"


def _as_dict(value: HasDict) -> dict[str, Any]:
    return value.to_dict()
