"""What can be set about generation, and what holds where nothing is set.

A ``GenerationConfig`` remembers only what somebody set; everything else is None. When ``generate``
runs, four places are asked in this order, and the first that has a value wins:

    arguments of generate  >  generation_config=  >  model.generation_config  >  DEFAULTS

so a saved preference never overrides what is written in the call. None in a call switches a
setting off (``eos_token_id=None``: no token ends the text) even if another place sets it.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from neox_lab.checks import SWITCH, Kind, check, number, one_of, whole
from neox_lab.errors import GenerationError, nearest
from neox_lab.files import read_json, write_text

if TYPE_CHECKING:
    from neox_lab.config import GPTNeoXConfig

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
_TEMPERATURE: Kind[float] = Kind(
    "a number above 0; for greedy search pass do_sample=False", _POSITIVE.accepts
)
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
    "temperature": (1.0, _TEMPERATURE),
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
    "pad_token_id": (None, _TOKEN),
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
}

_NOTES = ("_from_model_config", "transformers_version")


class GenerationConfig:
    """Settings of ``generate``; an attribute that nobody set is None.

    ``GenerationConfig(max_new_tokens=50, do_sample=True)``; see ``SETTINGS`` for all names and
    what holds without them. Values are checked when they are set.

    Raises:
        GenerationError: an unknown name, a value that makes no sense, or a strategy that
            transformers 5 removed.
    """

    def __init__(self, **values: object) -> None:
        self.__dict__["_values"] = {}
        self.__dict__["_foreign"] = {}
        self.update(**values)

    def update(self, **values: object) -> None:
        """Set several at once; None forgets a setting.

        Raises:
            GenerationError: an unknown name, or a value that makes no sense.
        """
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        _check_setting(name, value)
        if name in REFUSED:
            return  # a value that asks for nothing
        if value is None:
            self._values.pop(name, None)
        else:
            self._values[name] = value

    def __getattr__(self, name: str) -> Any:
        if name in SETTINGS:
            return self.__dict__["_values"].get(name)
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
        config.update(**overrides)
        return config

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
            OSError: the file cannot be written; one that was there is kept.
        """
        Path(directory).mkdir(parents=True, exist_ok=True)
        write_text(Path(directory) / config_file_name, self.to_json_string())

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
                f"{name}={value!r}: {strategy} is not part of this package (transformers 5 has "
                "moved it out, too). There is greedy search, sampling, beam search, beam "
                "sampling, prompt lookup and assisted decoding."
            )
        return
    if name not in SETTINGS:
        raise GenerationError(f"There is no generation setting {name!r}.{nearest(name, SETTINGS)}")
    if name in ("max_length", "max_new_tokens") and value == 0 and not isinstance(value, bool):
        raise GenerationError(f"{name}=0 leaves no room for a token; expected 1 or more.")
    if value is not None:
        check(name, value, SETTINGS[name][1], GenerationError)


def _as_dict(value: HasDict) -> dict[str, Any]:
    return value.to_dict()
