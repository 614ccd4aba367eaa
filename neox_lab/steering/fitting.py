"""From activations of two kinds to a direction, and how well it tells unseen ones apart.

Whatever the method, the vector is as long as the positive examples lie, on average, beyond the
negative ones along it: adding it once moves a negative example to where the positive ones are.

The principal component is that of the differences *as they are*. Implementations that subtract
the mean first look for how differences differ from each other, and remove the very mean that a
direction is made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neox_lab.errors import InputError

METHODS = ("mean_difference", "pca", "logistic")


def fitted(method: str, positive: Tensor, negative: Tensor, paired: bool) -> Tensor:
    """A direction ``[d]``, float32.

    Args:
        method: one of ``METHODS``.
        positive: ``[row, d]``.
        negative: ``[row, d]``.
        paired: row i of one belongs to row i of the other.

    Raises:
        InputError: both kinds have the same mean, so no direction leads from one to the other.
    """
    p, n = positive.double(), negative.double()
    mean = p.mean(dim=0) - n.mean(dim=0)
    largest = max(float(p.abs().amax()), float(n.abs().amax()), 1e-30)
    if float(mean.norm()) <= 1e-6 * largest:
        raise InputError(
            "positive and negative examples have the same activations there, so no direction "
            "leads from one to the other. Texts that end in the same token are the same to the "
            "first layer: choose a later site or other positions."
        )
    if method == "mean_difference":
        return mean.float()
    unit = (_component if method == "pca" else _boundary)(p, n, paired)
    beyond = unit @ mean
    if abs(float(beyond)) <= 1e-6 * float(mean.norm()):
        raise InputError(
            f"the direction that {method!r} finds is at right angles to the mean difference, so "
            "nothing says where it points; use 'mean_difference' or more examples"
        )
    return (unit * beyond).float()  # points where the positive ones are


def _centred(p: Tensor, n: Tensor, paired: bool) -> tuple[Tensor, Tensor]:
    """Rows minus the middle of their pair, or of the two means."""
    middle = (p + n) / 2 if paired else (p.mean(dim=0) + n.mean(dim=0)) / 2
    return p - middle, n - middle


def _component(p: Tensor, n: Tensor, paired: bool) -> Tensor:
    """The first principal component of the differences, about zero; unit length."""
    above, below = _centred(p, n, paired)
    rows = above if paired else torch.cat((above, below))
    return torch.linalg.svd(rows, full_matrices=False).Vh[0]


def _boundary(p: Tensor, n: Tensor, paired: bool) -> Tensor:
    """Normal of the boundary of a logistic regression without intercept; unit length."""
    from sklearn.linear_model import LogisticRegression

    above, below = _centred(p, n, paired)
    rows = torch.cat((above, below))
    rows = rows / rows.square().mean().sqrt()
    labels = [1] * len(above) + [0] * len(below)
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    weight = torch.from_numpy(model.fit(rows.numpy(), labels).coef_[0])
    return weight / weight.norm()


def shuffled(
    method: str,
    positive: Tensor,
    negative: Tensor,
    paired: bool,
    generator: torch.Generator,
) -> Tensor | None:
    """What the method finds where labels say nothing: a unit vector ``[d]``, float32.

    Half of the labels change sides, evenly: labels that were merely permuted would leave some of
    the difference in, either way round. A principal component does not know labels, so its null is
    that of differences between examples of the same kind.

    Args:
        method: see ``fitted``.
        positive: ``[row, d]``.
        negative: ``[row, d]``.
        paired: see ``fitted``; the two of a pair change places.
        generator: of the shuffling.

    Returns:
        None where there are too few examples to shuffle, or nothing is left.
    """
    if min(len(positive), len(negative)) < 2:
        return None
    if method == "pca":
        orders = [torch.randperm(len(side), generator=generator) for side in (positive, negative)]
        rows = [
            side[o] - side[o.roll(1)] for side, o in zip((positive, negative), orders, strict=True)
        ]
        return torch.linalg.svd(torch.cat(rows).double(), full_matrices=False).Vh[0].float()
    first, second = (_paired if paired else _mixed)(positive, negative, generator)
    try:
        found = fitted(method, first, second, paired)
    except InputError:
        return None
    return found / found.norm()


def _paired(p: Tensor, n: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pairs the other way round."""
    change = torch.zeros(len(p), 1, dtype=torch.bool)
    change[torch.randperm(len(p), generator=generator)[: len(p) // 2]] = True
    return torch.where(change, n, p), torch.where(change, p, n)


def _mixed(p: Tensor, n: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two sides of the same sizes, each with as many of both kinds as its size allows."""
    share = len(p) / (len(p) + len(n))
    kept, rest = [], []
    for side in (p, n):
        order = torch.randperm(len(side), generator=generator)
        count = max(1, min(len(side) - 1, round(share * len(side))))
        kept.append(side[order[:count]])
        rest.append(side[order[count:]])
    return torch.cat(kept), torch.cat(rest)


def separation(
    method: str, positive: Tensor, negative: Tensor, paired: bool, generator: torch.Generator
) -> float:
    """How often an unseen positive example lies beyond an unseen negative one.

    The direction is found in one half and tried on the other, both ways. 0.5 is chance.

    Args:
        method: see ``fitted``.
        positive: ``[row, d]``.
        negative: ``[row, d]``.
        paired: see ``fitted``.
        generator: of the halves.

    Returns:
        The area under the curve of the receiver, the mean of both halves; NaN for less than four
        examples of a kind.
    """
    if min(len(positive), len(negative)) < 4:
        return float("nan")
    order = torch.randperm(len(positive), generator=generator)
    other = order if paired else torch.randperm(len(negative), generator=generator)
    p, n = positive[order].chunk(2), negative[other].chunk(2)
    shares = []
    for trained, tested in ((0, 1), (1, 0)):
        try:
            vector = fitted(method, p[trained], n[trained], paired)
        except InputError:  # no difference in this half: it tells nothing apart
            shares.append(0.5)
            continue
        above, below = (p[tested] @ vector)[:, None], (n[tested] @ vector)[None]
        ties = (above == below).double().mean() / 2
        shares.append(float((above > below).double().mean() + ties))
    return sum(shares) / 2


def null_separation(
    method: str,
    positive: Tensor,
    negative: Tensor,
    paired: bool,
    generator: torch.Generator,
    draws: int,
) -> float:
    """``separation`` with shuffled labels, the mean of some shufflings."""
    if min(len(positive), len(negative)) < 4:
        return float("nan")
    found = []
    for _ in range(draws):
        first, second = (_paired if paired else _mixed)(positive, negative, generator)
        found.append(separation(method, first, second, paired, generator))
    return sum(found) / len(found)
