"""The questions: does a site carry a variable, and which part of it does?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neox_lab.checks import SEED, SWITCH, check, number, shown, whole
from neox_lab.dropout import refuse_dropout
from neox_lab.errors import InputError
from neox_lab.interchange.cached_runs import CachedRuns
from neox_lab.interchange.nulls import of_directions, random_rows, trained_rows
from neox_lab.interchange.outcomes import FOUND, WHOLE, InterchangeResult, result_of
from neox_lab.interchange.pairs import Pairs, ReadPairs, read_pairs
from neox_lab.interchange.sites import Site, find_point
from neox_lab.interchange.subspaces import BoundedRotation, CoordinateMask, Rotation, Subspace
from neox_lab.interchange.training import Settings, train
from neox_lab.other_names import INTERCHANGED, names_ours_of

if TYPE_CHECKING:
    from neox_lab.family.contract import HookedModel

_COUNT, _RATE = whole(least=1, most=10**6), number(above=0, most=10)
_DRAWS = whole(least=0, most=1000)


@names_ours_of(*INTERCHANGED)
def accuracy(
    model: HookedModel, pairs: Pairs, site: Site, *, batch_size: int = 64, seed: int = 0
) -> InterchangeResult:
    """How often exchanging a site, or a subspace of it, does what a causal model says.

    Args:
        model: a language model or a text classifier.
        pairs: of which those whose label changes are counted.
        site: what is exchanged.
        batch_size: pairs in a run.
        seed: of the random subspaces that a subspace is compared with.

    Raises:
        InputError: pairs or a site that do not fit, see ``Pairs`` and ``Site``.
        HookNameError: there is no such hook point.
        HookError: a function is spliced into the model.
    """
    refuse_dropout(model)
    batch_size = check("batch_size", batch_size, _COUNT, InputError)
    seed = check("seed", seed, SEED, InputError)
    find_point(site, model)
    runs = CachedRuns(model, read_pairs(model, pairs), site)
    if site.subspace is None:
        rows = {WHOLE: of_directions(runs, None, batch_size)}
    else:
        rows = {FOUND: of_directions(runs, site.subspace, batch_size)}
        rows |= random_rows(runs, site.subspace.shape[1], batch_size, seed)
    return result_of(
        runs, rows, site, pairs.variable, pairs.chance, torch.zeros(0, dtype=torch.float32)
    )


@names_ours_of(*INTERCHANGED)
def das(
    model: HookedModel,
    pairs: Pairs,
    held_out: Pairs,
    site: Site,
    rank: int = 1,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    seed: int = 0,
    nulls: int = 5,
    progress: bool = True,
) -> InterchangeResult:
    """Find directions at a site that carry a variable: distributed alignment search.

    Geiger et al., arXiv:2303.02536. Only the layers above the site run, from its first position on.

    Args:
        model: a language model or a text classifier; its weights stay what they are.
        pairs: to train on, those whose label does not change included.
        held_out: to test on, other pairs.
        site: where to look; without a subspace.
        rank: how many directions.
        epochs: how often each pair is seen.
        batch_size: pairs in a step.
        learning_rate: the largest of Adam's; it rises for a tenth of the steps, then falls to 0.
        seed: of the first directions, of the order of pairs and of the nulls.
        nulls: how often each null that must be trained is drawn: on permuted labels, and in a
            model with fresh weights. Each draw of each takes as long as the finding; 0 for none.
            Random subspaces are always tried.
        progress: show a bar.

    Raises:
        InputError: pairs, a site or a number that do not fit, or pairs on both sides.
        HookNameError: there is no such hook point.
        HookError: a function is spliced into the model.
    """
    settings = read_settings(epochs, batch_size, learning_rate, seed, progress)

    def make(runs: CachedRuns, chosen: torch.Generator) -> Subspace:
        return Rotation(runs.width, rank, chosen, *_kind(runs))

    return _search(model, pairs, held_out, site, make, rank, nulls, settings)


@names_ours_of(*INTERCHANGED)
def boundless(
    model: HookedModel,
    pairs: Pairs,
    held_out: Pairs,
    site: Site,
    most: int = 16,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    seed: int = 0,
    nulls: int = 5,
    progress: bool = True,
) -> InterchangeResult:
    """The same where the number of directions is learned, too: boundless DAS.

    Wu et al., arXiv:2305.08809. A boundary between directions that are exchanged and others is part
    of the loss, so the fewest directions that do the job are looked for. The rotation has ``most``
    directions; with as many as the site is wide it is theirs.

    Args:
        model: see ``das``.
        pairs: to train on.
        held_out: to test on, other pairs.
        site: where to look.
        most: the largest number of directions.
        epochs: how often each pair is seen.
        batch_size: pairs in a step.
        learning_rate: of the rotation; that of the boundary is ten times as large.
        seed: see ``das``.
        nulls: see ``das``.
        progress: show a bar.

    Raises:
        InputError: pairs, a site or a number that do not fit, or pairs on both sides.
        HookNameError: there is no such hook point.
        HookError: a function is spliced into the model.
    """
    settings = read_settings(epochs, batch_size, learning_rate, seed, progress)

    def make(runs: CachedRuns, chosen: torch.Generator) -> Subspace:
        return BoundedRotation(runs.width, most, chosen, *_kind(runs))

    return _search(model, pairs, held_out, site, make, most, nulls, settings)


@names_ours_of(*INTERCHANGED)
def mask(
    model: HookedModel,
    pairs: Pairs,
    held_out: Pairs,
    site: Site,
    sparsity: float = 0.1,
    *,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-1,
    seed: int = 0,
    nulls: int = 5,
    progress: bool = True,
) -> InterchangeResult:
    """Find which of a site's own numbers carry a variable: no rotation, a weight for each.

    Weights are sigmoids that become 0 or 1 as training goes on.

    Args:
        model: see ``das``.
        pairs: to train on.
        held_out: to test on, other pairs.
        site: where to look.
        sparsity: how much it counts as loss that all numbers are exchanged.
        epochs: how often each pair is seen.
        batch_size: pairs in a step.
        learning_rate: of the sigmoids' arguments.
        seed: see ``das``.
        nulls: see ``das``.
        progress: show a bar.

    Raises:
        InputError: pairs, a site or a number that do not fit, or pairs on both sides.
        HookNameError: there is no such hook point.
        HookError: a function is spliced into the model.
    """
    sparsity = check("sparsity", sparsity, number(least=0, most=1e6), InputError)

    settings = read_settings(epochs, batch_size, learning_rate, seed, progress)

    def make(runs: CachedRuns, chosen: torch.Generator) -> Subspace:
        return CoordinateMask(runs.width, sparsity, *_kind(runs))

    return _search(model, pairs, held_out, site, make, 1, nulls, settings)


def read_settings(
    epochs: object, batch_size: object, learning_rate: object, seed: object, progress: object
) -> Settings:
    """Settings of training, checked.

    Raises:
        InputError: one that is no such number.
    """
    return Settings(
        check("epochs", epochs, _COUNT, InputError),
        check("batch_size", batch_size, _COUNT, InputError),
        check("learning_rate", learning_rate, _RATE, InputError),
        check("seed", seed, SEED, InputError),
        check("progress", progress, SWITCH, InputError),
    )


def _search(
    model: HookedModel,
    pairs: Pairs,
    held_out: Pairs,
    site: Site,
    make: Callable[[CachedRuns, torch.Generator], Subspace],
    rank: object,
    nulls: object,
    settings: Settings,
) -> InterchangeResult:
    """Train on some pairs, test on others, and do the same where nothing can be found."""
    refuse_dropout(model)
    draws = check("nulls", nulls, _DRAWS, InputError)
    find_point(site, model)
    if site.subspace is not None:
        raise InputError(
            "The site has a subspace already. nl.interchange.accuracy tests it; to look for one, "
            "name the site without it."
        )
    own, other = read_pairs(model, pairs), read_pairs(model, held_out, "held_out")
    if bool((own.labels == own.labels[0]).all()):
        raise InputError(
            f"All labels of pairs are {shown(pairs.labels[0])}: whatever gives it would look like "
            "the variable, and labels that are all the same cannot be permuted. Add pairs with "
            "other labels."
        )
    _refuse_shared(held_out, own, other)
    learning, tested = CachedRuns(model, own, site), CachedRuns(model, other, site)
    if learning.width != tested.width:
        raise InputError(
            f"At this site there are {learning.width} numbers in the pairs and {tested.width} in "
            "those held out, which are of another length. Name positions, or use one length."
        )
    rank = check("rank", rank, whole(least=1), InputError)
    if rank > learning.width:
        raise InputError(
            f"rank={rank}; there are {learning.width} numbers at this site, so at most as many "
            "directions."
        )

    def find(runs: CachedRuns, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        drawn = dataclasses.replace(settings, seed=seed)
        subspace = make(runs, torch.Generator().manual_seed(seed))
        losses = train(runs, labels, subspace, drawn)
        return subspace.directions(), losses

    size, seed = settings.batch_size, settings.seed
    directions, losses = find(learning, own.labels, seed)
    rows = {FOUND: of_directions(tested, directions, size)}
    rows |= random_rows(tested, directions.shape[1], size, seed)
    rows |= trained_rows(find, learning, tested, pairs, size, [seed + n for n in range(draws)])
    rows[WHOLE] = of_directions(tested, None, size)
    found = dataclasses.replace(site, subspace=directions.cpu())
    return result_of(tested, rows, found, held_out.variable, held_out.chance, losses)


def _kind(runs: CachedRuns) -> tuple[torch.dtype, torch.device]:
    """Of the numbers of a subspace: as wide as those of the model, at least float32."""
    return torch.promote_types(runs.source.dtype, torch.float32), runs.source.device


def _refuse_shared(held_out: Pairs, own: ReadPairs, other: ReadPairs) -> None:
    """Raise where a pair to test on has the tokens of one to train on.

    Raises:
        InputError: there is one.
    """
    known = set(_tokens(own))
    for row, tokens in enumerate(_tokens(other)):
        if tokens in known:
            pair = held_out.base[row], held_out.source[row]
            raise InputError(
                f"Pair {row} of held_out, {shown(pair, 120)}, is one of the pairs to train on. "
                "Accuracy is of pairs that training has not seen: pairs.split() makes two sets."
            )


def _tokens(pairs: ReadPairs) -> Iterator[tuple[tuple[int, ...], ...]]:
    """The tokens of each base and its source, without padding."""
    sides = [
        [tuple(ids[own].tolist()) for ids, own in zip(side.ids, side.own, strict=True)]
        for side in (pairs.base, pairs.source)
    ]
    return zip(*sides, strict=True)
