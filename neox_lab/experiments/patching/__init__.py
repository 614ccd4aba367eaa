"""Activation patching: which parts carry the difference between two prompts?

    metric = nl.patching.logit_difference(" Mary", " John")
    result = nl.patching.sweep(model, clean, corrupted, metric, site="resid_pre")
    result                       # a heat map: layer by position
    result.top(5)                # the cells that matter most
    nl.patching.sweep(model, clean, corrupted, metric, site="z_all_pos")

Run the model on a corrupted prompt, put one activation of the clean run in its place, and see how
much of the clean answer comes back (Vig et al., arXiv:2004.12265; Meng et al., arXiv:2202.05262).
Doing that for every layer, position and head is a sweep. Others run the model once for each cell;
here a sweep is one forward pass whose batch grows as it climbs, with the same numbers:

    sites      where one can patch                     rows       which cells can differ at all
    prompts    pairs of prompts, side by side          arrivals   what a patch puts into the stream
    runs       the run that gets patched               climb      all rows up the layers at once
    sweeping   the questions                           reading    from the top to the metric
"""

from neox_lab.experiments.metrics import (
    LogitMetric,
    Metric,
    class_logit,
    logit_difference,
    span_logit,
    tag_logit,
)
from neox_lab.experiments.patching.result import PatchResult
from neox_lab.experiments.patching.sites import SITES, Site
from neox_lab.experiments.patching.sweeping import sweep

__all__ = [
    "SITES",
    "LogitMetric",
    "Metric",
    "PatchResult",
    "Site",
    "class_logit",
    "logit_difference",
    "span_logit",
    "sweep",
    "tag_logit",
]
