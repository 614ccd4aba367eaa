"""How wide sites are, and whether vectors fit there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from neox_lab.errors import HookNameError, InputError

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel


def check_widths(model: HookedModel, vectors: Mapping[str, Tensor]) -> None:
    """Refuse vectors that do not fit where they are to stand.

    Args:
        model: whose sites they are.
        vectors: ``[d]`` of each site.

    Raises:
        InputError: a site is wider or narrower than its vector.
        HookNameError: the model lacks a site.
    """
    from neox_lab.data.activations import row_shapes

    missing = [name for name in vectors if name not in model.hook_points]
    if missing:
        raise HookNameError(f"This model has no site {missing[0]!r}, at which the direction is.")
    for name, shape in row_shapes(model, list(vectors)).items():
        if math.prod(shape) != len(vectors[name]):
            raise InputError(
                f"the direction at {name!r} has {len(vectors[name])} numbers; the site of this "
                f"model has {math.prod(shape)}"
            )


def one_width(model: HookedModel, names: Sequence[str]) -> int:
    """How wide some sites are.

    Raises:
        InputError: they differ.
    """
    from neox_lab.data.activations import row_shapes

    widths = {name: math.prod(shape) for name, shape in row_shapes(model, names).items()}
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise InputError(
            f"a direction has one width, and these sites have several ({said:.300}); find one "
            "direction for each width"
        )
    return next(iter(widths.values()))
