"""Where one can patch: each site with its axes, its hook point, and what a patch there does.

place    axes               what one cell replaces
one      layer, pos[, head] the activation at one position
onward   layer, pos, head   a key or value at one position, which every later query sees
all      layer, head        the activation of one head at every position

A new site is one more row of ``SITES``. Its hook is any hook point of a block; runs keep what
stands there, and sweeps, ablation, widgets and labels read the row. Its effect is a function from
what is replaced to the residual stream that follows: one of ``effects``, or a new one. What the
first matrix of the MLP makes, for instance, would be

    Site("mlp_pre", BY_POS, "mlp.hook_pre", "one", as_mlp_pre)

    def as_mlp_pre(layer: PatchedLayer, tokens: ChangedTokens) -> Tensor:
        mlp, run = layer.block.mlp, layer.own
        mlp_out = mlp.dense_4h_to_h(mlp.act(tokens.of(layer.source)))  # [token, d_model]
        return mlp_out + tokens.of(run.attn_out) + tokens.of(run.resid_pre)

Without a row, any hook point with positions is a site by its own name: a cell replaces all that
stands there at one position, or one entry of it, and runs through hooks (``hooked_forward``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from neox_lab.checks import several, shown
from neox_lab.errors import HookNameError, InputError, nearest
from neox_lab.experiments.patching import effects
from neox_lab.experiments.patching.effects import Effect, as_z
from neox_lab.experiments.patching.runs import PATTERN
from neox_lab.hooks.names import ShortForm, exact
from neox_lab.hooks.table import shape_at
from neox_lab.model.hook_points import HookPoint
from neox_lab.selections import Selection
from neox_lab.selections import entries as entries_of

Place = Literal["one", "onward", "all"]


@dataclass(frozen=True)
class Site:
    """One kind of patch.

    Attributes:
        name: what users type.
        axes: of the result.
        hook: the hook point whose tensor is replaced, relative to its block.
        place: which positions a cell replaces, see the module.
        effect: what follows from what is replaced, see ``effects``; None if that takes a run with
            hooks, see ``hooked_forward``.
        changes: which layer's input is the first residual stream that the effect changes:
            ``"next"``, or the block's ``"own"``.
        layer: the only block that has the hook, -1 for the embedding; None if all have it.
        entries: numbers along the hook point's last axis, each a cell; empty if a cell replaces
            all of it.
        asked: what the source is asked for, where that is not simply what stands at the hook.
    """

    name: str
    axes: tuple[str, ...]
    hook: str
    place: Place
    effect: Effect | None = field(repr=False)
    changes: Literal["own", "next"] = "next"
    layer: int | None = None
    entries: tuple[int, ...] = ()
    asked: str = ""

    @property
    def by_head(self) -> bool:
        """Whether a cell replaces one head's part."""
        return "head" in self.axes

    @property
    def is_pattern(self) -> bool:
        """Whether attention patterns are replaced."""
        return self.hook == PATTERN

    def layers(self, count: int) -> Sequence[int]:
        """The blocks that have the hook, in a network of ``count``."""
        return range(count) if self.layer is None else [self.layer]

    def entry(self, layer: int) -> int:
        """The layer whose input is the first residual stream that a patch in ``layer`` changes."""
        return layer if self.changes == "own" else layer + 1


BY_POS = ("layer", "pos")
BY_HEAD = ("layer", "pos", "head")
ALL_POS = ("layer", "head")
BY_DEST = ("layer", "head", "pos")
BY_WEIGHT = ("layer", "head", "pos", "source_pos")

_Z, _Q, _K, _V = "attn.hook_z", "attn.hook_q", "attn.hook_k", "attn.hook_v"

SITES = {
    site.name: site
    for site in (
        Site("resid_pre", BY_POS, "hook_resid_pre", "one", effects.as_residual, "own"),
        Site("resid_mid", BY_POS, "hook_resid_mid", "one", effects.as_resid_mid),
        Site("resid_post", BY_POS, "hook_resid_post", "one", effects.as_residual),
        Site("attn_out", BY_POS, "hook_attn_out", "one", effects.as_attn_out),
        Site("mlp_out", BY_POS, "hook_mlp_out", "one", effects.as_mlp_out),
        Site("z", BY_HEAD, _Z, "one", as_z(effects.z_itself)),
        Site("q", BY_HEAD, _Q, "one", as_z(effects.z_of_queries)),
        Site("k", BY_HEAD, _K, "onward", effects.one_key),
        Site("v", BY_HEAD, _V, "onward", effects.one_value),
        Site("z_all_pos", ALL_POS, _Z, "all", as_z(effects.z_itself)),
        Site("q_all_pos", ALL_POS, _Q, "all", as_z(effects.z_of_queries)),
        Site("k_all_pos", ALL_POS, _K, "all", as_z(effects.z_of_keys)),
        Site("v_all_pos", ALL_POS, _V, "all", as_z(effects.z_of_values)),
        Site("pattern_all_pos", ALL_POS, PATTERN, "all", as_z(effects.z_of_patterns)),
        Site("pattern_by_dest", BY_DEST, PATTERN, "one", as_z(effects.z_of_patterns)),
        Site("pattern_by_dest_source", BY_WEIGHT, PATTERN, "one", effects.one_weight),
    )
}
"""Every site by name."""


SiteName = str | ShortForm
"""What users type: a name of ``SITES``, or name, alias or short form of a hook point."""


def find_sites(
    asked: SiteName | Sequence[SiteName],
    parallel: bool,
    points: Mapping[str, HookPoint] | None = None,
    entries: Selection = None,
    sizes: Mapping[str, int] | None = None,
    all_pos: bool = False,
) -> list[Site]:
    """The sites asked for.

    Args:
        asked: a name, or several names of sites with the same axes.
        parallel: whether the model's blocks are parallel, which have no ``resid_mid``.
        points: hook points that may be named, too.
        entries: of their last axis, see ``Site``; None for all in one cell.
        sizes: lengths of the network's axes, if there are entries.
        all_pos: of hook points with entries, a cell is an entry at all positions together.

    Raises:
        InputError: an unknown site, none at all, several whose cells do not correspond, or
            entries that a hook point does not have.
        HookNameError: ``resid_mid`` of parallel blocks, or a hook point that is not there.
    """
    one = isinstance(asked, str) or _is_short_form(asked)
    names: list[Any] = [asked]
    if not one:
        names = several("site", asked, "a site, or a list of sites", InputError)
    sites = [_find_site(name, parallel, points or {}) for name in names]
    if entries is not None:
        sites = [_by_entry(site, entries, points or {}, sizes or {}) for site in sites]
    if all_pos and entries is None:
        raise InputError("positions='all' is for entries of a hook point; name them: entries=[..].")
    if all_pos:
        sites = [replace(site, axes=site.axes[1:], place="all") for site in sites]
    axes = {tuple(sorted(site.axes)) for site in sites}
    if len(axes) != 1:
        shown = ", ".join(f"{site.name} ({', '.join(site.axes)})" for site in sites)
        raise InputError(
            "Several sites make one result only if they have the same axes; got "
            f"{shown or 'no site'}. Sweep them one by one."
        )
    return sites


def _is_short_form(name: object) -> bool:
    return isinstance(name, tuple) and len(name) > 1 and isinstance(name[1], int)


def _find_site(name: SiteName, parallel: bool, points: Mapping[str, HookPoint]) -> Site:
    """The site called ``name``."""
    if name == "resid_mid" and parallel:
        raise HookNameError(
            "There is no resid_mid in this model: its blocks are parallel "
            "(use_parallel_residual=True), attention and MLP both read resid_pre, so nothing "
            "lies between them. Patch attn_out or mlp_out instead."
        )
    if isinstance(name, str) and name in SITES:
        return SITES[name]
    if points and (_is_short_form(name) or (isinstance(name, str) and "hook_" in name)):
        return _hook_site(points[exact(name, points)])
    for point in points.values():
        if name in point.aliases:
            return _hook_site(point)
    known = ", ".join(SITES) + (" or a hook point" if points else "")
    raise InputError(f"site={shown(name)}; expected one of {known}.{nearest(name, SITES)}")


def _hook_site(point: HookPoint) -> Site:
    """One hook point as a site of its own: a cell replaces all that stands at one position.

    Raises:
        InputError: a hook point without positions, or outside the blocks.
    """
    inside = point.layer is not None or point.name.startswith("hook_embed")
    if point.axes[:2] != ("batch", "pos") or not inside:
        raise InputError(
            f"site={point.name!r} has the axes {list(point.axes)}; a hook point can be swept by "
            "position if these begin with batch and pos, and if it is hook_embed or in a block."
        )
    layer = -1 if point.layer is None else point.layer
    return Site(point.name, ("pos",), point.name, "one", None, "own", layer)


def _by_entry(
    site: Site, entries: Selection, points: Mapping[str, HookPoint], sizes: Mapping[str, int]
) -> Site:
    """A hook point as a site with a cell for each position and entry of its last axis.

    Raises:
        InputError: another site, no such axis, or no entries of it.
    """
    axes = points[site.name].axes[2:] if site.effect is None else ()
    numbers: list[int] = []
    if len(axes) == 1:
        size = shape_at(points[site.name], sizes)[-1]
        found = entries_of("entries", entries, size, InputError)
        found = [found] if isinstance(found, int) else found
        numbers = list(range(size)[found]) if isinstance(found, slice) else found
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(
            f"entries={shown(entries)} are different numbers along the third axis of a hook point "
            f"with three; the site is {site.name}"
            + (f" [batch, pos, {', '.join(axes)}]." if axes else ".")
        )
    return replace(site, axes=("pos", *axes), entries=tuple(numbers))


def refuse_moved(sites: list[Site]) -> None:
    """Raise if a patch from other columns than those it goes to makes no sense at one of them.

    Raises:
        InputError: a site replaces all positions, or attention weights.
    """
    for site in sites:
        if site.place == "all" or site.is_pattern:
            raise InputError(
                f"{site.name} goes by all positions of the prompt, so both prompts of a pair must "
                "have the same length, and positions the same place in both."
            )
