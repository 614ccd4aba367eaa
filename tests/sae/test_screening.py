"""Screening gives the k largest that float32 gives, and its bounds hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neox_lab.sae import Dictionary, Weights, screening
from neox_lab.sae.activations import TopK

D, LATENTS, K = 40, 4096, 8


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoder(seed: int = 1) -> tuple[Tensor, Tensor]:
    return numbers(LATENTS, D, seed=seed), 0.7 * numbers(LATENTS, seed=seed + 1)


def inputs(kind: str) -> Tensor:
    x = numbers(300, D, seed=3)
    if kind == "large":
        return 1e4 * x
    if kind == "zero":
        return 0 * x
    if kind == "below zero":  # with so low a bias hardly a pre-activation is above it
        return 1e-3 * x
    if kind == "tiny":  # of which bfloat16 has few bits, and some processors none
        return 1e-39 * x
    if kind == "cancelling":
        x[:, 0] = 1000
        return x
    if kind == "mixed":  # the sizes of rows, and a number that drowns the others
        x[::3] *= 1e6
        x[1::3] *= 1e-6
        x[:, 0] *= 1e5
        x[5] = 0
        return x
    if kind == "of equal rows":
        return x[:1].expand(300, D).clone()
    return x


HOSTILE = [
    "random",
    "large",
    "zero",
    "of equal rows",
    "below zero",
    "tiny",
    "ties",
    "mixed",
    "cancelling",
]


@pytest.mark.parametrize(("few_threads", "few"), [(0, 4), (10**6, 4), (10**6, 1), (10**6, 10**6)])
@pytest.mark.parametrize("kind", HOSTILE)
def test_the_k_largest_are_found(
    kind: str, few_threads: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where every row is gathered, however many candidates it has, and where none is."""
    monkeypatch.setattr(screening, "_FEW_THREADS", few_threads)
    monkeypatch.setattr(screening, "_FEW", few)
    full: list[int] = []
    linear = screening.linear
    monkeypatch.setattr(screening, "linear", lambda *a: full.append(len(a[0])) or linear(*a))
    W, b = encoder()  # noqa: N806
    if kind == "cancelling":  # what is rounded off is as large as what is left
        W[:, 0] = 1 + 1e-3 * W[:, 0]
        b = b - 1000
    if kind in ("below zero", "ties"):
        b = b - 2.5 if kind == "below zero" else 0 * b
    if kind == "ties":  # every direction eight times, side by side and far apart
        W = W[: LATENTS // 8].repeat_interleave(4, dim=0).repeat(2, 1)  # noqa: N806
    x = inputs(kind)
    values, latents = screening.top_k(x, W, b, K, screening.screen(W, b))
    whole = x.double() @ W.double().T + b.double()
    expected = whole.topk(K, dim=1).values
    near = 1e-6 * x.double().norm(dim=1, keepdim=True) * W.norm(dim=1).max() + 1e-6
    assert ((values.double() - expected).abs() <= near).all()
    assert ((whole.gather(1, latents) - expected).abs() <= near).all()
    assert all(len(set(row)) == K for row in latents.tolist())
    if few != 4 or kind == "random":
        assert sum(full) == (len(x) if few == 10**6 else 0)


def test_rows_that_the_bounds_do_not_separate_are_computed_in_full() -> None:
    """Hundreds of latents within a rounding of each other: only float32 tells them apart."""
    W, b = encoder()  # noqa: N806
    W[:1000] = W[0] + 1e-3 * numbers(1000, D, seed=5)
    x = 3 * W[:1] + 0.1 * numbers(50, D, seed=6)
    values, _ = screening.top_k(x, W, b.zero_(), K, screening.screen(W, b))
    expected = (x.double() @ W.double().T).topk(K, dim=1).values
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-5)


def test_the_bounds_hold() -> None:
    W, b = encoder()  # noqa: N806
    by = screening.screen(W, b)
    whole = torch.cat((W, b[:, None]), dim=1)
    assert by.norm >= 0.99 * float(whole.norm(dim=1).max())
    back = by.weights.float()
    approximate = back[:, :D], back[:, D] + back[:, D + 1]
    assert float((W - approximate[0]).norm(dim=1).max()) <= by.error
    assert float((b - approximate[1]).abs().max()) <= by.error


def test_not_finite_rows_stay_what_they_are() -> None:
    W, b = encoder()  # noqa: N806
    x = inputs("random")
    x[3, 0] = torch.nan
    values, _ = screening.top_k(x, W, b, K, screening.screen(W, b))
    assert values[3].isnan().any() and values[torch.arange(300) != 3].isfinite().all()


def test_a_dictionary_encodes_the_same_and_follows_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    W, b = encoder()  # noqa: N806
    made = Dictionary(
        Weights(W.T, b, numbers(LATENTS, D, seed=8), numbers(D, seed=9)),
        TopK(K),
        site_in="x",
        subtracts_b_dec=True,
        kind="TopK",
    )
    x = inputs("random").view(3, 100, D)
    used: list[int] = []
    top_k = screening.top_k

    def counted(*given: Tensor) -> tuple[Tensor, Tensor]:
        used.append(1)
        return top_k(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(screening, "is_fast", lambda: True)
    monkeypatch.setattr(screening, "top_k", counted)
    for _ in range(2):
        expected = made.encode(x)  # with gradients, densely
        assert expected.values.requires_grad and not used
        with torch.no_grad():
            found = made.encode(x)
        assert used.pop() == 1
        torch.testing.assert_close(found.values, expected.values.detach(), rtol=1e-5, atol=1e-5)
        assert (found.indices == expected.indices).float().mean() > 0.999  # but for near ties
        made.encoder.data[:50] *= 30  # which PyTorch counts as no change


def test_the_default_dtype_does_not_matter() -> None:
    W, b = encoder()  # noqa: N806
    usual = screening.top_k(inputs("random"), W, b, K, screening.screen(W, b))
    x = inputs("random")
    torch.set_default_dtype(torch.float64)
    try:
        by = screening.screen(W, b)
        assert screening.is_of(by, W, b)
        found = screening.top_k(x, W, b, K, by)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, usual, strict=True):
        assert torch.equal(one, other)


def test_where_all_are_equal_all_rows_are_computed_in_full() -> None:
    W, b = encoder()  # noqa: N806
    values, latents = screening.top_k(torch.zeros(300, D), W, 0 * b, K, screening.screen(W, 0 * b))
    assert not values.any() and all(len(set(row)) == K for row in latents.tolist())


def test_numbers_that_overflow_are_those_of_float32() -> None:
    W, b = encoder()  # noqa: N806
    x = 1e37 * inputs("random")
    values, latents = screening.top_k(x, W, b, K, screening.screen(W, b))
    whole = x @ W.T + b
    assert torch.equal(values, whole.topk(K, dim=1).values)
    assert torch.equal(whole.gather(1, latents), values)


def test_rows_that_are_no_numbers_stay_so() -> None:
    """Of either sign, since blocks are compared by their bits."""
    W, b = encoder()  # noqa: N806
    x = inputs("random")
    x[3, 5], x[4, 5], x[5, 5] = torch.nan, -torch.nan, torch.inf
    values, latents = screening.top_k(x, W, b, K, screening.screen(W, b))
    whole = x @ W.T + b
    assert values[3:5].isnan().all() and (values[5] == torch.inf).all()
    assert (whole[5].gather(0, latents[5]) == torch.inf).all()
    sound = [0, 1, 2, *range(6, 300)]
    expected = whole[sound].topk(K, dim=1).values
    torch.testing.assert_close(values[sound], expected, rtol=1e-5, atol=1e-5)
