"""How the kinds of dictionaries are trained: their losses, and what is done between steps.

    every kind     FVU = sum |y - ŷ|² / sum |y - mean y|²          over the rows of a batch
    topk, batchtopk    + auxiliary * min(1, dead / k_aux) * sum |e - ê|² / sum |y - mean y|²
    jumprelu           + sparsity * (L0 / k - 1)²
    relu               + sparsity * sum f |W_dec| / sum |y - mean y|²

``e = y - ŷ`` is what was missed and ``ê`` what the k_aux = d / 2 largest dead features make of it
(AuxK, Gao et al., arXiv:2406.04093); a feature is dead that was not active for ``dead_after``
rows. BatchTopK (Bussmann et al., arXiv:2412.06410) takes the k * rows largest of a batch, and
afterwards what is above the running mean of the smallest that was taken. JumpReLU has gradients for
its thresholds by a rectangle of some bandwidth (Rajamanoharan et al., arXiv:2407.14435), with the
penalty that aims at an L0. ReLU is Anthropic's of April 2024: its decoder rows are free, and their
norms are in the penalty, which here rises for half of the steps. With all others decoder rows have
norm 1, and of their gradient only what turns them is kept.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from neox_lab.checks import check, number, one_of, or_none, whole
from neox_lab.errors import InputError
from neox_lab.sae.activations import Activation, JumpReLU, ReLU, TopK
from neox_lab.sae.dictionary import Dictionary, Weights
from neox_lab.sae.sparse_products import batch_top_k, selected, summed, top_k

Kind = Literal["topk", "batchtopk", "jumprelu", "relu"]
KINDS = ("topk", "batchtopk", "jumprelu", "relu")
CALLED = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "relu": "ReLU"}
_AT_ONCE = 0.01  # how much of the present step goes into the running threshold of BatchTopK


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is seldom changed about training.

    Attributes:
        learning_rate: of Adam (betas 0.9 and 0.999, gradient clipped to norm 1); None for
            ``2e-4 / sqrt(latents / 2**14)``, which is Gao et al.'s and here used for all kinds.
            Papers train ReLU at 5e-5 and JumpReLU at 7e-5, for some hundred thousand steps.
        warm_up: share of the steps in which the rate rises.
        penalty_warm_up: share of the steps in which the penalty rises; None for 0.5 (relu) and
            0.05 (jumprelu). Anthropic's ReLU has 0.05, of some hundred thousand steps; of a
            thousand that is so few that some features never form.
        decay: share of the steps, at the end, in which the rate falls to 0.
        centre: where ``b_dec`` begins, ``"mean"`` or ``"geometric median"`` of the rows.
        auxiliary: how much the auxiliary loss of dead features counts.
        dead_after: rows without activation after which a feature is dead; None for ten million,
            or a tenth of all rows of the training if those are fewer.
        sparsity: weight of the penalty; None for 5 (relu) and 1 (jumprelu).
        bandwidth: of the gradient of JumpReLU's thresholds, where rows have mean norm √d.
        threshold: where those begin.
    """

    learning_rate: float | None = None
    warm_up: float = 0.05
    penalty_warm_up: float | None = None
    decay: float = 0.2
    centre: Literal["mean", "geometric median"] = "mean"
    auxiliary: float = 1 / 32
    dead_after: int | None = None
    sparsity: float | None = None
    bandwidth: float = 0.5
    threshold: float = 0.5

    def __post_init__(self) -> None:
        """Check every setting.

        Raises:
            InputError: one is not what it can be.
        """
        positive, share = number(above=0), number(least=0, most=1)
        check("learning_rate", self.learning_rate, or_none(positive), InputError)
        check("warm_up", self.warm_up, share, InputError)
        check("penalty_warm_up", self.penalty_warm_up, or_none(share), InputError)
        check("decay", self.decay, share, InputError)
        check("centre", self.centre, one_of("mean", "geometric median"), InputError)
        check("auxiliary", self.auxiliary, number(least=0), InputError)
        check("dead_after", self.dead_after, or_none(whole(least=1)), InputError)
        check("sparsity", self.sparsity, or_none(number(least=0)), InputError)
        check("bandwidth", self.bandwidth, positive, InputError)
        check("threshold", self.threshold, positive, InputError)

    def rate(self, step: int, steps: int, latents: int) -> float:
        """The learning rate of a step, counted from 0.

        Args:
            step: counted from 0.
            steps: of the whole training.
            latents: how many features there are.
        """
        peak = self.learning_rate or 2e-4 / math.sqrt(latents / 2**14)
        fallen = min(1.0, (steps - step) / max(1, self.decay * steps))
        return peak * _risen(step, steps, self.warm_up) * fallen

    def penalty(self, step: int, steps: int, kind: Kind) -> float:
        """How far the penalty has risen at a step, 0 to 1.

        Args:
            step: counted from 0.
            steps: of the whole training.
            kind: of dictionary.
        """
        share = self.penalty_warm_up
        if share is None:
            share = 0.5 if kind == "relu" else 0.05
        return _risen(step, steps, share)


def _risen(step: int, steps: int, share: float) -> float:
    return min(1.0, (step + 1) / max(1, share * steps))


class Terms(NamedTuple):
    """The loss of one batch and what it is made of, scalars.

    Attributes:
        fvu: fraction of variance unexplained.
        auxiliary: of dead features, with its weight.
        penalty: for many or large activations, with its weight.
        l0: active features of a row, on average.
        active: which features were, ``[latent]``.
    """

    fvu: Tensor
    auxiliary: Tensor
    penalty: Tensor
    l0: Tensor
    active: Tensor

    @property
    def loss(self) -> Tensor:
        """The sum."""
        return self.fvu + self.auxiliary + self.penalty


class Trainee(nn.Module):
    """A dictionary while it is trained, on rows of mean norm √d.

    Attributes:
        encoder: ``[latent, d_in]``.
        b_enc: ``[latent]``.
        W_dec: ``[latent, d_out]``.
        b_dec: ``[d_out]``.
        W_skip: ``[d_out, d_in]``, or None.
        log_threshold: of JumpReLU, ``[latent]``, or None.
        idle: rows since each feature was active, ``[latent]``.
        least: what the loss is divided by for each row, at least: half of what rows usually vary.
        threshold: the running one of BatchTopK.
    """

    W_skip: nn.Parameter | None
    log_threshold: nn.Parameter | None
    idle: Tensor
    threshold: Tensor

    def __init__(
        self, kind: Kind, k: int, latents: int, x: Tensor, y: Tensor, *, autoencoder: bool,
        skip: bool, recipe: Recipe, dead_after: int, generator: torch.Generator,
    ) -> None:  # fmt: skip
        """Begin with decoder rows of random directions, and an encoder that is its transpose.

        Args:
            kind: of dictionary.
            k: active features of a row; relu has none to aim at.
            latents: how many features.
            x: a sample of what is read ``[row, d_in]``.
            y: and of what is written ``[row, d_out]``.
            autoencoder: these are the same.
            skip: with a linear path.
            recipe: the rest.
            dead_after: rows after which an inactive feature is dead.
            generator: of the directions.
        """
        super().__init__()
        self.kind, self.k, self.recipe, self.dead_after = kind, k, recipe, dead_after
        self.autoencoder = autoencoder
        self.subtracts_b_dec = autoencoder and kind in ("topk", "batchtopk")
        self.sparsity = {"relu": 5.0}.get(kind, 1.0) if recipe.sparsity is None else recipe.sparsity
        d_in, d_out = x.shape[1], y.shape[1]
        rows = _unit(torch.randn(latents, d_out, generator=generator, dtype=torch.float32))
        written = rows * 0.1 if kind == "relu" else rows  # Anthropic's begin small
        read = written
        if not autoencoder:  # directions in another space have no transpose
            read = _unit(torch.randn(latents, d_in, generator=generator, dtype=torch.float32))
        # A batch of a row or two, as an epoch may end with, varies by nothing or nearly nothing.
        each = (y - y.mean(0)).square().sum(1)  # a few rows may be far away: the median is usual
        self.least = max(1e-30, 0.5 * float(each.median()), 1e-6 * float(each.mean()))
        centre = y.mean(0) if recipe.centre == "mean" else geometric_median(y)
        self.W_dec = nn.Parameter(written.to(y).clone())
        self.encoder = nn.Parameter(read.to(x).clone())
        self.b_dec = nn.Parameter(centre.clone())
        middle = x.mean(0) if not autoencoder else centre
        bias = x.new_zeros(latents)
        self.b_enc = nn.Parameter(bias if self.subtracts_b_dec else -self.encoder.detach() @ middle)
        self.W_skip = nn.Parameter(x.new_zeros(d_out, d_in)) if skip else None
        start = x.new_full((latents,), math.log(recipe.threshold))
        self.log_threshold = nn.Parameter(start) if kind == "jumprelu" else None
        self.register_buffer("idle", torch.zeros(latents, dtype=torch.long, device=x.device))
        self.register_buffer("threshold", x.new_full((), -1.0))

    def terms(self, x: Tensor, y: Tensor, risen: float = 1.0) -> Terms:
        """The loss of some rows.

        Args:
            x: what is read ``[row, d_in]``.
            y: what is to be written ``[row, d_out]``.
            risen: how far the penalty has risen.
        """
        read = x - self.b_dec if self.subtracts_b_dec else x
        variance = (y - y.mean(0)).square().sum().clamp_min(self.least * len(y))
        beside = self.b_dec if self.W_skip is None else linear(x, self.W_skip) + self.b_dec
        if self.kind in ("jumprelu", "relu"):
            return self._dense(read, y, beside, variance, risen)
        with torch.no_grad():
            pre = linear(read, self.encoder, self.b_enc)
            chosen = top_k(pre, self.k) if self.kind == "topk" else batch_top_k(pre, self.k)
        values = selected(pre, read, self.encoder, self.b_enc, chosen).relu()
        error = y - (summed(values, self.W_dec, chosen) + beside)
        positive = values.detach() > 0
        active = torch.zeros_like(self.idle, dtype=torch.bool)
        active[chosen.latents[positive]] = True
        if self.kind == "batchtopk" and self.training:
            self._follow(values.detach()[positive])
        none = torch.zeros_like(variance)
        missed = self._auxiliary(read, error.detach(), variance) if self.training else none
        l0 = positive.sum().float() / len(x)
        return Terms(error.square().sum() / variance, missed, none, l0, active)

    def _dense(
        self, read: Tensor, y: Tensor, beside: Tensor, variance: Tensor, risen: float
    ) -> Terms:
        """The loss of a kind without k, where dense products cost no more."""
        pre = linear(read, self.encoder, self.b_enc).relu()
        if self.log_threshold is None:
            features = pre
            norms = self.W_dec.norm(dim=1)
            penalty = self.sparsity * risen * (features * norms).sum() / variance
        else:
            theta = self.log_threshold.exp()
            features, open_ = _Jump.apply(pre, theta, self.recipe.bandwidth)  # type: ignore[no-untyped-call]
            penalty = self.sparsity * risen * (open_.sum(1).mean() / self.k - 1).square()
        fvu = (y - (features @ self.W_dec + beside)).square().sum() / variance
        there = features.detach() > 0
        none = torch.zeros_like(variance)
        return Terms(fvu, none, penalty, there.sum(1).float().mean(), there.any(0))

    def _auxiliary(self, read: Tensor, error: Tensor, variance: Tensor) -> Tensor:
        """The loss of dead features, which are to explain what the others missed."""
        dead = (self.idle >= self.dead_after).nonzero()[:, 0]
        most = max(1, error.shape[1] // 2)
        if not len(dead) or not self.recipe.auxiliary:
            return torch.zeros_like(variance)
        pre = linear(read, self.encoder[dead], self.b_enc[dead]).relu()
        values, indices = pre.topk(min(most, len(dead)), dim=1)
        features = torch.zeros_like(pre).scatter(1, indices, values)
        missed = (features @ self.W_dec[dead] - error).square().sum() / variance
        return self.recipe.auxiliary * min(1.0, len(dead) / most) * missed

    def _follow(self, values: Tensor) -> None:
        """Let the running threshold follow the smallest activation of a batch."""
        if len(values):
            first = bool(self.threshold < 0)
            self.threshold.lerp_(values.min(), 1.0 if first else _AT_ONCE)

    @torch.no_grad()
    def before_step(self) -> None:
        """Of the gradient of unit rows, keep what turns them."""
        gradient = self.W_dec.grad
        if self.kind != "relu" and gradient is not None:
            along = (gradient * self.W_dec).sum(1, keepdim=True)
            gradient -= along * self.W_dec

    @torch.no_grad()
    def after_step(self, rows: int, active: Tensor) -> None:
        """Bring decoder rows back to norm 1, and count for how long features were not active."""
        if self.kind != "relu":
            self.W_dec.copy_(_unit(self.W_dec))
        self.idle += rows
        self.idle[active] = 0

    @property
    def dead(self) -> float:
        """Share of the features that are dead."""
        return float((self.idle >= self.dead_after).float().mean())

    @torch.no_grad()
    def dictionary(
        self, scale_in: float, scale_out: float, *, site_in: str, site_out: str,
        sources: dict[str, str],
    ) -> Dictionary:  # fmt: skip
        """The finished dictionary, of rows as they are, with decoder rows of norm 1.

        Args:
            scale_in: what rows were multiplied by before they were read.
            scale_out: and those that were to be written.
            site_in: hook point it reads.
            site_out: hook point it writes.
            sources: where facts about it came from.
        """
        norms = self.W_dec.norm(dim=1).clamp_min(1e-30)
        factor = norms / scale_out
        weights = Weights(
            (self.encoder * (factor * scale_in)[:, None]).T.clone(),
            self.b_enc * factor,
            self.W_dec / norms[:, None],
            self.b_dec / scale_out,
            None if self.W_skip is None else self.W_skip * (scale_in / scale_out),
        )
        return Dictionary(
            weights,
            self._activation(factor),
            site_in=site_in,
            site_out=site_out,
            subtracts_b_dec=self.subtracts_b_dec,
            kind=CALLED[self.kind],
            sources=sources,
            expected_l0=None if self.kind == "relu" else self.k,
        )

    def _activation(self, factor: Tensor) -> Activation:
        if self.kind == "topk":
            return TopK(self.k)
        if self.kind == "relu":
            return ReLU()
        if self.log_threshold is not None:
            return JumpReLU(self.log_threshold.exp() * factor)
        # What is equal to the smallest that was taken is taken too; above is strict.
        return JumpReLU(self.threshold * factor.mean())


class _Jump(torch.autograd.Function):
    """JumpReLU and which features are open, with the straight-through gradients of thresholds."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
        open_ = pre > theta
        ctx.save_for_backward(pre, theta, open_)
        ctx.bandwidth = bandwidth
        return pre * open_, open_.to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_features, to_open = gradients
        pre, theta, open_ = ctx.saved_tensors
        near = ((pre - theta).abs() < ctx.bandwidth / 2).to(pre.dtype) / ctx.bandwidth
        to_theta = -(near * (to_features * theta + to_open)).sum(0)
        return to_features * open_, to_theta, None


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def geometric_median(rows: Tensor, rounds: int = 100) -> Tensor:
    """The point ``[d]`` whose distances to all rows have the smallest sum (Weiszfeld's way).

    Args:
        rows: ``[row, d]``.
        rounds: at most so many.
    """
    point = rows.mean(0)
    for _ in range(rounds):
        weights = 1 / (rows - point).norm(dim=1).clamp_min(1e-6)
        moved = (weights[:, None] * rows).sum(0) / weights.sum()
        if (moved - point).norm() <= 1e-6 * point.norm():
            return moved
        point = moved
    return point
