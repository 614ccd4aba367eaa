"""What a cross-layer transcoder is given, for all of its layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from neox_lab.checks import shown
from neox_lab.errors import InputError
from neox_lab.sae.codes import Codes

Inputs = Mapping[str, Tensor] | Mapping[int, Tensor] | Sequence[Tensor]
"""What stands at ``sites_in``: in their order, by name, or by number of layer."""

Passed = tuple[Tensor, Codes]
"""What a layer read, ``[*tokens, d_in]``, and what it found in it."""


def by_layer(inputs: Inputs, sites: Sequence[str], width: int) -> list[Tensor]:
    """The inputs by layer.

    Args:
        inputs: of the user.
        sites: hook points by layer.
        width: of the inputs.

    Raises:
        InputError: a layer is missing, or has another width or other tokens.
    """
    if isinstance(inputs, Mapping):
        found: dict[object, Tensor] = dict(inputs.items())
        by_name = [found.get(name, found.get(i)) for i, name in enumerate(sites)]
    elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
        by_name = list(inputs)
    else:
        raise InputError(f"inputs={shown(inputs)}; expected tensors by layer, or by hook name.")
    missing = [name for x, name in zip(by_name, sites, strict=False) if x is None]
    if missing or len(by_name) != len(sites):
        said = f"{', '.join(missing[:3])} are missing" if missing else f"got {len(by_name)}"
        raise InputError(f"inputs: expected what stands at {len(sites)} sites; {said}.")
    given = [require(x, name, width) for x, name in zip(by_name, sites, strict=True)]
    if len({x.shape for x in given}) > 1:
        raise InputError(f"inputs have shapes {[list(x.shape) for x in given]}; expected one.")
    return given


def require(x: object, site: str, width: int) -> Tensor:
    """What stands at a site.

    Raises:
        InputError: it is no floating-point tensor, or of another width.
    """
    if isinstance(x, Tensor) and x.shape[-1:] == (width,) and x.is_floating_point():
        return x
    what = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else shown(x, 80)
    raise InputError(f"At {site}: {what}; expected floating-point [*tokens, {width}].")
