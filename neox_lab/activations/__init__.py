"""Activations of texts in a folder: collected once, read many times."""

from neox_lab.activations.collecting import collect
from neox_lab.activations.stored import Stored, open

__all__ = ["Stored", "collect", "open"]
