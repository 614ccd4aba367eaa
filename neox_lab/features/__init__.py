"""Questions about features: where they are active, what they do, which of them make a circuit.

dictionary = nl.sae.load(...)
nl.features.active(model, dictionary, "The king went to the city")
nl.features.effects(model, dictionary, text, metric)             # each ablated, one by one
nl.features.effects(model, dictionary, text, metric, method="gradient").check()
nl.features.direct(model, dictionary, text, " king")             # shares in a logit
"""

from __future__ import annotations

from neox_lab.features.active import ActiveFeatures, active
from neox_lab.features.direct import direct
from neox_lab.features.effects import FeatureEffects, effects

__all__ = ["ActiveFeatures", "FeatureEffects", "active", "direct", "effects"]
