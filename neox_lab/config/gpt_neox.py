"""The numbers that describe a GPT-NeoX model, and one meaning for every ``config.json``.

Five generations of files are in circulation. They differ only in how they spell two numbers
of the rotary embedding and its scaling:

    transformers 4.19-4.32   rotary_pct, rotary_emb_base
    transformers 4.33-4.42   the same, and rope_scaling {"type", "factor"}
    transformers 4.43-4.57   the same again, repeated as partial_rotary_factor and rope_theta
    transformers 5           rope_parameters {"rope_type", "rope_theta", "partial_rotary_factor"}
    the first 20B file       as the oldest, with two dropout names that nothing ever read

Here ``rope_parameters`` is the one truth; the other names are views of it, for reading and for
setting. Saved files carry both spellings, so that old and new readers see the same model.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints, overload

import torch

from neox_lab.checks import (
    SWITCH,
    TEXT,
    Kind,
    check,
    list_of,
    number,
    one_of,
    or_none,
    plain,
    whole,
)
from neox_lab.config.rope import (
    DEFAULT_ROPE,
    ROPE_NAMES,
    check_pairs,
    check_rope,
    resolve_rope,
    rope_scaling,
)
from neox_lab.config.spellings import (
    DTYPE_NAMES,
    LABEL_NAMES,
    check_model_type,
    parse_updates,
    resolve_dtype,
    resolve_labels,
    written_labels,
)
from neox_lab.errors import CheckpointError, ConfigError, nearest
from neox_lab.files import StrPath, read_json, write_text
from neox_lab.hub import HubOptions, PathOrId, find_file, refuse_revision, written
from neox_lab.other_names import CONFIG, ours

ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
)
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
ATTENTION_PATHS = ("sdpa", "eager")

_log = logging.getLogger("neox_lab")

_SIZE = whole(above=0)
_SHARE = number(least=0, most=1)
_NOT_NEGATIVE = number(least=0, below=math.inf)
_NO = Kind[bool]("False, for GPT-NeoX is a decoder", lambda value: value is False)
_ATTENTION = or_none(one_of(*ATTENTION_PATHS))
_TOKEN_ID = whole()._replace(words="a token id")
_TOKEN_IDS = Kind[int | list[int]](
    "a token id, a list of token ids",
    lambda value: all(map(_TOKEN_ID.accepts, value if isinstance(value, list) else [value])),
)

# Settings of text generation that older files keep among the model's.
GENERATION_PARAMETERS = frozenset(
    """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length max_new_tokens min_length
    min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
    num_beam_groups num_beams num_return_sequences output_scores penalty_alpha
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
    """.split()
)

# The order of transformers 4, for calls without names.
_POSITIONAL = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "rotary_pct", "rotary_emb_base", "attention_dropout"),
    *("hidden_dropout", "classifier_dropout", "max_position_embeddings", "initializer_range"),
    *("layer_norm_eps", "use_cache", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
    *("use_parallel_residual", "rope_scaling", "attention_bias"),
)
# Names of other families for settings of ours. Code for any model sets them on every one.
_FOREIGN_WORDS = {"layer_norm_epsilon": "layer_norm_eps"}

# Left out of saved files while they say nothing.
_SILENT_DEFAULTS = (
    *("output_hidden_states", "output_attentions", "return_dict", "problem_type"),
    *("is_encoder_decoder", "chunk_size_feed_forward"),
    *("architectures", "transformers_version", "id2label", "label2id", *DTYPE_NAMES),
)
_SAVED_VIEWS = (
    *("rope_parameters", "rotary_pct", "rotary_emb_base", "rope_scaling", "id2label", "label2id"),
)
# Second names, computed from the one that is stored.
_VIEWS: dict[str, Callable[[GPTNeoXConfig], object]] = {
    "rotary_pct": lambda config: config.rope_parameters["partial_rotary_factor"],
    "partial_rotary_factor": lambda config: config.rope_parameters["partial_rotary_factor"],
    "rotary_emb_base": lambda config: config.rope_parameters["rope_theta"],
    "rope_theta": lambda config: config.rope_parameters["rope_theta"],
    "rope_scaling": lambda config: rope_scaling(config.rope_parameters),
    "label2id": lambda config: written_labels(config.id2label, config._label2id),
    "num_labels": lambda config: len(config.id2label),
    "torch_dtype": lambda config: config.dtype,
    "use_return_dict": lambda config: config.return_dict,
}


class GPTNeoXConfig:
    """Sizes and switches of one GPT-NeoX model, with the names and defaults of Hugging Face.

    ``GPTNeoXConfig(hidden_size=512, num_attention_heads=8, ...)``; positional arguments follow
    the order of transformers 4. ``rope_parameters`` is a full dict (``rope_type``,
    ``rope_theta``, ``partial_rotary_factor``, and what the type needs); ``rotary_pct``,
    ``rotary_emb_base`` and ``rope_scaling`` are read from it and set it. ``rope_scaling``,
    ``label2id`` and ``num_labels`` are computed when read: assign to them to change them.

    Values are checked one by one when they are set, and together when a configuration is made,
    updated or saved. Unknown names are kept and saved again, unless they look like a misspelt
    field. Settings of text generation are kept apart, in ``generation_defaults``.

    Args:
        args: values in the order of transformers 4, from ``vocab_size`` on.
        kwargs: values by name.

    Raises:
        ConfigError: a value is wrong, two spellings disagree, or a name looks misspelt.
        TypeError: positional arguments are too many, or given by name as well.
    """

    model_type: ClassVar[str] = "gpt_neox"
    # What code for any model of Hugging Face's library asks of a configuration:
    sub_configs: ClassVar[dict[str, type]] = {}
    attribute_map: ClassVar[dict[str, str]] = {}
    base_config_key: ClassVar[str] = ""
    base_model_tp_plan: ClassVar[None] = None
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: Annotated[int, _SIZE] = 50432
    hidden_size: Annotated[int, _SIZE] = 6144
    num_hidden_layers: Annotated[int, _SIZE] = 44
    num_attention_heads: Annotated[int, _SIZE] = 64
    intermediate_size: Annotated[int, _SIZE] = 24576
    hidden_act: Annotated[str, one_of(*ACTIVATIONS)] = "gelu"
    attention_dropout: Annotated[float, _SHARE] = 0.0
    hidden_dropout: Annotated[float, _SHARE] = 0.0
    classifier_dropout: Annotated[float, _SHARE] = 0.1
    max_position_embeddings: Annotated[int, _SIZE] = 2048
    initializer_range: Annotated[float, _NOT_NEGATIVE] = 0.02
    layer_norm_eps: Annotated[float, _NOT_NEGATIVE] = 1e-5
    use_cache: Annotated[bool, SWITCH] = True
    bos_token_id: Annotated[int | None, or_none(_TOKEN_ID)] = 0
    eos_token_id: Annotated[int | list[int] | None, or_none(_TOKEN_IDS)] = 2
    pad_token_id: Annotated[int | None, or_none(_TOKEN_ID)] = None
    tie_word_embeddings: Annotated[bool, SWITCH] = False
    use_parallel_residual: Annotated[bool, SWITCH] = True
    attention_bias: Annotated[bool, SWITCH] = True
    is_decoder: Annotated[bool, SWITCH] = False
    is_encoder_decoder: Annotated[bool, _NO] = False
    chunk_size_feed_forward: Annotated[int, whole()] = 0
    output_hidden_states: Annotated[bool, SWITCH] = False
    output_attentions: Annotated[bool, SWITCH] = False
    return_dict: Annotated[bool, SWITCH] = True
    problem_type: Annotated[str | None, or_none(one_of(*PROBLEM_TYPES))] = None
    architectures: Annotated[list[str] | None, or_none(list_of(TEXT, "strings"))] = None
    transformers_version: Annotated[str | None, or_none(TEXT)] = None

    # Stored, but resolved from several names:
    rope_parameters: dict[str, Any]
    id2label: dict[int, str]
    dtype: torch.dtype | None
    name_or_path: str
    _attn_implementation: str | None
    _label2id: Mapping[str, object]
    generation_defaults: dict[str, Any]
    # Views of these:
    rotary_pct: float
    rotary_emb_base: float
    rope_scaling: dict[str, Any] | None
    label2id: dict[str, int]
    num_labels: int
    torch_dtype: torch.dtype | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(_POSITIONAL):
            raise TypeError(f"GPTNeoXConfig takes at most {len(_POSITIONAL)} positional arguments.")
        given = dict(zip(_POSITIONAL, args, strict=False))
        if twice := given.keys() & kwargs.keys():
            raise TypeError(f"GPTNeoXConfig got {', '.join(sorted(twice))} twice.")
        self.__dict__.update(
            {name: default for name, (default, _) in _FIELDS.items()},
            rope_parameters=dict(DEFAULT_ROPE),
            id2label={0: "LABEL_0", 1: "LABEL_1"},
            dtype=None,
            name_or_path="",
            _attn_implementation=None,
            _label2id={},
            generation_defaults={},
            _foreign={},
        )
        self.update(given | kwargs)

    @property
    def head_size(self) -> int:
        """Numbers per attention head, ``d_head``.

        Raises:
            ConfigError: the heads do not divide ``hidden_size`` evenly.
        """
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}: every head needs the same whole number of dimensions."
            )
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_ndims(self) -> int:
        """Numbers per head that the rotary embedding turns: whole pairs, rounded up.

        Raises:
            ConfigError: a head has not as many.
        """
        ndims = 2 * math.ceil(int(self.head_size * self.rotary_pct) / 2)
        if ndims > self.head_size:
            raise ConfigError(
                f"rotary_pct={self.rotary_pct} of head size {self.head_size} is {ndims} "
                "dimensions, for they are turned in pairs. Choose a smaller rotary_pct, or an "
                "even head size."
            )
        return ndims

    def validate(self) -> None:
        """Check the values against each other.

        Raises:
            ConfigError: they contradict each other.
        """
        check_rope(self.rope_parameters)
        rounded_down = int(self.head_size * self.rotary_pct) if self.rotary_ndims else 0
        check_pairs(self.rope_parameters, rounded_down)
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "problem_type='single_label_classification' needs num_labels of at least 2, but it "
                "is 1. Use num_labels=2 for a yes/no question, or problem_type='regression'."
            )

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set several values at once, checked together: all of them are set, or none.

        Raises:
            ConfigError: a value is wrong, or they contradict each other.
        """
        for name in config_dict:
            self._refuse_mistaken(name)
        self._apply(config_dict)

    def update_from_string(self, update_str: str) -> None:
        """Set numbers, switches and strings: ``"hidden_size=128,use_cache=false"``.

        Raises:
            ConfigError: the text or a value is wrong, or they contradict each other.
        """
        self.update(parse_updates(update_str, {name: getattr(self, name) for name in self}))

    def _apply(self, values: Mapping[str, Any]) -> None:
        candidate = copy.deepcopy(self)
        candidate._assign({name: plain(value) for name, value in values.items()})
        candidate.validate()
        self.__dict__.update(candidate.__dict__)

    def _assign(self, values: dict[str, Any]) -> None:
        """Store each value where it belongs, after checking it by itself."""
        state: dict[str, Any] = self.__dict__
        try:
            values = copy.deepcopy(values)
        except RecursionError:
            raise ConfigError("A value is nested too deeply for a setting.") from None
        check_model_type(values.pop("model_type", self.model_type), self.model_type)
        rope = {name: values.pop(name) for name in ROPE_NAMES if name in values}
        labels = {name: values.pop(name) for name in LABEL_NAMES if name in values}
        dtypes = {name: values.pop(name) for name in DTYPE_NAMES if name in values}
        for name, value in values.items():
            if name in _FIELDS:
                state[name] = check(name, value, _FIELDS[name][1], ConfigError)
            elif name in ("name_or_path", "_name_or_path"):
                state["name_or_path"] = str(value or "")
            elif name in ("attn_implementation", "_attn_implementation"):
                state["_attn_implementation"] = check(name, value, _ATTENTION, ConfigError)
            elif name == "generation_defaults":
                state[name] = dict(value)
            else:
                apart = name in GENERATION_PARAMETERS
                state["generation_defaults" if apart else "_foreign"][name] = value
        if rope:
            current, positions = self.rope_parameters, self.max_position_embeddings
            state["rope_parameters"] = resolve_rope(current, rope, positions)
        if labels:
            state["id2label"] = resolve_labels(self.id2label, labels)
            state["_label2id"] = labels.get("label2id") or {}
        if dtypes:
            state["dtype"] = resolve_dtype(dtypes)

    def _refuse_mistaken(self, name: str) -> None:
        """Refuse to set what is computed, and what looks like a misspelt field."""
        if name in _KNOWN or name in self._foreign:
            return
        if name in _FOREIGN_WORDS:
            _log.warning("%s has no meaning here: see %s.", name, _FOREIGN_WORDS[name])
            return
        if hasattr(type(self), name):
            raise ConfigError(f"{name} cannot be set: the class computes it from the settings.")
        if close := difflib.get_close_matches(name, sorted(_KNOWN), n=1, cutoff=0.85):
            raise ConfigError(f"There is no setting {name!r}. Did you mean {close[0]!r}?")

    def __setattr__(self, name: str, value: object) -> None:
        self._refuse_mistaken(name)
        # Sizes may disagree until the last of them is set; what is given as a whole may not.
        (self._apply if name in ROPE_NAMES else self._assign)({name: value})

    def __getattr__(self, name: str) -> Any:
        if name in _VIEWS:
            return _VIEWS[name](self)
        foreign = self.__dict__.get("_foreign", {})
        if name in foreign:
            return foreign[name]
        hint = "" if name.startswith("_") else ours(name, CONFIG) or nearest(name, dir(self))
        if name in GENERATION_PARAMETERS:
            hint = " It is a setting of text generation: see generation_defaults."
        raise AttributeError(f"GPTNeoXConfig has no attribute {name!r}.{hint}")

    def __delattr__(self, name: str) -> None:
        if name not in self._foreign:
            raise AttributeError(f"{name} cannot be deleted: it is no setting of your own.")
        del self._foreign[name]

    def __iter__(self) -> Iterator[str]:
        """Names of the settings, as iterating over a dictionary gives them."""
        yield from (*_FIELDS, "rope_parameters", "id2label", "label2id", "dtype", "name_or_path")
        yield from self._foreign

    def get(self, name: str, default: object = None) -> Any:
        """The setting ``name``, or ``default`` if there is none."""
        return getattr(self, name, default)

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> GPTNeoXConfig:
        """This configuration, all of which is about text.

        Args:
            decoder: no part of its own.
            encoder: no part of its own.
        """
        return self

    def standardize_rope_params(self) -> None:
        """Check ``rope_parameters`` after they were edited in place, and fill in what they lack.

        Every model that is made does this.

        Raises:
            ConfigError: they are wrong.
        """
        rope = self.rope_parameters
        rope.setdefault("rope_theta", DEFAULT_ROPE["rope_theta"])
        rope.setdefault("partial_rotary_factor", 1.0)  # as in Hugging Face's library
        rope.update(resolve_rope(rope, {"rope_parameters": rope}, self.max_position_embeddings))
        check_rope(rope)

    def __dir__(self) -> list[str]:
        private = {"_foreign", "_label2id", "_attn_implementation"}
        return sorted({*super().__dir__(), *_VIEWS, *self._foreign} - private)

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathOrId,
        *,
        return_unused_kwargs: Literal[False] = False,
        **kwargs: Any,
    ) -> GPTNeoXConfig: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathOrId,
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[GPTNeoXConfig, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: PathOrId,
        *,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> GPTNeoXConfig | tuple[GPTNeoXConfig, dict[str, Any]]:
        """Read a ``config.json`` from a file, a directory, or a model on the hub.

        Args:
            pretrained_model_name_or_path: where it is.
            return_unused_kwargs: also return the keyword arguments that are neither options nor
                settings.
            **kwargs: the options of ``neox_lab.hub.HubOptions`` (``revision``, ``subfolder``,
                ``cache_dir``, ...) and values that replace those of the file (``dtype="auto"``
                keeps the file's).

        Returns:
            The configuration; with ``return_unused_kwargs``, it and the rest of ``kwargs``.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
            ConfigError: it describes no GPT-NeoX, or a keyword argument is unknown.
        """
        source = pretrained_model_name_or_path
        values, kwargs = cls.get_config_dict(source, **kwargs)
        unused = {name: kwargs[name] for name in kwargs.keys() - _KNOWN - values.keys()}
        if unused and not return_unused_kwargs:
            name = min(unused)
            raise ConfigError(f"The configuration has no setting {name!r}.{nearest(name, _KNOWN)}")
        overrides = {name: kwargs[name] for name in kwargs if name not in unused}
        config = cls.from_dict(values, **{"name_or_path": source, **overrides})
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: PathOrId, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a ``config.json`` says, unchecked.

        Args:
            pretrained_model_name_or_path: a file, a directory, or a model on the hub.
            **kwargs: the options of ``neox_lab.hub.HubOptions``, and anything else.

        Returns:
            The contents, and what of ``kwargs`` is no such option.

        Raises:
            CheckpointError: there is no such file, or it is not JSON.
        """
        options = HubOptions.take(kwargs)
        path = Path(written(pretrained_model_name_or_path))
        if not path.is_file():
            found = find_file(pretrained_model_name_or_path, "config.json", options)
            assert found is not None  # find_file raises where a required file is missing
            path = found
        else:
            refuse_revision(path, options)
        return read_json(path), kwargs

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> GPTNeoXConfig:
        """A configuration from the contents of a ``config.json``; ``overrides`` replace values.

        Args:
            config_dict: names and values; unknown names are kept.
            overrides: replace values.

        Raises:
            ConfigError: they describe no GPT-NeoX.
        """
        config = cls()
        config._apply(config_dict)
        for name in DTYPE_NAMES:
            if overrides.get(name) == "auto":
                del overrides[name]
        config._apply(overrides)
        return config

    @classmethod
    def from_json_file(cls, json_file: StrPath) -> GPTNeoXConfig:
        """A configuration from one JSON file.

        Raises:
            CheckpointError: it cannot be read.
            ConfigError: it describes no GPT-NeoX.
        """
        return cls.from_dict(read_json(json_file))

    def to_dict(self) -> dict[str, Any]:
        """Every setting, in both spellings of the rotary embedding and of the dtype.

        Lists, dicts, numbers and strings only; foreign keys and generation settings stand where
        they stood in the file. ``from_dict`` of the result equals this configuration.
        """
        settings = {name: getattr(self, name) for name in (*_FIELDS, *_SAVED_VIEWS)}
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        settings |= {"model_type": self.model_type, "dtype": dtype, "torch_dtype": dtype}
        return copy.deepcopy({**self._foreign, **self.generation_defaults, **settings})

    def to_diff_dict(self) -> dict[str, Any]:
        """``to_dict`` without the entries that say nothing; this is what files hold."""
        default = type(self)().to_dict()
        return {
            name: value
            for name, value in self.to_dict().items()
            if name not in _SILENT_DEFAULTS or value != default[name]
        }

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of ``config.json``: sorted keys, indented by 2; all keys if not ``use_diff``."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: StrPath, use_diff: bool = True) -> None:
        """Validate, then write ``to_json_string``; a reader never sees half a file.

        Args:
            json_file_path: where to.
            use_diff: leave out what is as in a new configuration.

        Raises:
            ConfigError: the values contradict each other.
            OSError: the file cannot be written.
        """
        self.validate()
        write_text(json_file_path, self.to_json_string(use_diff))

    def save_pretrained(self, save_directory: StrPath) -> None:
        """Write ``config.json`` into a directory, which is made if need be.

        Raises:
            CheckpointError: ``save_directory`` is a file.
            ConfigError: the values contradict each other.
            OSError: the file cannot be written.
        """
        directory = Path(save_directory)
        if directory.is_file():
            raise CheckpointError(f"{str(directory)!r} is a file: give a directory to save into.")
        directory.mkdir(parents=True, exist_ok=True)
        self.to_json_file(directory / "config.json")

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same model; where they were loaded from does not matter."""
        return isinstance(other, GPTNeoXConfig) and self.to_dict() == other.to_dict()

    def __copy__(self) -> GPTNeoXConfig:
        return copy.deepcopy(self)  # a shallow copy would share rope_parameters

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string().rstrip()}"


# The table of plain settings, name -> (default, check), read off the class above.
_FIELDS: dict[str, tuple[object, Kind[object]]] = {
    name: (getattr(GPTNeoXConfig, name), hint.__metadata__[0])
    for name, hint in get_type_hints(GPTNeoXConfig, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
_KNOWN = frozenset(
    {*_FIELDS, *ROPE_NAMES, *LABEL_NAMES, *DTYPE_NAMES, *GENERATION_PARAMETERS}
    | {"model_type", "name_or_path", "_name_or_path", "generation_defaults"}
    | {"attn_implementation", "_attn_implementation"}
)
