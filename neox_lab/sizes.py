"""Sizes of memory and of files, as people write them."""

from __future__ import annotations

import re

from neox_lab.errors import NeoxLabError

_UNITS = {"": 1}
_UNITS |= {letter: 1000**power for power, letter in enumerate("KMGTP", start=1)}
_UNITS |= {f"{letter}I": 1024**power for power, letter in enumerate("KMGTP", start=1)}


def parse_size(size: int | str, name: str, error: type[NeoxLabError]) -> int:
    """Bytes from a number, ``"5GB"``, ``"1.5 kb"`` (powers of 1000) or ``"2MiB"`` (of 1024).

    Args:
        size: what the user gave.
        name: which argument it was given for.
        error: what to raise.

    Raises:
        NeoxLabError: ``error``, if it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGTP]?I?)B?", str(size).strip().upper())
    if not found or found[2] not in _UNITS:
        raise error(f"{name}={size!r} is not a size such as 10**9, '2 GB' or '2MiB'.")
    number, unit = found[1], _UNITS[found[2]]
    return int(float(number) * unit) if "." in number else int(number) * unit


def size_in_words(size: float) -> str:
    """A number of bytes as a person writes it, to three digits: ``"1.23 GB"``."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5:  # from here on, three digits are 1000
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} PB"
