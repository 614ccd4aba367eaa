"""What did not fit when a model was loaded."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LoadingReport:
    """Differences between a checkpoint and the model it was loaded into.

    Attributes:
        missing_keys: parameters the checkpoint lacks; they were initialised.
        unexpected_keys: tensors of the checkpoint, by their name there, that were not used.
        mismatched_keys: ``(parameter, shape in the checkpoint, shape in the model)``; these
            parameters were initialised too.
        error_msgs: always empty, as errors are raised; kept for Hugging Face's users.
    """

    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    mismatched_keys: tuple[tuple[str, Shape, Shape], ...] = ()
    error_msgs: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every parameter came from the checkpoint."""
        return not (self.missing_keys or self.mismatched_keys)

    def as_dict(self) -> dict[str, Any]:
        """Hugging Face's form: sets of names and of mismatches, and a list of messages."""
        return {
            "missing_keys": set(self.missing_keys),
            "unexpected_keys": set(self.unexpected_keys),
            "mismatched_keys": set(self.mismatched_keys),
            "error_msgs": list(self.error_msgs),
        }

    def __str__(self) -> str:
        """A table with one line for each kind of name; layer numbers are merged."""
        shapes = {
            name: f"{list(checkpoint)} in the checkpoint, {list(model)} in the model"
            for name, checkpoint, model in self.mismatched_keys
        }
        rows = [(key, "missing", "initialised") for key in merged(self.missing_keys)]
        rows += [(key, "mismatched", f"initialised: {shapes[key]}") for key in sorted(shapes)]
        rows += [(key, "unexpected", "not used") for key in merged(self.unexpected_keys)]
        if not rows:
            return "every parameter was in the checkpoint, and nothing else"
        width = max(len(key) for key, _, _ in rows)
        return "\n".join(f"{key:{width}}  {status:10}  {note}" for key, status, note in rows)


def merged(names: Iterable[str]) -> list[str]:
    """Names that differ only in their layer as one: ``layers.{0...43}.x``, ``layers.{1, 5}.x``."""
    layers: dict[tuple[str, str], set[int]] = {}
    plain = set()
    for name in names:
        found = re.fullmatch(r"(.*\blayers\.)(\d+)(\..*)", name)
        if found:
            layers.setdefault((found[1], found[3]), set()).add(int(found[2]))
        else:
            plain.add(name)
    lines = plain | {f"{start}{_layers(numbers)}{end}" for (start, end), numbers in layers.items()}
    return sorted(lines)


def _layers(numbers: set[int]) -> str:
    first, last = min(numbers), max(numbers)
    if first == last:
        return str(first)
    if len(numbers) == last - first + 1:
        return f"{{{first}...{last}}}"
    return "{" + ", ".join(map(str, sorted(numbers))) + "}"
