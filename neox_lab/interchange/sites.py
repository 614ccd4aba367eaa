"""Sites: which numbers of a run an interchange exchanges.

    Site(("resid_post", 3), pos=-1)                    the residual stream at the last token
    Site(("q", 2), pos=-1, heads=[1, 4])               queries of two heads
    Site(("pattern", 2), pos=-1, heads=1)              the row of one attention pattern
    Site("blocks.3.hook_mlp_out", pos=(4, 6))          position 4 of the base, 6 of the source
    Site(("resid_post", 3), pos={"giver": 3, "end": -1})    several places at once
    Site(("resid_post", 3), pos="giver")               a role that a causal model named

What stands at a site is one vector: of each place in turn, of each head in turn. ``width`` is how
many numbers it has. With a ``subspace`` only the part inside it is exchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from neox_lab.checks import shown
from neox_lab.data.positions import TokenPosition
from neox_lab.errors import InputError, nearest
from neox_lab.experiments.patching.prompts import Prompts, position_columns
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.hooks.table import axis_sizes, shape_at
from neox_lab.model.hook_points import HookPoint
from neox_lab.selections import entries as entries_of
from neox_lab.selections import kept_axis

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

Where: TypeAlias = "TokenPosition | tuple[TokenPosition, TokenPosition]"
"""A position in each text's own tokens, a list with one for each pair, or a tuple of the base's
and the source's."""
Roles: TypeAlias = "Mapping[str, tuple[list[int], list[int]]]"
"""Positions by name, of each base and of each source."""
Pos: TypeAlias = "Where | Mapping[str, Where] | str | Sequence[str]"
"""One place, several by name, or one role or several."""

_PATTERN = ("batch", "head", "query_pos", "key_pos")
ORTHONORMAL = 1e-3
"""How far the columns of a subspace may be from orthonormal."""


@dataclass(frozen=True)
class Site:
    """What is exchanged.

    Attributes:
        hook: name, alias or short form of a hook point with positions.
        pos: where; several places by name; the name of a role of ``Pairs``, or a list of such
            names; None for every position.
        heads: which heads, where the hook point has them; None for all.
        subspace: directions ``[width, rank]``, orthonormal columns; None for everything.
    """

    hook: str | ShortForm
    pos: Pos | None
    heads: int | Sequence[int] | None = None
    subspace: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class PlacedSite:
    """A site in a batch of bases and one of sources.

    Attributes:
        point: the hook point.
        columns: of each place in the bases ``[batch, place]``.
        source_columns: in the sources.
        heads: which heads; None where all are exchanged, or there are none.
        width: how many numbers stand there.
    """

    point: HookPoint
    columns: Tensor
    source_columns: Tensor
    heads: tuple[int, ...] | None
    width: int

    def read(self, tensor: Tensor, columns: Tensor) -> Tensor:
        """What stands at the site, ``[batch, width]``.

        Args:
            tensor: what passes the hook point.
            columns: where, ``[batch, place]``.

        Returns:
            A copy, on the device of ``columns`` (layers may be on others).
        """
        found = self._by_pos(tensor)[self._index(columns, tensor.device)].flatten(1)
        return found.to(columns.device)

    def write(self, tensor: Tensor, columns: Tensor, values: Tensor) -> None:
        """Put ``values`` ``[batch, width]`` there, in place."""
        stood = self._by_pos(tensor)
        index = self._index(columns, tensor.device)
        stood[index] = values.view(stood[index].shape).to(tensor)

    def _by_pos(self, tensor: Tensor) -> Tensor:
        """A view with the axes batch, pos, and the rest."""
        return tensor.transpose(1, 2) if self.point.axes == _PATTERN else tensor

    def _index(self, columns: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        columns = columns.to(device)
        rows = torch.arange(len(columns), device=device)[:, None]
        if self.heads is None:
            return rows, columns
        heads = torch.tensor(self.heads, device=device)
        return rows[..., None], columns[..., None], heads


def find_point(site: object, model: HookedModel) -> HookPoint:
    """The hook point of a site.

    Raises:
        InputError: it is no site, or the hook point has no positions.
        HookNameError: there is no such hook point.
    """
    if not isinstance(site, Site):
        raise InputError(
            f"site={shown(site)}; expected nl.interchange.Site(hook, pos), such as "
            "Site(('resid_post', 3), pos=-1)."
        )
    points = model.hook_points
    point = points[exact(site.hook, points)]
    if point.axes[:2] != ("batch", "pos") and point.axes != _PATTERN:
        raise InputError(
            f"{point.name!r} has the axes {list(point.axes)}; activations can be exchanged where "
            "these begin with batch and pos, and in attention patterns."
        )
    return point


def place(
    site: Site, model: HookedModel, base: Prompts, source: Prompts, roles: Roles | None = None
) -> PlacedSite:
    """The site in a batch of bases and one of sources.

    Args:
        site: what the user named.
        model: whose hook points count.
        base: the prompts that get something.
        source: the prompts that it comes from.
        roles: positions by name.

    Raises:
        InputError: another number of prompts, unequal lengths where these matter, a position, role
            or head that is not there, or a subspace that does not fit.
        HookNameError: there is no such hook point.
    """
    point = find_point(site, model)
    if len(base.ids) != len(source.ids):
        raise InputError(
            f"There are {len(base.ids)} bases and {len(source.ids)} sources; each base needs one "
            "source."
        )
    if site.pos is None or point.axes == _PATTERN:
        _refuse_unequal(base, source, point, site.pos is None)
    columns, source_columns = _columns(site, base, source, roles or {})
    if point.axes == _PATTERN and not torch.equal(columns, source_columns):
        raise InputError(
            f"pos={shown(site.pos, 80)}: {point.name!r} has key positions, which correspond by "
            "number, so a query at one position cannot look where one at another did, perhaps "
            "ahead of itself. Name the same position of base and source."
        )
    sizes = axis_sizes(model.config, *base.ids.shape)
    rest = list(shape_at(point, sizes)[2:])
    heads = None
    if point.axes == _PATTERN:
        rest[0] = sizes["head"]
    if site.heads is not None:
        heads = _heads(site.heads, point, rest)
        rest[0] = len(heads)
    width = columns.shape[1] * int(torch.tensor(rest).prod())
    if site.subspace is not None:
        check_subspace(site.subspace, width, point)
    return PlacedSite(point, columns, source_columns, heads, width)


def check_subspace(subspace: object, width: int, point: HookPoint) -> None:
    """Refuse directions that do not fit a site.

    Raises:
        InputError: another width, no numbers, or columns that are not orthonormal.
    """
    if not isinstance(subspace, Tensor) or subspace.dim() != 2 or subspace.shape[0] != width:
        got = list(subspace.shape) if isinstance(subspace, Tensor) else shown(subspace, 60)
        raise InputError(
            f"The subspace is {got}; at {point.name!r} the site has {width} numbers, so expected a "
            f"tensor [{width}, rank]. One that was found at another site or in another model fits "
            "nowhere else."
        )
    gram = subspace.double().T @ subspace.double()
    off = (gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs()
    if not bool((off <= ORTHONORMAL).all()):
        raise InputError(
            "The columns of a subspace must be orthonormal, else exchanging along them would also "
            "scale: torch.linalg.qr(directions).Q makes them so."
        )


def _refuse_unequal(base: Prompts, source: Prompts, point: HookPoint, every: bool) -> None:
    """Positions correspond by number here, so both sides must look alike."""
    unequal = [
        row for row, (a, b) in enumerate(zip(base.lengths, source.lengths, strict=True)) if a != b
    ]
    if unequal:
        row = unequal[0]
        what = "pos=None exchanges every position" if every else f"{point.name!r} has key positions"
        raise InputError(
            f"Pair {row}: the base has {base.lengths[row]} tokens and the source "
            f"{source.lengths[row]}; {what}, so both must be of one length. Name positions that "
            "correspond at a hook point without key positions: pos=(base, source)."
        )
    if base.ids.shape != source.ids.shape or not torch.equal(base.own, source.own):
        raise InputError("Bases and sources must be padded in the same places.")


def _columns(site: Site, base: Prompts, source: Prompts, roles: Roles) -> tuple[Tensor, Tensor]:
    """Columns of each place in both, ``[batch, place]``."""
    if site.pos is None:
        every = torch.arange(base.ids.shape[1], device=base.ids.device)
        every = every.expand(len(base.ids), -1)
        return every, every
    named = _named(site.pos, roles)
    sides = []
    for number, prompts in enumerate((base, source)):
        found = [
            position_columns(
                prompts, cast(tuple[Any, Any], w)[number] if isinstance(w, tuple) else w, name
            )
            for name, w in named.items()
        ]
        sides.append(torch.stack(found, dim=1))
    for row, columns in enumerate(sides[0].tolist()):
        if len(set(columns)) < len(columns):
            raise InputError(
                f"pos={shown(site.pos, 80)} names one position of base {row} twice, which would "
                "get two values."
            )
    return sides[0], sides[1]


def _named(pos: Pos, roles: Roles) -> Mapping[str, Where]:
    """Places by name.

    Raises:
        InputError: a role that nobody named, no place, or a tuple of another length.
    """
    if isinstance(pos, str):
        pos = [pos]
    if isinstance(pos, Mapping):
        named = {str(name): where for name, where in pos.items()}
    elif isinstance(pos, list | tuple) and any(isinstance(name, str) for name in pos):
        named = {str(name): _role(str(name), roles) for name in pos}
    else:
        named = {"pos": cast(Where, pos)}
    if not named:
        raise InputError("pos names no place.")
    for where in named.values():
        if isinstance(where, tuple) and len(where) != 2:
            raise InputError(
                f"pos={shown(where, 80)}; a tuple is a position of the base and one of the source. "
                "Write a list for one position for each pair."
            )
    return named


def _role(name: str, roles: Roles) -> Where:
    if name in roles:
        return roles[name]
    known = f"one of {', '.join(roles)}" if roles else "a number: no roles are known"
    raise InputError(
        f"pos={name!r} is a role; expected {known} here. Roles come with the pairs of a causal "
        f"model.{nearest(name, tuple(roles))}"
    )


def _heads(given: object, point: HookPoint, rest: Sequence[int]) -> tuple[int, ...]:
    """Numbers of heads.

    Raises:
        InputError: the hook point has no heads, or not these.
    """
    if "head" not in point.axes:
        raise InputError(f"{point.name!r} has no heads: its axes are {list(point.axes)}.")
    found = entries_of("heads", kept_axis("heads", given, InputError), rest[0], InputError)
    numbers = range(rest[0])[found] if isinstance(found, slice) else found
    listed = [numbers] if isinstance(numbers, int) else list(numbers)
    if not listed or len(set(listed)) < len(listed):
        raise InputError(f"heads={shown(given)}; expected different heads, at least one.")
    return tuple(listed)
