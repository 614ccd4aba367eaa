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
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_type_hints, overload

import torch

from neox_lab.errors import CheckpointError, ConfigError, nearest
from neox_lab.files import write_text

Source = str | os.PathLike[str]

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


class Check(NamedTuple):
    """What a value must be, in words and as a test; ``choices`` are offered when it is not."""

    description: str
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(accepts(item) for item in value)


def _above_zero(value: Any) -> bool:
    return _number(value) and value > 0


def _one_of(*choices: str | None) -> Check:
    names = tuple(choice for choice in choices if choice is not None)
    return Check(f"one of {', '.join(map(repr, choices))}", lambda value: value in choices, names)


_SIZE = Check("a whole number above 0", lambda value: _whole(value) and value > 0)
_FRACTION = Check("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
_NOT_NEGATIVE = Check("a number of at least 0", lambda value: _number(value) and value >= 0)
_ABOVE_ZERO = Check("a number above 0", _above_zero)
_ABOVE_ONE = Check("a number above 1", lambda value: _number(value) and value > 1)
_AT_LEAST_ONE = Check("a number of at least 1", lambda value: _number(value) and value >= 1)
_NUMBERS = Check("a list of numbers above 0", _list_of(_above_zero))
_SWITCH = Check("True or False", lambda value: isinstance(value, bool))
_TOKEN = Check("a token id or None", lambda value: value is None or _whole(value))
_TOKENS = Check(
    "a token id, a list of token ids, or None",
    lambda value: value is None or _whole(value) or _list_of(_whole)(value),
)
_TEXT = Check("a string or None", lambda value: value is None or isinstance(value, str))
_TEXTS = Check(
    "a list of strings or None",
    lambda value: value is None or _list_of(lambda item: isinstance(item, str))(value),
)

# Each scaling type with the parameters it must and may have. "original" is the length that the
# model was trained on; it is filled in from max_position_embeddings.
_ORIGINAL = "original_max_position_embeddings"
_YARN_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
_ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), (_ORIGINAL,)),
    "yarn": (("factor", _ORIGINAL), (*_YARN_OPTIONAL, "truncate")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
    "longrope": (("short_factor", "long_factor", _ORIGINAL), ("factor", "attention_factor")),
}
_ROPE_CHECKS: dict[str, Check] = {
    "factor": _AT_LEAST_ONE,
    _ORIGINAL: _SIZE,
    "attention_factor": _NOT_NEGATIVE,
    "beta_fast": _ABOVE_ZERO,
    "beta_slow": _ABOVE_ZERO,
    "mscale": _NOT_NEGATIVE,
    "mscale_all_dim": _NOT_NEGATIVE,
    "truncate": _SWITCH,
    "low_freq_factor": _ABOVE_ZERO,
    "high_freq_factor": _ABOVE_ZERO,
    "short_factor": _NUMBERS,
    "long_factor": _NUMBERS,
}
# Arguments beside the field itself -> the entry of rope_parameters that they name.
_ROPE_ALIASES = {
    "rotary_pct": "partial_rotary_factor",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_emb_base": "rope_theta",
    "rope_theta": "rope_theta",
    _ORIGINAL: _ORIGINAL,
}
_ROPE_NAMES = ("rope_scaling", "rope_parameters", *_ROPE_ALIASES)
_LABEL_NAMES = ("num_labels", "id2label", "label2id")
_DTYPE_NAMES = ("dtype", "torch_dtype")

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
# Left out of saved files while they say nothing.
_SILENT_DEFAULTS = (
    *("output_hidden_states", "output_attentions", "return_dict", "problem_type"),
    *("architectures", "transformers_version", "id2label", "label2id", *_DTYPE_NAMES),
)
_SAVED_VIEWS = (
    *("rope_parameters", "rotary_pct", "rotary_emb_base", "rope_scaling", "id2label", "label2id"),
)
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
_OTHER_MODELS = {
    "gpt_neox_japanese": "ABEJA's Japanese GPT-NeoX, which has another attention and MLP",
    "gpt_neo": "GPT-Neo, EleutherAI's earlier model with learned positions and local attention",
    "gptj": "GPT-J, which pairs neighbouring numbers in its rotary embedding and has no biases",
    "gpt2": "GPT-2, which has learned positions",
    "llama": "Llama, which has RMS norms and a gated MLP",
}


def _check(name: str, value: Any, check: Check) -> None:
    if not check.accepts(value):
        close = nearest(value, check.choices) if isinstance(value, str) else ""
        raise ConfigError(f"{name} must be {check.description}, but it is {value!r}.{close}")


def _merge(entries: Iterable[tuple[str, str, Any]], what: str) -> dict[str, Any]:
    """Entries (as written, key, value) as one dict; refuse two values for one key."""
    merged: dict[str, Any] = {}
    written: dict[str, str] = {}
    for spelling, key, value in entries:
        if key in merged and merged[key] != value:
            raise ConfigError(
                f"{written[key]}={merged[key]!r} contradicts {spelling}={value!r}: both name "
                f"{what}. Give one of them, or make them agree."
            )
        merged[key], written[key] = value, spelling
    return merged


def _resolve_rope(
    current: Mapping[str, Any], given: Mapping[str, Any], max_positions: int
) -> dict[str, Any]:
    """The full ``rope_parameters`` after the arguments in ``given`` are applied to ``current``.

    A dict argument replaces the scaling, and None in its place turns it off; the current base
    and fraction stay where they are not named. For numbers None means "not given".
    """
    entries: list[tuple[str, str, Any]] = []
    for name in ("rope_scaling", "rope_parameters"):
        parameters = given.get(name) or {}
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"{name} must be a dict or None, but it is {parameters!r}.")
        for key, value in parameters.items():
            if value is not None:
                entry = "rope_type" if key == "type" else key
                entries.append((f"{name}[{key!r}]", entry, value))
    replaces = bool(entries) or "rope_scaling" in given or "rope_parameters" in given
    for name, key in _ROPE_ALIASES.items():
        if given.get(name) is not None:
            entries.append((name, key, given[name]))

    kept = ("rope_theta", "partial_rotary_factor") if replaces else tuple(current)
    result = {"rope_type": "default", **{key: current[key] for key in kept}}
    result |= _merge(entries, "the same rotary parameter")
    if _ORIGINAL in _rope_entries(result["rope_type"])[0]:
        result.setdefault(_ORIGINAL, max_positions)
    return result


def _rope_entries(kind: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The required and the optional parameters of a rope type; ConfigError if there is none."""
    _check("rope_type", kind, _one_of(*_ROPE_TYPES))
    return _ROPE_TYPES[kind]


def _check_rope(rope: Mapping[str, Any]) -> None:
    """Refuse unknown scaling types, and missing, superfluous or impossible parameters."""
    _check("rotary_emb_base (or rope_theta)", rope["rope_theta"], _ABOVE_ONE)
    _check("rotary_pct (or partial_rotary_factor)", rope["partial_rotary_factor"], _FRACTION)
    kind = rope["rope_type"]
    required, optional = _rope_entries(kind)
    for key in required:
        if key not in rope:
            raise ConfigError(f"rope type {kind!r} needs {key!r} (it needs {', '.join(required)}).")
    for key in rope.keys() - _DEFAULT_ROPE.keys():
        if key not in required + optional:
            has = ", ".join(required + optional) or "none: name a rope_type that does"
            close = nearest(str(key), required + optional)
            raise ConfigError(f"rope type {kind!r} has no parameter {key!r} (it has {has}).{close}")
        _check(f"{key} of rope type {kind!r}", rope[key], _ROPE_CHECKS[key])
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ConfigError("high_freq_factor of rope type 'llama3' must exceed low_freq_factor.")


def _resolve_labels(current: dict[int, str], given: Mapping[str, Any]) -> dict[int, str]:
    """``id2label`` after ``num_labels``, ``id2label`` and ``label2id`` in any combination."""
    given = {name: value for name, value in given.items() if value is not None}
    maps = []
    try:
        if "id2label" in given:
            maps.append({int(index): str(label) for index, label in given["id2label"].items()})
        if "label2id" in given:
            maps.append({int(index): str(label) for label, index in given["label2id"].items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"id2label maps whole numbers to names, label2id back: {error}") from None
    if len(maps) == 2 and maps[0] != maps[1]:
        raise ConfigError(f"id2label and label2id contradict each other: {maps[0]} and {maps[1]}.")
    labels = maps[0] if maps else current
    if "num_labels" in given:
        _check("num_labels", given["num_labels"], _SIZE)
        if len(labels) != given["num_labels"]:
            if maps:
                raise ConfigError(f"num_labels={given['num_labels']}, but the labels are {labels}.")
            labels = {index: f"LABEL_{index}" for index in range(given["num_labels"])}
    names = set(labels.values())
    if not labels or set(labels) != set(range(len(labels))) or len(names) != len(labels):
        raise ConfigError(f"id2label must give ids 0, 1, 2, ... a name each, but it is {labels}.")
    return labels


def _parse_dtype(value: Any) -> torch.dtype | None:
    """``torch.float16`` from itself, ``"float16"`` or ``"torch.float16"``; None from "auto"."""
    if value is None or value == "auto":
        return None
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    close = nearest(str(value), ("float16", "bfloat16", "float32", "float64"))
    raise ConfigError(f"dtype must be a floating-point torch dtype, but it is {value!r}.{close}")


def _rope_scaling(config: GPTNeoXConfig) -> dict[str, Any] | None:
    """The scaling as transformers 4 writes it: None, or type and parameters without the base.

    4.33 to 4.42 insist on exactly ``type`` and a float ``factor``, which later ones read too.
    """
    rope = dict(config.rope_parameters)
    kind = rope.pop("rope_type")
    del rope["rope_theta"], rope["partial_rotary_factor"]
    if kind == "default":
        return None
    if kind in ("linear", "dynamic"):
        return {"type": kind, **rope, "factor": float(rope["factor"])}
    return {"rope_type": kind, **rope}


def _check_model_type(model_type: Any) -> None:
    if model_type != GPTNeoXConfig.model_type:
        what = _OTHER_MODELS.get(str(model_type), "another architecture")
        raise ConfigError(
            f"This configuration is of model_type {model_type!r}: {what}. neox_lab computes "
            "'gpt_neox' (GPT-NeoX, Pythia and the models trained in their shape) and no other."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{str(path)!r} holds no configuration: a JSON object is expected.")
    return values


# Second names, computed from the one that is stored.
_VIEWS: dict[str, Callable[[GPTNeoXConfig], Any]] = {
    "rotary_pct": lambda config: config.rope_parameters["partial_rotary_factor"],
    "partial_rotary_factor": lambda config: config.rope_parameters["partial_rotary_factor"],
    "rotary_emb_base": lambda config: config.rope_parameters["rope_theta"],
    "rope_theta": lambda config: config.rope_parameters["rope_theta"],
    "rope_scaling": _rope_scaling,
    "label2id": lambda config: {label: index for index, label in config.id2label.items()},
    "num_labels": lambda config: len(config.id2label),
    "torch_dtype": lambda config: config.dtype,
}


class GPTNeoXConfig:
    """Sizes and switches of one GPT-NeoX model, with the names and defaults of Hugging Face.

    ``GPTNeoXConfig(hidden_size=512, num_attention_heads=8, ...)``; positional arguments follow
    the order of transformers 4. ``rope_parameters`` is a full dict (``rope_type``,
    ``rope_theta``, ``partial_rotary_factor``, and what the type needs); ``rotary_pct``,
    ``rotary_emb_base`` and ``rope_scaling`` are read from it and set it. ``rope_scaling``,
    ``label2id`` and ``num_labels`` are computed when read: assign to them to change them.

    Values are checked one by one when they are set, and together when a configuration is made,
    updated or saved. Raises ConfigError for a wrong value, for two spellings that disagree, and
    for a name that looks like a misspelt field. Other unknown names are kept and saved again.
    Settings of text generation are kept apart, in ``generation_defaults``.
    """

    model_type: ClassVar[str] = "gpt_neox"

    vocab_size: Annotated[int, _SIZE] = 50432
    hidden_size: Annotated[int, _SIZE] = 6144
    num_hidden_layers: Annotated[int, _SIZE] = 44
    num_attention_heads: Annotated[int, _SIZE] = 64
    intermediate_size: Annotated[int, _SIZE] = 24576
    hidden_act: Annotated[str, _one_of(*ACTIVATIONS)] = "gelu"
    attention_dropout: Annotated[float, _FRACTION] = 0.0
    hidden_dropout: Annotated[float, _FRACTION] = 0.0
    classifier_dropout: Annotated[float, _FRACTION] = 0.1
    max_position_embeddings: Annotated[int, _SIZE] = 2048
    initializer_range: Annotated[float, _NOT_NEGATIVE] = 0.02
    layer_norm_eps: Annotated[float, _NOT_NEGATIVE] = 1e-5
    use_cache: Annotated[bool, _SWITCH] = True
    bos_token_id: Annotated[int | None, _TOKEN] = 0
    eos_token_id: Annotated[int | list[int] | None, _TOKENS] = 2
    pad_token_id: Annotated[int | None, _TOKEN] = None
    tie_word_embeddings: Annotated[bool, _SWITCH] = False
    use_parallel_residual: Annotated[bool, _SWITCH] = True
    attention_bias: Annotated[bool, _SWITCH] = True
    is_decoder: Annotated[bool, _SWITCH] = False
    output_hidden_states: Annotated[bool, _SWITCH] = False
    output_attentions: Annotated[bool, _SWITCH] = False
    return_dict: Annotated[bool, _SWITCH] = True
    problem_type: Annotated[str | None, _one_of(*PROBLEM_TYPES, None)] = None
    architectures: Annotated[list[str] | None, _TEXTS] = None
    transformers_version: Annotated[str | None, _TEXT] = None

    # Stored, but resolved from several names:
    rope_parameters: dict[str, Any]
    id2label: dict[int, str]
    dtype: torch.dtype | None
    name_or_path: str
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
            rope_parameters=dict(_DEFAULT_ROPE),
            id2label={0: "LABEL_0", 1: "LABEL_1"},
            dtype=None,
            name_or_path="",
            generation_defaults={},
            _foreign={},
        )
        self.update(given | kwargs)

    @property
    def head_size(self) -> int:
        """Numbers per attention head, ``d_head``; ConfigError if the heads do not divide evenly."""
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}: every head needs the same whole number of dimensions."
            )
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_ndims(self) -> int:
        """Numbers per head that the rotary embedding turns; ConfigError if they form no pairs."""
        ndims = int(self.head_size * self.rotary_pct)
        if ndims % 2 or (ndims == 0 and self.rotary_pct > 0):
            raise ConfigError(
                f"rotary_pct={self.rotary_pct} of head size {self.head_size} is {ndims} "
                "dimensions, but they are turned in pairs. Choose rotary_pct so that the product "
                "is an even number above 0 (or rotary_pct=0 for a model without positions)."
            )
        return ndims

    def validate(self) -> None:
        """Check the values against each other; raises ConfigError."""
        rope = self.rope_parameters
        _check_rope(rope)
        pairs = self.rotary_ndims // 2
        if rope["rope_type"] == "dynamic" and pairs < 2:
            raise ConfigError("rope type 'dynamic' needs at least 4 rotary dimensions per head.")
        for key in ("short_factor", "long_factor"):
            if key in rope and len(rope[key]) != pairs:
                raise ConfigError(
                    f"{key} has {len(rope[key])} numbers, but the rotary embedding has {pairs} "
                    f"pairs ({2 * pairs} rotary dimensions per head): give one number for each."
                )
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "problem_type='single_label_classification' needs num_labels of at least 2, but it "
                "is 1. Use num_labels=2 for a yes/no question, or problem_type='regression'."
            )

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set several values at once, checked together: all of them are set, or none."""
        for name in config_dict:
            self._refuse_mistaken(name)
        self._apply(config_dict)

    def _apply(self, values: Mapping[str, Any]) -> None:
        candidate = copy.deepcopy(self)
        candidate._assign(dict(values))
        candidate.validate()
        self.__dict__.update(candidate.__dict__)

    def _assign(self, values: dict[str, Any]) -> None:
        """Store each value where it belongs, after checking it by itself."""
        state: dict[str, Any] = self.__dict__
        values = copy.deepcopy(values)
        _check_model_type(values.pop("model_type", self.model_type))
        rope = {name: values.pop(name) for name in _ROPE_NAMES if name in values}
        labels = {name: values.pop(name) for name in _LABEL_NAMES if name in values}
        dtypes = [(name, "dtype", values.pop(name)) for name in _DTYPE_NAMES if name in values]
        for name, value in values.items():
            if name in _FIELDS:
                _check(name, value, _FIELDS[name][1])
                state[name] = value
            elif name in ("name_or_path", "_name_or_path"):
                state["name_or_path"] = str(value or "")
            elif name == "generation_defaults":
                state[name] = dict(value)
            else:
                apart = name in GENERATION_PARAMETERS
                state["generation_defaults" if apart else "_foreign"][name] = value
        if rope:
            current, positions = self.rope_parameters, self.max_position_embeddings
            state["rope_parameters"] = _resolve_rope(current, rope, positions)
        if labels:
            state["id2label"] = _resolve_labels(self.id2label, labels)
        if dtypes:
            parsed = [(name, key, _parse_dtype(value)) for name, key, value in dtypes]
            named = [entry for entry in parsed if entry[2] is not None]
            state["dtype"] = _merge(named, "the dtype of the weights").get("dtype")

    def _refuse_mistaken(self, name: str) -> None:
        """Refuse to set what is computed, and what looks like a misspelt field."""
        if name in _KNOWN or name in self._foreign:
            return
        if hasattr(type(self), name):
            raise ConfigError(f"{name} cannot be set: the class computes it from the settings.")
        if close := difflib.get_close_matches(name, sorted(_KNOWN), n=1, cutoff=0.85):
            raise ConfigError(f"There is no setting {name!r}. Did you mean {close[0]!r}?")

    def __setattr__(self, name: str, value: Any) -> None:
        self._refuse_mistaken(name)
        # Sizes may disagree until the last of them is set; what is given as a whole may not.
        (self._apply if name in _ROPE_NAMES else self._assign)({name: value})

    def __getattr__(self, name: str) -> Any:
        if name in _VIEWS:
            return _VIEWS[name](self)
        foreign = self.__dict__.get("_foreign", {})
        if name in foreign:
            return foreign[name]
        hint = "" if name.startswith("_") else nearest(name, dir(self))
        if name in GENERATION_PARAMETERS:
            hint = " It is a setting of text generation: see generation_defaults."
        raise AttributeError(f"GPTNeoXConfig has no attribute {name!r}.{hint}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_VIEWS, *self._foreign} - {"_foreign"})

    @overload
    @classmethod
    def from_pretrained(
        cls, source: Source, *, return_unused_kwargs: Literal[False] = False, **kwargs: Any
    ) -> GPTNeoXConfig: ...

    @overload
    @classmethod
    def from_pretrained(
        cls, source: Source, *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[GPTNeoXConfig, dict[str, Any]]: ...

    @classmethod
    def from_pretrained(
        cls, source: Source, *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> GPTNeoXConfig | tuple[GPTNeoXConfig, dict[str, Any]]:
        """Read a ``config.json`` from a file, a directory, or a model on the hub.

        ``kwargs`` are the options of `neox_lab.hub.HubOptions` (``revision``, ``subfolder``,
        ``cache_dir``, ...) and values that replace those of the file (``dtype="auto"`` keeps the
        file's). Other names are returned beside the configuration with
        ``return_unused_kwargs=True`` and are a ConfigError without. Raises CheckpointError when
        there is no such file or it is not JSON, ConfigError when it describes no GPT-NeoX.
        """
        from neox_lab.hub import HubOptions, find_file

        options = HubOptions.take(kwargs)
        path = Path(source) if os.path.isfile(source) else find_file(source, "config.json", options)
        assert path is not None  # find_file raises where a required file is missing
        values = _read_json(path)
        unused = {name: kwargs[name] for name in kwargs.keys() - _KNOWN - values.keys()}
        if unused and not return_unused_kwargs:
            name = min(unused)
            raise ConfigError(f"The configuration has no setting {name!r}.{nearest(name, _KNOWN)}")
        overrides = {name: kwargs[name] for name in kwargs if name not in unused}
        config = cls.from_dict(values, **{"name_or_path": source, **overrides})
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> GPTNeoXConfig:
        """A configuration from the contents of a ``config.json``; ``overrides`` replace values."""
        config = cls()
        config._apply(config_dict)
        for name in _DTYPE_NAMES:
            if overrides.get(name) == "auto":
                del overrides[name]
        config._apply(overrides)
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> GPTNeoXConfig:
        """A configuration from one JSON file; raises CheckpointError if it cannot be read."""
        return cls.from_dict(_read_json(Path(json_file)))

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

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Validate, then write ``to_json_string``; a reader never sees half a file."""
        self.validate()
        write_text(json_file_path, self.to_json_string(use_diff))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into a directory, which is made if need be."""
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
_FIELDS: dict[str, tuple[Any, Check]] = {
    name: (getattr(GPTNeoXConfig, name), hint.__metadata__[0])
    for name, hint in get_type_hints(GPTNeoXConfig, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}
_KNOWN = frozenset(
    {*_FIELDS, *_ROPE_NAMES, *_LABEL_NAMES, *_DTYPE_NAMES, *GENERATION_PARAMETERS}
    | {"model_type", "name_or_path", "_name_or_path", "generation_defaults"}
)
