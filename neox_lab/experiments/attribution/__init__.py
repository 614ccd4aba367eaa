"""Attribution: which part of the model, or of the text, a metric is owed to.

    direct_logit_attribution(model, text, " Mary", " John")     exact shares of a logit
    attribution_patch(model, clean, corrupted, metric, "z")     a patching sweep, to first order
    attribution_patch(model, clean, corrupted, metric, "edges") every edge of the network
    integrated_gradients(model, text, metric)                   shares of each token
    occlusion(model, text, metric)                              what each token's absence does

Each answer is a result with ``.values``, ``.frame``, ``.top(count)`` and a picture, and
``.check()`` compares it with what really happens when each part is exchanged by itself.
"""

from neox_lab.experiments.attribution.agreement import Agreement, compare
from neox_lab.experiments.attribution.attribution_patching import attribution_patch
from neox_lab.experiments.attribution.direct import direct_logit_attribution
from neox_lab.experiments.attribution.result import AttributionResult
from neox_lab.experiments.attribution.tokens import (
    TokenAttribution,
    integrated_gradients,
    occlusion,
)
from neox_lab.experiments.metrics import (
    class_logit,
    logit_difference,
    span_logit,
    tag_logit,
)

__all__ = [
    "Agreement",
    "AttributionResult",
    "TokenAttribution",
    "attribution_patch",
    "class_logit",
    "compare",
    "direct_logit_attribution",
    "integrated_gradients",
    "logit_difference",
    "occlusion",
    "span_logit",
    "tag_logit",
]
