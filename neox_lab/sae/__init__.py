"""Dictionaries of features: read, proven, spliced in, trained."""

from __future__ import annotations

from neox_lab.other_dictionary_names import SAE_ROOM
from neox_lab.other_names import ours
from neox_lab.sae.checking import Check
from neox_lab.sae.codes import Codes
from neox_lab.sae.cross_layer import CrossLayerTranscoder
from neox_lab.sae.cross_layer_weights import CrossLayerWeights
from neox_lab.sae.crosscoder import Crosscoder
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.loading import available, load
from neox_lab.sae.one_layer import TranscoderLayer
from neox_lab.sae.planting import Planted, planted
from neox_lab.sae.recipes import Recipe
from neox_lab.sae.sites_checking import SitesCheck
from neox_lab.sae.training import train
from neox_lab.sae.training_result import HeldOut, TrainedDictionary

__all__ = [
    "Check",
    "Codes",
    "CrossLayerTranscoder",
    "CrossLayerWeights",
    "Crosscoder",
    "Dictionary",
    "HeldOut",
    "Planted",
    "Recipe",
    "SitesCheck",
    "TrainedDictionary",
    "TranscoderLayer",
    "Weights",
    "available",
    "load",
    "planted",
    "train",
]


def __getattr__(name: str) -> object:
    """Called for what is not here; what other libraries call otherwise is told."""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{ours(name, *SAE_ROOM)}")
