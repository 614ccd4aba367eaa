"""Dictionaries of features: read, proven, spliced in, trained."""

from __future__ import annotations

from neox_lab.sae.codes import Codes
from neox_lab.sae.dictionary import Dictionary, Weights

__all__ = ["Codes", "Dictionary", "Weights"]
