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
    if kind == "of equal rows":
        return x[:1].expand(300, D).clone()
    return x


@pytest.mark.parametrize("few_threads", [0, 10**6])
@pytest.mark.parametrize("kind", ["random", "large", "zero", "of equal rows", "below zero"])
def test_the_k_largest_are_found(
    kind: str, few_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "_FEW_THREADS", few_threads)
    W, b = encoder()  # noqa: N806
    if kind == "below zero":
        b = b - 2.5
    x = inputs(kind)
    values, latents = screening.top_k(x, W, b, K, screening.screen(W, b))
    whole = x.double() @ W.double().T + b.double()
    expected = whole.topk(K, dim=1).values
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.gather(1, latents), expected, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == K for row in latents.tolist())


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
