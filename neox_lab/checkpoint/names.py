"""Which tensor of a checkpoint becomes which parameter of a model.

Checkpoints and our models use the same names, up to three habits that this module undoes:
the backbone's names begin with ``gpt_neox.`` in a class with a head and with nothing in the
bare model; the unembedding is ``embed_out`` on disk, yet some tools write ``lm_head``; and
old files carry masks and rotary frequencies that were never weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping

from neox_lab.errors import CheckpointError

PREFIX = "gpt_neox."
INPUT_EMBEDDING = "gpt_neox.embed_in.weight"
OUTPUT_EMBEDDING = "embed_out.weight"

RENAMED = {"lm_head.weight": OUTPUT_EMBEDDING}
"""Other tools' names -> ours, which are also the ones on disk."""

_THERE = {ours: theirs for theirs, ours in RENAMED.items()}

NOT_WEIGHTS = re.compile(r"(^|\.)(attention\.(bias|masked_bias)|rotary_emb\.(original_)?inv_freq)$")
"""Buffers that old versions saved; they follow from the configuration."""


_NETWORK = re.compile(r"(^|\.)(embed_in|layers\.\d+|final_layer_norm)\.")
"""Names of the network itself, whatever stands in front."""


@dataclasses.dataclass(frozen=True)
class Match:
    """How a checkpoint's names fit a model's.

    Attributes:
        sources: model name -> checkpoint name, in the checkpoint's order.
        unexpected: checkpoint names that the model has no use for.
    """

    sources: dict[str, str]
    unexpected: tuple[str, ...]


def of_the_network(names: Iterable[str]) -> list[str]:
    """Those names of a checkpoint's tensors that are of the network, not of a head."""
    return [name for name in names if _NETWORK.search(name)]


def on_disk(name: str) -> str:
    """The name under which a tensor is saved."""
    return RENAMED.get(name, name)


def in_transformers(name: str) -> str:
    """The name of a tensor in the memory of transformers 5, from the one on disk."""
    return _THERE.get(name, name)


def match(
    wanted: Collection[str], found: Iterable[str], key_mapping: Mapping[str, str] | None = None
) -> Match:
    """Match the names ``found`` in a checkpoint with those ``wanted`` by a model.

    Args:
        wanted: names of the model's parameters.
        found: names of the checkpoint's tensors.
        key_mapping: regular expression -> replacement, applied to the checkpoint's names
            before anything else; the first expression that occurs in a name is the one used.

    Raises:
        CheckpointError: two tensors for one parameter.
    """
    wanted = frozenset(wanted)
    sources: dict[str, str] = {}
    unexpected = []
    for name in found:
        if NOT_WEIGHTS.search(name):
            continue
        target = _target(on_disk(_mapped(name, key_mapping or {})), wanted)
        if target is None:
            unexpected.append(name)
        elif target in sources:
            raise CheckpointError(
                f"The checkpoint has two tensors for {target!r}: {sources[target]!r} and "
                f"{name!r}. Remove one of them."
            )
        else:
            sources[target] = name
    return Match(sources, tuple(unexpected))


def require_backbone(found: Match, wanted: Collection[str]) -> None:
    """Refuse a checkpoint of something else, from which a random model would be made.

    Args:
        found: what ``match`` found.
        wanted: names of the model's parameters.

    Raises:
        CheckpointError: no tensor is one of the backbone's.
    """
    has_head = any(name.startswith(PREFIX) for name in wanted)
    if not any(name.startswith(PREFIX) or not has_head for name in found.sources):
        raise CheckpointError(
            "The checkpoint is not of a GPT-NeoX model: none of its tensors is one of the "
            f"model's. Found {_few(found.unexpected)}; expected {_few(sorted(wanted))}."
        )


def _mapped(name: str, key_mapping: Mapping[str, str]) -> str:
    for pattern, replacement in key_mapping.items():
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return changed
    return name


def _target(name: str, wanted: frozenset[str]) -> str | None:
    candidates = (name, PREFIX + name, name.removeprefix(PREFIX))
    return next((candidate for candidate in candidates if candidate in wanted), None)


def _few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:3])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > 3 else shown or "nothing"
