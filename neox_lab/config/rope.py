"""The rotary embedding in a configuration: its types, what each needs, and its spellings.

``rope_parameters`` is the one truth, a flat dict: ``rope_type``, ``rope_theta`` (the base),
``partial_rotary_factor`` (the share of each head that is turned), and the parameters of the type.
To add a type, add it to ``_TYPES`` and its parameters to ``_KINDS``; what it computes is in
``neox_lab.model.rotary``.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

from neox_lab.checks import SWITCH, Kind, check, list_of, number, one_of, plain, shown, whole
from neox_lab.config.spellings import merge
from neox_lab.errors import ConfigError, nearest

_log = logging.getLogger("neox_lab")

# The length that the model was trained on; it is filled in from max_position_embeddings.
_ORIGINAL = "original_max_position_embeddings"
_YARN_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")

# Each scaling type with the parameters it must and may have.
_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), (_ORIGINAL,)),
    "yarn": (("factor", _ORIGINAL), (*_YARN_OPTIONAL, "truncate")),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
    "longrope": (("short_factor", "long_factor", _ORIGINAL), ("factor", "attention_factor")),
}
_NOT_NEGATIVE = number(least=0, below=math.inf)
_MOST = 2.0**62  # angles are float32, and PyTorch takes no longer whole numbers
_ABOVE_ZERO = number(above=0, below=math.inf)._replace(
    accepts=number(least=1e-30, most=_MOST).accepts
)
_ABOVE_ONE = number(above=1, below=math.inf)._replace(accepts=number(above=1, most=_MOST).accepts)
_FACTOR = number(least=1, below=math.inf)._replace(accepts=number(least=1, most=_MOST).accepts)
_SHARE = number(least=0, most=1)
_NUMBERS = list_of(_ABOVE_ZERO, "numbers above 0")
_KINDS: dict[str, Kind[object]] = {
    "factor": _FACTOR,
    _ORIGINAL: whole(above=0),
    "attention_factor": _NOT_NEGATIVE,
    "beta_fast": _ABOVE_ZERO,
    "beta_slow": _ABOVE_ZERO,
    "mscale": _NOT_NEGATIVE,
    "mscale_all_dim": _NOT_NEGATIVE,
    "truncate": SWITCH,
    "low_freq_factor": _ABOVE_ZERO,
    "high_freq_factor": _ABOVE_ZERO,
    "short_factor": _NUMBERS,
    "long_factor": _NUMBERS,
}
# Arguments beside the field itself -> the entry of rope_parameters that they name.
_ALIASES = {
    "rotary_pct": "partial_rotary_factor",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_emb_base": "rope_theta",
    "rope_theta": "rope_theta",
    _ORIGINAL: _ORIGINAL,
}
ROPE_NAMES = ("rope_scaling", "rope_parameters", *_ALIASES)
"""Every argument of a configuration that is about the rotary embedding."""

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}


def resolve_rope(
    current: Mapping[str, object], given: Mapping[str, object], max_positions: int
) -> dict[str, Any]:
    """The full ``rope_parameters`` after the arguments in ``given`` are applied to ``current``.

    A dict argument replaces the scaling, and None in its place turns it off; the current base
    and fraction stay where they are not named. For numbers None means "not given".

    Raises:
        ConfigError: two arguments disagree, or there is no such type, or none is named.
    """
    entries: list[tuple[str, str, object]] = []
    for name in ("rope_scaling", "rope_parameters"):
        parameters = given.get(name)
        if not isinstance(parameters, Mapping | None):
            raise ConfigError(f"{name}={shown(parameters)}; expected a dict or None.")
        for key, value in (parameters or {}).items():
            if value is not None:
                entry = "rope_type" if key == "type" else key
                entries.append((f"{name}[{key!r}]", entry, value))
    named = {key for _, key, _ in entries}
    if "rope_type" not in named and (lost := (named & _KINDS.keys()) - {_ORIGINAL}):
        raise ConfigError(f"{min(lost)!r} scales nothing by itself: name a rope_type that has it.")
    replaces = bool(entries) or "rope_scaling" in given or "rope_parameters" in given
    for name, key in _ALIASES.items():
        if given.get(name) is not None:
            entries.append((name, key, given[name]))

    kept = ("rope_theta", "partial_rotary_factor") if replaces else tuple(current)
    result = {"rope_type": "default", **{key: current[key] for key in kept}}
    merged = merge(entries, "the same rotary parameter")
    result |= {key: plain(value) for key, value in merged.items()}
    if _ORIGINAL in _entries_of(result["rope_type"])[0]:
        result.setdefault(_ORIGINAL, max_positions)
    return result


def check_rope(rope: Mapping[str, Any]) -> None:
    """Check ``rope_parameters`` by themselves.

    Raises:
        ConfigError: an unknown type, or missing, misspelt or impossible parameters.
    """
    base, share = rope["rope_theta"], rope["partial_rotary_factor"]
    check("rotary_emb_base (or rope_theta)", base, _ABOVE_ONE, ConfigError)
    check("rotary_pct (or partial_rotary_factor)", share, _SHARE, ConfigError)
    kind = rope["rope_type"]
    required, optional = _entries_of(kind)
    for key in required:
        if key not in rope:
            raise ConfigError(f"rope type {kind!r} needs {key!r} (it needs {', '.join(required)}).")
    for key in sorted(rope.keys() - DEFAULT_ROPE.keys(), key=str):
        if key in required + optional:
            check(f"{key} of rope type {kind!r}", rope[key], _KINDS[key], ConfigError)
        elif key not in _KINDS and (close := nearest(str(key), [*required, *optional])):
            raise ConfigError(f"rope type {kind!r} has no parameter {key!r}.{close}")
        else:
            _say_unused(kind, str(key))
    if kind == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ConfigError("high_freq_factor of rope type 'llama3' must exceed low_freq_factor.")
    if kind == "longrope" and rope[_ORIGINAL] == 1 and rope.get("attention_factor") is None:
        raise ConfigError(  # its formula divides by the logarithm
            f"rope type 'longrope' needs an attention_factor where {_ORIGINAL} is 1."
        )


@functools.cache  # once is enough
def _say_unused(kind: str, key: str) -> None:
    _log.warning("rope type %r does not use %r, which is kept.", kind, key)


def check_pairs(rope: Mapping[str, Any], ndims: int) -> None:
    """Check ``rope_parameters`` against the size of a head.

    Args:
        rope: the parameters.
        ndims: numbers per head that are to be turned; an odd one will be rounded up.

    Raises:
        ConfigError: the type has no formula for them, or the parameters are for another number.
    """
    kind, pairs = rope["rope_type"], -(-ndims // 2)
    if kind == "dynamic" and ndims == 2:  # its formula divides by ndims - 2
        raise ConfigError("rope type 'dynamic' needs at least 4 rotary dimensions per head.")
    if kind == "yarn" and ndims % 2 and ndims > 3:  # its ramp has a pair less than there are
        raise ConfigError(f"rope type 'yarn' needs whole pairs; rotary_pct makes {ndims} numbers.")
    for key in ("short_factor", "long_factor") if kind == "longrope" else ():
        if len(rope[key]) != pairs and not (ndims == 3 and len(rope[key]) == 1):
            raise ConfigError(
                f"{key} has {len(rope[key])} numbers, but the rotary embedding has {pairs} "
                f"pairs ({2 * pairs} rotary dimensions per head): give one number for each."
            )


def rope_scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scaling as transformers 4 writes it: None, or type and parameters without the base.

    4.33 to 4.42 insist on exactly ``type`` and a float ``factor``, which later ones read too.
    """
    kind = rope["rope_type"]
    known = [key for entries in _entries_of(kind) for key in entries]
    scaling = {key: value for key, value in rope.items() if key in known}
    if kind == "default":
        return None
    if kind in ("linear", "dynamic"):
        return {"type": kind, **scaling, "factor": float(scaling["factor"])}
    return {"rope_type": kind, **scaling}


def _entries_of(kind: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The required and the optional parameters of a rope type; ConfigError if there is none."""
    return _TYPES[check("rope_type", kind, one_of(*_TYPES), ConfigError)]
