"""Settings of generation that somebody made, and how they come together in one call.

A ``GenerationConfig`` remembers only what somebody set; everything else is None. When ``generate``
runs, four places are asked in this order, and the first that has a value wins:

    arguments of generate  >  generation_config=  >  model.generation_config  >  DEFAULTS

so a saved preference never overrides what is written in the call. None in a call switches a
setting off (``eos_token_id=None``: no token ends the text) even if another place sets it.

Whatever else has ``to_dict`` will do as a ``GenerationConfig``, transformers' above all.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import warnings
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from neox_lab.checks import plain
from neox_lab.errors import GenerationError, nearest
from neox_lab.files import read_json, write_text
from neox_lab.generation.settings import (
    KNOWN,
    OFF,
    REFUSED,
    SETTINGS,
    HasDict,
    check_setting,
    no_setting,
)

if TYPE_CHECKING:
    from neox_lab.config import GPTNeoXConfig

_log = logging.getLogger("neox_lab")

FILE_NAME = "generation_config.json"

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

    _from_model_config: ClassVar[bool] = False  # asked by transformers' Seq2SeqTrainer

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
            if name not in KNOWN:
                raise GenerationError(no_setting(name))
            setattr(self, name, value)

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **values: object
    ) -> dict[str, object]:
        """Set several at once; None forgets a setting.

        Args:
            defaults_only: set only what nobody has set yet.
            allow_custom_entries: also keep what is no setting.
            values: by name.

        Returns:
            What is no setting, and was left out.

        Raises:
            GenerationError: a value that makes no sense.
        """
        known = values if allow_custom_entries else {n: values[n] for n in values if n in KNOWN}
        for name, value in known.items():
            if not (defaults_only and getattr(self, name, None) is not None):
                setattr(self, name, value)
        return {n: v for n, v in values.items() if n not in known}

    @staticmethod
    def _get_default_generation_params() -> dict[str, object]:
        """What holds where nothing is set; transformers asks an assistant for it."""
        return {name: default for name, (default, _) in SETTINGS.items() if default is not None}

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            self.__dict__[name] = value  # somebody's note, neither saved nor read
            return
        value = plain(value)
        check_setting(name, value)
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
        if name in foreign or name in KNOWN:
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
            otherwise = OFF.get(name, default) if name in off else default
            value = next((v for v in values if v is not None), otherwise)
            result._values[name] = copy.copy(value)
        return result

    def to_dict(self) -> dict[str, Any]:
        """What was set, and what a file held beside it."""
        return copy.deepcopy({**self._foreign, **self._values})

    def to_diff_dict(self) -> dict[str, Any]:
        """What was set; the same as ``to_dict``, for settings nobody made are never written."""
        return self.to_dict()

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
        cls,
        pretrained_model_name: str | os.PathLike[str],
        config_file_name: str = FILE_NAME,
        **more: object,
    ) -> GenerationConfig:
        """Read ``generation_config.json`` of a directory or a model on the hub.

        Args:
            pretrained_model_name: directory or hub id.
            config_file_name: name of the file.
            more: ``revision, subfolder, cache_dir, force_download, local_files_only, token``, and
                settings that replace those of the file.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
            GenerationError: a value that makes no sense.
        """
        from neox_lab.hub import HubOptions, find_file

        options = HubOptions.take(more)
        path = find_file(pretrained_model_name, config_file_name, options)
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

        Args:
            directory: where to.
            config_file_name: of the file in it.

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


def _as_dict(value: HasDict) -> dict[str, Any]:
    return value.to_dict()
