"""Losses and gradients of training against the formulas, written out densely with autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from neox_lab.sae.recipes import KINDS, Kind, Recipe, Trainee, geometric_median
from neox_lab.sae.sparse_products import batch_top_k

D, OUT, LATENTS, ROWS, K = 10, 14, 40, 24, 3
RECIPE = Recipe(auxiliary=0.3, sparsity=0.7, bandwidth=0.4, threshold=0.6)


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def trainee(kind: Any, *, transcoder: bool = False, recipe: Recipe = RECIPE) -> Trainee:
    """One with large random weights, a third of whose features are dead."""
    x, y = numbers(ROWS, D, seed=1), numbers(ROWS, OUT if transcoder else D, seed=2)
    made = Trainee(
        kind, K, LATENTS, x, y if transcoder else x, autoencoder=not transcoder, skip=transcoder,
        recipe=recipe, dead_after=100, generator=torch.Generator().manual_seed(3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(made.named_parameters()):
            if name == "log_threshold":
                parameter.copy_(math.log(0.6) + 0.2 * numbers(LATENTS, seed=seed))
            else:
                parameter.copy_(0.5 * numbers(*parameter.shape, seed=50 + seed))
        made.idle[::3] = 1000
    return made


def formula(made: Trainee, x: Tensor, y: Tensor) -> Tensor:
    """The loss, densely: codes are whole matrices and autograd goes through all of them."""
    weights = dict(made.named_parameters())
    reads = x - weights["b_dec"] if made.subtracts_b_dec else x
    pre = torch.relu(reads @ weights["encoder"].T + weights["b_enc"])
    penalty: Tensor | float = 0.0
    total = ((y - y.mean(0)) ** 2).sum()
    if made.kind == "topk":
        least = pre.topk(K, dim=1).values[:, -1:]
        codes = torch.where(pre >= least, pre, 0)
    elif made.kind == "batchtopk":
        codes = torch.where(pre >= pre.flatten().topk(K * len(x)).values[-1], pre, 0)
    elif made.kind == "relu":
        codes = pre
        penalty = 0.7 * (pre * weights["W_dec"].norm(dim=1)).sum() / total
    else:
        theta = weights["log_threshold"].exp()
        is_open = (pre > theta).double()
        near = ((pre - theta).abs() < 0.2).double() / 0.4
        # Values of the step and of JumpReLU; gradients of thresholds as the paper defines them.
        step = is_open - near * (theta - theta.detach())
        codes = pre * is_open - near * theta.detach() * (theta - theta.detach())
        penalty = 0.7 * (step.sum(1).mean() / K - 1) ** 2
    written = codes @ weights["W_dec"] + weights["b_dec"]
    if "W_skip" in weights:
        written = written + x @ weights["W_skip"].T
    error = y - written
    auxiliary: Tensor | float = 0.0
    if made.kind in ("topk", "batchtopk"):
        dead = made.idle >= 100
        most = y.shape[1] // 2
        alone = torch.where(dead, pre, -1)
        kept = torch.where(alone >= alone.topk(most, dim=1).values[:, -1:], alone, 0).relu()
        missed = kept @ weights["W_dec"] - error.detach()
        auxiliary = 0.3 * min(1, int(dead.sum()) / most) * (missed**2).sum() / total
    return (error**2).sum() / total + auxiliary + penalty


@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_dense_autograd(kind: str, transcoder: bool) -> None:
    made = trainee(kind, transcoder=transcoder)
    x = numbers(ROWS, D, seed=11)
    y = numbers(ROWS, OUT, seed=12) if transcoder else x
    expected = formula(made, x, y)
    wanted = torch.autograd.grad(expected, list(made.parameters()))
    terms = made.terms(x, y)
    assert float(terms.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    found = torch.autograd.grad(terms.loss, list(made.parameters()))
    for name, one, other in zip(dict(made.named_parameters()), found, wanted, strict=True):
        assert float(other.abs().max()) > 1e-3, name  # there is something to compare
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_terms_add_up_and_dead_features_count_only_in_training(kind: str) -> None:
    made, x = trainee(kind), numbers(ROWS, D, seed=11)
    terms = made.terms(x, x)
    assert float(terms.auxiliary.detach()) > 0
    made.eval()
    assert float(made.terms(x, x).auxiliary) == 0
    made.train()
    made.idle.zero_()
    assert float(made.terms(x, x).auxiliary) == 0


def test_the_penalty_rises_in_its_own_time() -> None:
    cases: list[tuple[Recipe, Kind, int]] = [
        (Recipe(), "relu", 49),
        (Recipe(warm_up=0.9), "jumprelu", 4),
        (Recipe(penalty_warm_up=0.2), "relu", 19),
        (Recipe(penalty_warm_up=0), "jumprelu", 0),
    ]
    for recipe, kind, last in cases:
        risen = [recipe.penalty(step, 100, kind) for step in range(100)]
        assert risen[last] == risen[99] == 1
        assert risen[0] == pytest.approx(1 / (last + 1)) and sorted(risen) == risen


def test_the_penalty_is_multiplied_by_how_far_it_has_risen() -> None:
    for kind in ("relu", "jumprelu"):
        made, x = trainee(kind), numbers(ROWS, D, seed=11)
        whole = made.terms(x, x, 1.0).penalty.detach()
        assert float(whole) > 0
        torch.testing.assert_close(made.terms(x, x, 0.25).penalty.detach(), 0.25 * whole)


@pytest.mark.parametrize("kind", KINDS)
def test_decoder_rows_keep_norm_1_and_turn_only(kind: str) -> None:
    made, x = trainee(kind), numbers(ROWS, D, seed=11)
    made.after_step(ROWS, torch.zeros(LATENTS, dtype=torch.bool))
    made.terms(x, x).loss.backward()
    before = made.W_dec.grad.clone()
    made.before_step()
    along = (made.W_dec.grad * made.W_dec).sum(1).detach()
    if kind == "relu":  # its norms are in the penalty instead
        assert torch.equal(made.W_dec.grad, before)
        return
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)
    norms = made.W_dec.norm(dim=1).detach()
    torch.testing.assert_close(norms, torch.ones_like(norms))
    turned = before - made.W_dec.grad  # what was taken away points along the row
    rest = turned - (turned * made.W_dec).sum(1, keepdim=True) * made.W_dec
    assert float(rest.detach().abs().max()) < 1e-12


@pytest.mark.parametrize("transcoder", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_folded_into_the_dictionary(kind: str, transcoder: bool) -> None:
    made = trainee(kind, transcoder=transcoder).eval()
    if kind != "relu":
        made.after_step(ROWS, torch.ones(LATENTS, dtype=torch.bool))
    made.threshold.fill_(0.9)
    scale_in, scale_out = 3.0, 0.25 if transcoder else 3.0
    x = numbers(ROWS, D, seed=11)
    found = made.dictionary(
        scale_in, scale_out, site_in="in", site_out="out" if transcoder else "in", sources={}
    )
    weights = dict(made.named_parameters())
    scaled = x * scale_in
    reads = scaled - weights["b_dec"] if made.subtracts_b_dec else scaled
    pre = torch.relu(reads @ weights["encoder"].T + weights["b_enc"])
    least: Tensor | float = -1.0
    if kind == "topk":
        least = pre.topk(K + 1, dim=1).values[:, -1:]
    elif kind == "batchtopk":
        least = 0.9
    elif kind == "jumprelu":
        least = weights["log_threshold"].exp()
    codes = torch.where(pre > least, pre, 0)
    written = codes @ weights["W_dec"] + weights["b_dec"]
    if transcoder:
        written = written + scaled @ weights["W_skip"].T
    torch.testing.assert_close(found(x).detach(), (written / scale_out).detach())
    norms = found.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    strengths = codes * weights["W_dec"].norm(dim=1) / scale_out
    torch.testing.assert_close(found.encode(x).dense().detach(), strengths.detach())


@pytest.mark.parametrize("spread", [0.0, 3.0])  # evenly among rows, and nearly all in some
def test_batch_top_k_takes_the_largest_of_the_batch(spread: float) -> None:
    pre = numbers(50, 400, seed=1) + spread * numbers(50, 1, seed=2)
    chosen = batch_top_k(pre, 4)
    found = torch.zeros_like(pre)
    found[chosen.rows, chosen.latents] = pre[chosen.rows, chosen.latents]
    least = pre.flatten().sort(descending=True).values[199]
    assert torch.equal(found, torch.where((pre >= least) & (pre > 0), pre, 0))
    assert bool((chosen.rows.diff() >= 0).all())


def test_batch_top_k_takes_no_negative_one() -> None:
    assert len(batch_top_k(-numbers(5, 20, seed=1).abs(), 4).rows) == 0


def test_the_running_threshold_follows_the_smallest_activation() -> None:
    made = trainee("batchtopk")
    smallest = []
    for seed in range(3):
        x = numbers(ROWS, D, seed=seed)
        pre = ((x - made.b_dec) @ made.encoder.T + made.b_enc).detach().relu()
        smallest.append(float(pre.flatten().topk(K * ROWS).values[-1]))
        made.terms(x, x)
    one, two, three = smallest
    expected = 0.99 * (0.99 * one + 0.01 * two) + 0.01 * three
    assert float(made.threshold) == pytest.approx(expected)


def test_the_encoder_begins_as_the_transposed_decoder_and_b_dec_in_the_middle() -> None:
    x = numbers(500, D, seed=1) + 5
    for kind in KINDS:
        for centre in ("mean", "geometric median"):
            made = Trainee(
                kind, K, LATENTS, x, x, autoencoder=True, skip=False,
                recipe=replace(RECIPE, centre=centre),  # type: ignore[arg-type]
                dead_after=9, generator=torch.Generator().manual_seed(3),
            ).double()  # fmt: skip
            torch.testing.assert_close(made.encoder, made.W_dec)
            middle = x.mean(0) if centre == "mean" else geometric_median(x)
            torch.testing.assert_close(made.b_dec.detach(), middle)
            reads = x - made.b_dec if made.subtracts_b_dec else x
            pre = reads @ made.encoder.T + made.b_enc
            expected = (x - middle) @ made.encoder.T
            torch.testing.assert_close(pre.detach(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_the_geometric_median_has_the_smallest_sum_of_distances() -> None:
    rows = numbers(60, 3, seed=5) ** 3
    found = geometric_median(rows)

    def distances(point: Any) -> float:
        return float((rows - torch.tensor(point)).norm(dim=1).sum())

    best = minimize(distances, rows.mean(0).numpy(), method="Nelder-Mead", options={"xatol": 1e-9})
    assert distances(found.numpy()) <= best.fun * (1 + 1e-6)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(warm_up=0.1, decay=0.2)
    rates = [recipe.rate(step, 100, 2**12) for step in range(100)]
    peak = 4e-4  # 2e-4 / sqrt(2^12 / 2^14)
    assert rates[0] == pytest.approx(peak / 10)
    assert rates[9] == rates[50] == rates[80] == pytest.approx(peak)
    assert rates[90] == pytest.approx(peak / 2)
    assert rates[99] == pytest.approx(peak / 20)
