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
from typing import TYPE_CHECKING, Any, NamedTuple

from neox_lab.errors import GenerationError, nearest
from neox_lab.files import read_json, write_text

if TYPE_CHECKING:
    from neox_lab.config import GPTNeoXConfig

FILE_NAME = "generation_config.json"


class Kind(NamedTuple):
    """What values a setting takes.

    Attributes:
        accepts: whether a value (not None) will do.
        words: the same for people.
    """

    accepts: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(_is_whole(item) for item in value)


_SWITCH = Kind(lambda v: isinstance(v, bool), "True or False")
_COUNT = Kind(lambda v: _is_whole(v) and v >= 0, "a whole number, 0 or more")
_AT_LEAST_ONE = Kind(lambda v: _is_whole(v) and v >= 1, "a whole number, 1 or more")
_NUMBER = Kind(_is_number, "a number")
_POSITIVE = Kind(lambda v: _is_number(v) and v > 0, "a number above 0")
_FRACTION = Kind(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1")
_SHARE = Kind(lambda v: _is_number(v) and 0 < v <= 1, "a number above 0 and up to 1")
_CUTOFF = Kind(lambda v: _is_number(v) and 0 <= v < 1, "a number from 0 to below 1")
_TOKEN = Kind(lambda v: _is_whole(v) and v >= 0, "a token id")
_TOKENS = Kind(lambda v: _is_whole(v) or _is_whole_list(v), "a token id or a list of token ids")
_TOKEN_LIST = Kind(_is_whole_list, "a list of token ids")
_TOKEN_LISTS = Kind(
    lambda v: isinstance(v, list | tuple) and bool(v) and all(w and _is_whole_list(w) for w in v),
    "a list of lists of token ids, such as [[5], [7, 8]]",
)
_TEXTS = Kind(
    lambda v: (
        isinstance(v, str | list | tuple) and bool(v) and all(isinstance(t, str) and t for t in v)
    ),
    "a string or a list of strings",
)
_BIAS = Kind(
    lambda v: isinstance(v, dict | list) and bool(v),
    "a dict from tuples of token ids to numbers, such as {(5,): -2.0}",
)
_STOPPING = Kind(lambda v: isinstance(v, bool) or v == "never", "True, False or 'never'")
_DECAY = Kind(
    lambda v: isinstance(v, list | tuple) and len(v) == 2 and _is_whole(v[0]) and _is_number(v[1]),
    "a pair (start, factor)",
)
_SCHEDULE = Kind(
    lambda v: v in ("constant", "heuristic", "heuristic_transient"),
    "'constant', 'heuristic' or 'heuristic_transient'",
)
_CACHE = Kind(
    lambda v: v in ("dynamic", "static"),
    "'dynamic' or 'static' (here both mean the same preallocated cache)",
)
_WATERMARK = Kind(lambda v: isinstance(v, dict) or hasattr(v, "to_dict"), "a dict")

# name: (value where nobody set one, what values it takes)
SETTINGS: dict[str, tuple[Any, Kind]] = {
    # how long
    "max_length": (20, _AT_LEAST_ONE),
    "max_new_tokens": (None, _AT_LEAST_ONE),
    "min_length": (0, _COUNT),
    "min_new_tokens": (None, _COUNT),
    "max_time": (None, _POSITIVE),
    "stop_strings": (None, _TEXTS),
    # strategy
    "do_sample": (False, _SWITCH),
    "num_beams": (1, _AT_LEAST_ONE),
    "early_stopping": (False, _STOPPING),
    "length_penalty": (1.0, _NUMBER),
    "num_return_sequences": (1, _AT_LEAST_ONE),
    "use_cache": (True, _SWITCH),
    "cache_implementation": (None, _CACHE),
    # sampling
    "temperature": (1.0, _POSITIVE),
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
    "guidance_scale": (None, _NUMBER),
    "remove_invalid_values": (False, _SWITCH),
    "renormalize_logits": (False, _SWITCH),
    "watermarking_config": (None, _WATERMARK),
    # special tokens
    "pad_token_id": (None, _TOKEN),
    "bos_token_id": (None, _TOKEN),
    "eos_token_id": (None, _TOKENS),
    # several tokens a step
    "prompt_lookup_num_tokens": (None, _AT_LEAST_ONE),
    "max_matching_ngram_size": (2, _AT_LEAST_ONE),
    "num_assistant_tokens": (20, _AT_LEAST_ONE),
    "num_assistant_tokens_schedule": ("constant", _SCHEDULE),
    "assistant_confidence_threshold": (0.4, _FRACTION),
    # what is returned
    "return_dict_in_generate": (False, _SWITCH),
    "output_scores": (False, _SWITCH),
    "output_logits": (False, _SWITCH),
    "output_hidden_states": (False, _SWITCH),
    "output_attentions": (False, _SWITCH),
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

    def __init__(self, **values: Any) -> None:
        self.__dict__["_values"] = {}
        self.__dict__["_foreign"] = {}
        self.update(**values)

    def update(self, **values: Any) -> None:
        """Set several at once; None forgets a setting."""
        for name, value in values.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        check(name, value)
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

        Settings named in ``off`` are switched off, whatever the others say.
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
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> GenerationConfig:
        """From the contents of a ``generation_config.json``; names unknown here are kept."""
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
        cls, source: str | os.PathLike[str], config_file_name: str = FILE_NAME, **more: Any
    ) -> GenerationConfig:
        """Read ``generation_config.json`` of a directory or a model on the hub.

        Args:
            source: directory or hub id.
            config_file_name: name of the file.
            more: ``revision, subfolder, cache_dir, force_download, local_files_only, token``, and
                settings that replace those of the file.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
        """
        from neox_lab.hub import HubOptions, find_file

        options = HubOptions.take(more)
        path = find_file(source, config_file_name, options)
        assert path is not None  # find_file raises where a required file is missing
        return cls.from_json_file(path, **more)

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str], **overrides: Any) -> GenerationConfig:
        """Read one JSON file.

        Raises:
            CheckpointError: it holds no settings.
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


def check(name: str, value: Any) -> None:
    """Raise GenerationError unless ``name`` is a setting and ``value`` (or None) will do."""
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
    kind = SETTINGS[name][1]
    if value is not None and not kind.accepts(value):
        hint = " For greedy search pass do_sample=False." if name == "temperature" else ""
        raise GenerationError(f"{name}={value!r}; expected {kind.words}.{hint}")


def _as_dict(value: Any) -> Any:
    return value.to_dict()
