"""Settings that have several names: labels, the dtype, and what a file says it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch

from neox_lab.checks import check, plain, shown, whole
from neox_lab.errors import ConfigError, nearest

LABEL_NAMES = ("num_labels", "id2label", "label2id")
DTYPE_NAMES = ("dtype", "torch_dtype")
_SWITCHES = {
    **dict.fromkeys(("true", "1", "y", "yes"), True),
    **dict.fromkeys(("false", "0", "n", "no"), False),
}
_NUMBER = whole()
_LABELS = whole(least=1, most=1_000_000)  # a name for each is made; no model has as many

_OTHER_MODELS = {
    "gpt_neox_japanese": "ABEJA's Japanese GPT-NeoX, which has another attention and MLP",
    "gpt_neo": "GPT-Neo, EleutherAI's earlier model with learned positions and local attention",
    "gptj": "GPT-J, which pairs neighbouring numbers in its rotary embedding and has no biases",
    "gpt2": "GPT-2, which has learned positions",
    "llama": "Llama, which has RMS norms and a gated MLP",
}


def merge(entries: Iterable[tuple[str, str, object]], what: str) -> dict[str, object]:
    """Several entries as one dict.

    Args:
        entries: (as written, key, value).
        what: what two entries with one key both name.

    Raises:
        ConfigError: there are two values for one key.
    """
    merged: dict[str, object] = {}
    written: dict[str, str] = {}
    for spelling, key, value in entries:
        if key in merged and merged[key] != value:
            raise ConfigError(
                f"{written[key]}={merged[key]!r} contradicts {spelling}={value!r}: both name "
                f"{what}. Give one of them, or make them agree."
            )
        merged[key], written[key] = value, spelling
    return merged


def resolve_labels(current: dict[int, str], given: Mapping[str, object]) -> dict[int, str]:
    """``id2label`` after ``num_labels``, ``id2label`` and ``label2id`` in any combination.

    Raises:
        ConfigError: they contradict each other, two labels have one id, or ids are not 0, 1, ...
    """
    maps = []
    if given.get("id2label") is not None:
        pairs = _pairs("id2label", given["id2label"])
        maps.append(_by_number("id2label", pairs))
    if given.get("label2id") is not None:
        pairs = _pairs("label2id", given["label2id"])
        maps.append(_by_number("label2id", ((index, label) for label, index in pairs)))
    if len(maps) == 2 and maps[0] != maps[1]:
        raise ConfigError(f"id2label and label2id contradict each other: {maps[0]} and {maps[1]}.")
    labels = maps[0] if maps else current
    if given.get("num_labels") is not None:
        count = check("num_labels", given["num_labels"], _LABELS, ConfigError)
        if len(labels) != count:
            if maps:
                raise ConfigError(f"num_labels={count}, but the labels are {labels}.")
            labels = {index: f"LABEL_{index}" for index in range(count)}
    names = set(labels.values())
    if not labels or set(labels) != set(range(len(labels))) or len(names) != len(labels):
        raise ConfigError(f"id2label must give ids 0, 1, 2, ... a name each, but it is {labels}.")
    return labels


def written_labels(id2label: Mapping[int, str], written: Mapping[str, object]) -> dict[str, Any]:
    """``label2id`` for ``id2label``; its numbers as they were written, where they still fit.

    Args:
        id2label: names by number.
        written: a ``label2id`` as somebody gave it, whose numbers may be text.
    """
    numbers = {label: index for index, label in id2label.items()}
    fits = numbers == {label: _label_id(index) for label, index in written.items()}
    return dict(written) if fits else numbers


def _pairs(name: str, value: object) -> Iterable[tuple[object, object]]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name}={shown(value)}; expected a dict: id2label maps whole numbers to names, "
            "label2id back."
        )
    return value.items()


def _by_number(name: str, pairs: Iterable[tuple[object, object]]) -> dict[int, str]:
    """Labels by their ids."""
    labels: dict[int, str] = {}
    for index, label in pairs:
        number = _label_id(index)
        if number in labels:
            raise ConfigError(
                f"{name} gives the id {number} to {labels[number]!r} and to {str(label)!r}; "
                "expected ids 0, 1, 2, ... a name each."
            )
        labels[number] = str(label)
    return labels


def _label_id(value: object) -> int:
    """The number itself, or as JSON writes it in keys."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        return int(value)
    number = plain(value)
    if _NUMBER.accepts(number):
        return cast(int, number)
    raise ConfigError(
        f"{shown(value)} is no id of a label: id2label maps whole numbers to names, label2id back."
    )


def resolve_dtype(given: Mapping[str, object]) -> torch.dtype | None:
    """The dtype that the arguments in ``given`` name; None for "auto".

    Raises:
        ConfigError: one is no floating-point dtype, or they disagree.
    """
    parsed = [(name, "dtype", _parse_dtype(value)) for name, value in given.items()]
    found = merge([entry for entry in parsed if entry[2] is not None], "the dtype of the weights")
    dtype = found.get("dtype")
    assert dtype is None or isinstance(dtype, torch.dtype)
    return dtype


def _parse_dtype(value: object) -> torch.dtype | None:
    """``torch.float16`` from itself, ``"float16"`` or ``"torch.float16"``; None from "auto"."""
    if value is None or (isinstance(value, str) and value == "auto"):
        return None
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    close = nearest(value, ("float16", "bfloat16", "float32", "float64"))
    raise ConfigError(f"dtype={shown(value)}; expected a floating-point torch dtype.{close}")


def check_model_type(model_type: object, ours: str) -> None:
    """Refuse configurations of other architectures.

    Raises:
        ConfigError: ``model_type`` is not ``ours``.
    """
    if model_type != ours:
        what = _OTHER_MODELS.get(str(model_type), "another architecture")
        raise ConfigError(
            f"This configuration is of model_type {model_type!r}: {what}. neox_lab computes "
            "'gpt_neox' (GPT-NeoX, Pythia and the models trained in their shape) and no other."
        )


def parse_updates(text: str, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings written as ``"hidden_size=128,use_cache=false"``, each as what it is now.

    Args:
        text: names and values.
        settings: the values that they have now.

    Raises:
        ConfigError: there is no such setting, or it is no number, switch or string, or the value
            cannot be read.
    """
    parsed: dict[str, object] = {}
    for part in text.split(","):
        name, equals, word = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError(f"{part!r} sets nothing; expected name=value, separated by commas.")
        if name not in settings:
            raise ConfigError(f"There is no setting {name!r}.{nearest(name, settings)}")
        now = settings[name]
        if isinstance(now, bool):
            if word.lower() not in _SWITCHES:
                raise ConfigError(f"{name}={word!r}; expected true or false.")
            parsed[name] = _SWITCHES[word.lower()]
        elif isinstance(now, int | float):
            try:
                parsed[name] = type(now)(word)
            except ValueError as error:
                raise ConfigError(f"{name}={word!r}; expected a number.") from error
        elif isinstance(now, str):
            parsed[name] = word
        else:
            raise ConfigError(f"{name} is {now!r} now, which cannot be set in a line of text.")
    return parsed
