"""Lenses: what the model would say if it stopped after each layer.

Every block adds to one residual stream, and the unembedding reads that stream at the end. Reading
it earlier, through the same final layer norm and the same unembedding, shows how the prediction
takes shape (nostalgebraist, "interpreting GPT: the logit lens", 2020). The last row of a lens on
the residual stream is the model's real prediction.

For attention and MLP outputs the same reading says what that one part, by itself, would predict.
What each part adds to a logit (``direct``) is exact, and adds up. ``svd`` takes weight matrices
apart into directions, and reads each in tokens.
"""

from __future__ import annotations

from neox_lab.experiments.lens.comparison import LensComparison, compare
from neox_lab.experiments.lens.direct_shares import DirectResult, direct
from neox_lab.experiments.lens.logit import logit_lens
from neox_lab.experiments.lens.matrices import singular_vectors, svd
from neox_lab.experiments.lens.reading import LENS_SITES
from neox_lab.experiments.lens.result import LensResult
from neox_lab.experiments.lens.svd_result import SVDResult
from neox_lab.experiments.lens.top_tokens import predictions
from neox_lab.experiments.lens.tuned import TunedLens, tuned_lens
from neox_lab.experiments.lens.tuned_result import TunedLensResult

__all__ = [
    "LENS_SITES",
    "DirectResult",
    "LensComparison",
    "LensResult",
    "SVDResult",
    "TunedLens",
    "TunedLensResult",
    "compare",
    "direct",
    "logit_lens",
    "predictions",
    "singular_vectors",
    "svd",
    "tuned_lens",
]
