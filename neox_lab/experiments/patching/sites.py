"""Where one can patch: each site with its axes, its hook point, and what a patch there changes.

place    axes               what one cell replaces
one      layer, pos[, head] the activation at one position
onward   layer, pos, head   a key or value at one position, which every later query sees
all      layer, head        the activation of one head at every position
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neox_lab.errors import HookNameError, InputError, nearest

Place = Literal["one", "onward", "all"]


@dataclass(frozen=True)
class Site:
    """One kind of patch.

    Attributes:
        name: what users type.
        axes: of the result.
        hook: the hook point whose tensor is replaced, relative to its block.
        place: which positions a cell replaces, see the module.
    """

    name: str
    axes: tuple[str, ...]
    hook: str
    place: Place

    @property
    def by_head(self) -> bool:
        """Whether a cell replaces one head's part."""
        return "head" in self.axes

    @property
    def is_pattern(self) -> bool:
        """Whether attention patterns are replaced."""
        return self.hook == "attn.hook_pattern"

    def entry(self, layer: int) -> int:
        """The layer whose input is the first residual stream that a patch in ``layer`` changes."""
        return layer if self.name == "resid_pre" else layer + 1


_BY_POS = ("layer", "pos")
_BY_HEAD = ("layer", "pos", "head")
_ALL_POS = ("layer", "head")

SITES = {
    site.name: site
    for site in (
        Site("resid_pre", _BY_POS, "hook_resid_pre", "one"),
        Site("resid_mid", _BY_POS, "hook_resid_mid", "one"),
        Site("resid_post", _BY_POS, "hook_resid_post", "one"),
        Site("attn_out", _BY_POS, "hook_attn_out", "one"),
        Site("mlp_out", _BY_POS, "hook_mlp_out", "one"),
        Site("z", _BY_HEAD, "attn.hook_z", "one"),
        Site("q", _BY_HEAD, "attn.hook_q", "one"),
        Site("k", _BY_HEAD, "attn.hook_k", "onward"),
        Site("v", _BY_HEAD, "attn.hook_v", "onward"),
        Site("z_all_pos", _ALL_POS, "attn.hook_z", "all"),
        Site("q_all_pos", _ALL_POS, "attn.hook_q", "all"),
        Site("k_all_pos", _ALL_POS, "attn.hook_k", "all"),
        Site("v_all_pos", _ALL_POS, "attn.hook_v", "all"),
        Site("pattern_all_pos", _ALL_POS, "attn.hook_pattern", "all"),
        Site("pattern_by_dest", ("layer", "head", "pos"), "attn.hook_pattern", "one"),
        Site(
            "pattern_by_dest_source",
            ("layer", "head", "pos", "source_pos"),
            "attn.hook_pattern",
            "one",
        ),
    )
}
"""Every site by name."""


def find_sites(asked: str | list[str] | tuple[str, ...], parallel: bool) -> list[Site]:
    """The sites asked for.

    Args:
        asked: a name, or several names of sites with the same axes.
        parallel: whether the model's blocks are parallel, which have no ``resid_mid``.

    Raises:
        InputError: an unknown site, none at all, or several whose cells do not correspond.
        HookNameError: ``resid_mid`` of parallel blocks.
    """
    names = [asked] if isinstance(asked, str) else list(asked)
    for name in names:
        if name not in SITES:
            raise InputError(
                f"site={name!r}; expected one of {', '.join(SITES)}.{nearest(str(name), SITES)}"
            )
        if name == "resid_mid" and parallel:
            raise HookNameError(
                "There is no resid_mid in this model: its blocks are parallel "
                "(use_parallel_residual=True), attention and MLP both read resid_pre, so nothing "
                "lies between them. Patch attn_out or mlp_out instead."
            )
    sites = [SITES[name] for name in names]
    axes = {tuple(sorted(site.axes)) for site in sites}
    if len(axes) != 1:
        shown = ", ".join(f"{site.name} ({', '.join(site.axes)})" for site in sites)
        raise InputError(
            "Several sites make one result only if they have the same axes; got "
            f"{shown or 'no site'}. Sweep them one by one."
        )
    return sites


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
