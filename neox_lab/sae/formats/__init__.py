"""How the libraries of dictionaries lay out their files: a module for each, and one way to all."""

from __future__ import annotations

from neox_lab.sae.formats import (
    circuit_tracer,
    crosscoders,
    crosslayer_coding,
    dictionary_learning,
    ours,
    sae_lens,
    sparsify,
)
from neox_lab.sae.formats.format import Format, Found, Given, Read
from neox_lab.sae.formats.source import Source, source_of

_MODULES = (
    ours,
    sparsify,
    sae_lens,
    dictionary_learning,
    circuit_tracer,
    crosslayer_coding,
    crosscoders,
)
FORMATS: dict[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES}
"""By name."""

__all__ = ["FORMATS", "Format", "Found", "Given", "Read", "Source", "source_of"]
