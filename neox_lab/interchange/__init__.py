"""Interchange interventions: does a place in the network carry a variable of a causal model?

causal = nl.interchange.CausalModel(prompt, variables, label)   # plain Python functions
pairs, held_out = causal.pairs(inputs, "giver_is_first").split()
site = nl.interchange.Site(("resid_post", 3), pos=-1)
nl.interchange.accuracy(model, held_out, site)                  # exchange all that stands there
nl.interchange.das(model, pairs, held_out, site, rank=2)        # find the part that matters
nl.interchange.run(model, base, (site, source))                 # what the model says then
"""

from __future__ import annotations

from neox_lab.interchange.alignment import accuracy, boundless, das, mask
from neox_lab.interchange.causal import CausalModel
from neox_lab.interchange.outcomes import InterchangeResult
from neox_lab.interchange.pairs import Pairs
from neox_lab.interchange.running import run
from neox_lab.interchange.sites import Site
from neox_lab.interchange.sweeps import InterchangeMap, sweep

__all__ = [
    "CausalModel",
    "InterchangeMap",
    "InterchangeResult",
    "Pairs",
    "Site",
    "accuracy",
    "boundless",
    "das",
    "mask",
    "run",
    "sweep",
]
