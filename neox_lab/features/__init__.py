"""Questions about features: where they are active, what they do, which of them make a circuit.

A feature is one of a dictionary's (``nl.sae``):

    nl.features.active(model, dictionary, "The king went to the city")
    nl.features.effects(model, dictionary, text, metric)             # each ablated, one by one
    nl.features.effects(model, dictionary, text, metric, method="gradient").check()
    nl.features.direct(model, dictionary, text, " king")             # shares in a logit
    nl.features.circuit(model, dictionaries, text, metric).faithfulness()
    nl.features.circuit(model, dictionaries, text, metric).edges()   # who acts on whom

    found = nl.features.top_examples(model, dictionary, texts)       # or neurons, heads, directions
    found.frame                                                      # how often, and how much
    found.examples(12)                                               # where feature 12 is highest
    nl.features.pages(found, "pages")                                # a page of each, and an index
"""

from __future__ import annotations

from neox_lab.features.active_features import ActiveFeatures, active
from neox_lab.features.direct_shares import direct
from neox_lab.features.feature_circuits import CircuitCurves, FeatureCircuit, circuit
from neox_lab.features.feature_edges import FeatureEdges
from neox_lab.features.feature_effects import FeatureEffects, effects
from neox_lab.features.feature_pages import page, pages
from neox_lab.features.sources import Direction, Head, Source
from neox_lab.features.top import top_examples
from neox_lab.features.top_result import TopExamples

__all__ = [
    "ActiveFeatures",
    "CircuitCurves",
    "Direction",
    "FeatureCircuit",
    "FeatureEdges",
    "FeatureEffects",
    "Head",
    "Source",
    "TopExamples",
    "active",
    "circuit",
    "direct",
    "effects",
    "page",
    "pages",
    "top_examples",
]
