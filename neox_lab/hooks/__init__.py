"""Named places inside the network, and what one can do there: read, replace, keep.

In reading order: ``table`` lists every hook point with its shape and meaning, ``names`` finds the
ones a user means, ``hooking`` places functions there, ``splicing`` functions with hook points of
their own. ``cache`` keeps what passed, ``storage`` says how, ``derived`` and ``lean`` make what
need not be kept, ``recording`` fills a cache from one run, ``cache_files`` writes it to disk.
``residual_decomposition`` and ``logit_attribution`` take apart what a cache holds.

What a hook point *is*, and how a tensor passes one, stands where the forward pass needs it: in
``neox_lab.model.hook_points``.
"""

from neox_lab.hooks.hooking import reads_only
from neox_lab.hooks.splicing import SplicedPoint

__all__ = ["SplicedPoint", "reads_only"]
