"""Finding a direction: from examples of two kinds, a probe, or a dictionary of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from neox_lab.activations.stored import Stored
from neox_lab.checks import COUNT, SEED, check, one_of, require_model, several, shown
from neox_lab.data.activations import site_names
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.experiments.probing import probe
from neox_lab.experiments.probing_result import ProbeResult
from neox_lab.family.contract import HookedModel
from neox_lab.hooks.names import exact
from neox_lab.model.identity import identity
from neox_lab.other_names import DIRECTIONS, names_ours_of
from neox_lab.sae.dictionary import Dictionary
from neox_lab.selections import entry
from neox_lab.steering import fitting
from neox_lab.steering.contrast import Contrast, Reading, of_stored, of_texts, sides
from neox_lab.steering.directions import AtSite, Direction, aside
from neox_lab.steering.widths import check_widths, one_width

METHODS = (*fitting.METHODS, "probe", "feature")
SHUFFLINGS, CONTROLS = 3, 8
"""How often labels are shuffled: to see what is told apart then, and for directions to steer by."""
Site = str | tuple[str, int] | Sequence[str | tuple[str, int]]
"""``"resid_post"`` (of every layer), a hook name, a glob, ``("resid_post", 2)``, or several."""


@names_ours_of(*DIRECTIONS)
def direction(
    model: HookedModel,
    positive: Sequence[str] | Sequence[tuple[str, str]] | Stored | ProbeResult | Dictionary,
    negative: Sequence[str] | Stored | None = None,
    *,
    site: Site | None = None,
    method: str = "mean_difference",
    positions: Reading = "last",
    labels: Sequence[object] | None = None,
    feature: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Direction:
    """Find the direction that leads from negative examples to positive ones.

        happy = nl.steering.direction(model, good, bad, site=("resid_post", 2))
        happy                                   # what it tells apart, beside shuffled labels
        with happy.steer(scale=2.0):
            model.generate("The film was")

    Whatever the method, the vector is as long as the positive examples lie beyond the negative
    ones along it, so that a scale of 1 means the same for all.

    Args:
        model: any of the classes, with a tokenizer.
        positive: texts; pairs (positive, negative); collected activations (see
            ``nl.activations``), of which nothing is run; for ``"probe"`` also what
            ``nl.probing.probe`` returned; for ``"feature"`` a dictionary.
        negative: texts, or collected activations. As many texts as positive ones are pairs.
        site: where: such as ``"resid_post"`` (of every layer), a hook name, a glob,
            ``("resid_post", 2)``, or several of one width. What is read there is what is written
            there, at the last layer too: ``resid_post`` is before the final layer norm. A probe
            and a dictionary know theirs.
        method: ``"mean_difference"``; ``"pca"``, the first principal component of the differences
            about zero, its sign by the mean; ``"logistic"``, the normal of a logistic regression's
            boundary; ``"probe"``, that of a probe of ``nl.probing``; ``"feature"``, what a feature
            of a dictionary writes.
        positions: which token of each text is read: ``"last"``, a position or one for each text
            (-1 is the last), ``nl.steering.token(" A")``; ``"mean"`` and ``"all"`` read all but
            the first.
        labels: one for each text of ``positive``, of two kinds: the second in order is positive.
        feature: number of the feature.
        batch_size: texts in one forward pass.
        seed: of the controls.

    Raises:
        InputError: dropout is on, an unknown method or position, sites of unequal width, or
            examples that are the same there.
        DataError: no examples of a kind, labels of one kind only, texts that cannot be read.
        HookNameError: no such site.
        CheckpointError: activations of another model.
    """
    refuse_dropout(model)
    require_model(model)
    check("method", method, one_of(*METHODS), InputError)
    batch_size = check("batch_size", batch_size, COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    if method == "feature":
        return _of_feature(model, positive, feature)
    if method == "probe" and isinstance(positive, ProbeResult):
        names = [each.name for each in positive.probes] if site is None else _names(model, site)
        return _of_probe(model, positive, names, None)
    names = _names(model, site)
    if isinstance(positive, Stored):
        if method == "probe":
            raise InputError(
                "give nl.probing.probe(model, stored, labels) as positive for a probe on collected "
                "activations"
            )
        kind = negative if isinstance(negative, Stored | None) else None
        if kind is not negative:
            raise InputError("positive are collected activations and negative are not")
        found = of_stored(model, positive, kind, labels, names, positions)
        return _fitted(model, found, method, seed)
    if isinstance(negative, Stored) or isinstance(positive, ProbeResult | Dictionary):
        raise InputError(
            f"positive is a {type(positive).__name__}; expected texts, or collected activations on "
            "both sides (a ProbeResult goes with method='probe', a Dictionary with 'feature')"
        )
    first, other = sides(positive, negative, labels)
    found = of_texts(model, first, other, names, positions, batch_size)
    if method == "probe":
        pos = -1 if positions == "last" else positions
        if not isinstance(pos, int | list | tuple):
            raise InputError(
                f"a probe reads one position of a text, not {shown(positions)}; one of mean "
                "activations, first tokens included, is found with nl.probing.probe(..., "
                "pos='mean') and given as positive"
            )
        kinds = [1] * len(first) + [0] * len(other)
        result = probe(model, [*first, *other], kinds, names, pos, seed=seed)
        return _of_probe(model, result, names, found)
    return _fitted(model, found, method, seed)


def _names(model: HookedModel, site: Site | None) -> list[str]:
    """Hook names of the sites, in the order of the forward pass.

    Raises:
        InputError: none was named, or they are of different widths.
        HookNameError: there is no such site.
    """
    if site is None:
        raise InputError("say where: site='resid_post', a hook name, or ('resid_post', 2)")
    asked: list[str | tuple[str, int]] = [site]  # type: ignore[list-item]
    if not isinstance(site, str | tuple):
        asked = several("site", site, "a site, or several", InputError)
    listed = [s if isinstance(s, str) else exact(s, model.hook_points) for s in asked]
    found = site_names(model, listed)
    order = list(model.hook_points)
    found.sort(key=order.index)
    one_width(model, found)
    return found


def _fitted(model: HookedModel, found: Contrast, method: str, seed: int) -> Direction:
    """A direction from activations of two kinds, with its controls."""
    sites = {}
    for name, p in found.positive.items():
        n = found.negative[name]
        try:
            vector = fitting.fitted(method, p, n, found.paired)
        except InputError as error:
            raise InputError(f"at {name!r} {error}") from None
        sites[name] = _judged(vector, found, name, method, seed)
    return _made(model, sites, method, found.positions)


def _judged(vector: Tensor, found: Contrast, name: str, method: str, seed: int) -> AtSite:
    """What a vector is worth at a site: how long it is there, what it tells apart, its nulls."""
    generator = torch.Generator().manual_seed(seed)
    p, n, paired = found.positive[name], found.negative[name], found.paired
    length = vector.norm()
    nulls = [fitting.shuffled(method, p, n, paired, generator) for _ in range(CONTROLS)]
    beside = [aside(null, vector) for null in nulls if null is not None]
    draws = [null for null in beside if null is not None]
    return AtSite(
        vector,
        found.norms[name],
        float((n @ (vector / length)).double().mean()),
        fitting.separation(method, p, n, paired, generator),
        fitting.null_separation(method, p, n, paired, generator, SHUFFLINGS),
        torch.stack(draws) if draws else torch.empty(0, len(vector), dtype=torch.float32),
    )


def _of_probe(
    model: HookedModel, result: ProbeResult, names: Sequence[str], found: Contrast | None
) -> Direction:
    """The directions of probes, as long as the examples lie apart along them, if there are any."""
    if len(result.labels) not in (0, 2):
        raise InputError(
            f"this probe tells {len(result.labels)} classes apart; a direction leads from one to "
            "another of two"
        )
    one_width(model, names)
    sites = {name: AtSite(result.direction(name)) for name in names}
    check_widths(model, {name: at.vector for name, at in sites.items()})
    if found is None:
        return _made(model, sites, "probe", str(result.where))
    for name, at in sites.items():
        p, n = found.positive[name], found.negative[name]
        beyond = (p @ at.vector).mean() - (n @ at.vector).mean()
        judged = _judged(at.vector * beyond, found, name, "logistic", 0)
        score, control = result[name].score, result[name].control
        sites[name] = replace(judged, separation=score, null=control)
    return _made(model, sites, "probe", found.positions)


def _of_feature(model: HookedModel, dictionary: object, feature: object) -> Direction:
    """What a feature of a dictionary writes where the dictionary writes."""
    if not isinstance(dictionary, Dictionary):
        raise InputError(
            f"positive={shown(dictionary, 80)}; with method='feature' expected a dictionary, such "
            "as nl.sae.load returns, and feature=its number"
        )
    number = entry("feature", feature, dictionary.latents, InputError)
    vector = dictionary.rows[number].detach().float().cpu().clone()
    name = exact(dictionary.site_out, model.hook_points)
    check_widths(model, {name: vector})
    if not float(vector.norm()) > 0:
        raise InputError(f"feature {number} writes nothing")
    return _made(model, {name: AtSite(vector)}, f"feature {number}", "everywhere")


def _made(model: HookedModel, sites: dict[str, AtSite], method: str, positions: str) -> Direction:
    """The direction, which knows its model."""
    for name, at in sites.items():
        if not math.isfinite(at.norm) or at.norm == 0:
            raise InputError(f"the direction at {name!r} is zero or not finite")
    called = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return Direction(sites, method, positions, called, identity(model), model)
