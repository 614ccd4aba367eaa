"""What is known and not read: so that it is refused by its name.

crosslayer-coding keeps a cross-layer transcoder as ``cfg.json`` beside its weights. Its activations
were normalised outside the weights, with statistics of the data set (``norm_stats.json``).
"""

from __future__ import annotations

from neox_lab.errors import CheckpointError
from neox_lab.sae.dictionary import Dictionary
from neox_lab.sae.formats.format import Format, Found, Given
from neox_lab.sae.formats.source import Source, inside

NAME = "crosslayer-coding"
CONFIG = "cfg.json"
_READ = ("sae.safetensors", "sae_weights.safetensors")
_ENTRIES = {"num_features", "num_layers", "activation_fn"}
_WHAT = "a cross-layer transcoder of crosslayer-coding, which writes to many layers; not read here."


def find(source: Source) -> list[Found]:
    """Folders with such a configuration."""
    return [
        Found(NAME, folder, None, _WHAT)
        for folder in source.folders_with(CONFIG)
        if not any(inside(folder, name) in source.names for name in _READ)
        and _ENTRIES <= set(source.json(inside(folder, CONFIG)))
    ]


def read(source: Source, found: Found, given: Given) -> Dictionary:
    """Refused.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(f"{inside(source.where, found.place)} is {_WHAT}")


FORMAT = Format(NAME, find, read)
