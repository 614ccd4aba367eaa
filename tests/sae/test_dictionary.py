"""Encoding and decoding against the formulas written out densely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dictionaries import random_dictionary
from torch import Tensor

from neox_lab.errors import ConfigError, InputError
from neox_lab.sae import Codes, Dictionary, Weights
from neox_lab.sae.activations import Activation, Gated, GroupMax, JumpReLU, ReLU, TopK
from neox_lab.sae.normalisation import (
    Normalise,
    constant_factor,
    constant_norm,
    layer_norm,
    unchanged,
)

D, LATENTS = 12, 40
SITE = "blocks.0.hook_mlp_out"


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def weights(skip: Tensor | None = None) -> Weights:
    return Weights(
        numbers(D, LATENTS, seed=1),
        numbers(LATENTS, seed=2),
        numbers(LATENTS, D, seed=3),
        numbers(D, seed=4),
        skip,
    )


def dictionary(
    activation: Activation,
    *,
    skip: Tensor | None = None,
    subtracts_b_dec: bool = False,
    normalise: Normalise = unchanged,
    site_out: str | None = None,
) -> Dictionary:
    return Dictionary(
        weights(skip),
        activation,
        site_in=SITE,
        site_out=site_out,
        subtracts_b_dec=subtracts_b_dec,
        normalise=normalise,
        kind="test",
    )


def gated(pre: Tensor) -> Tensor:
    gate, bias, log_scale = (numbers(LATENTS, seed=seed) for seed in (5, 6, 7))
    return (pre + gate > 0) * (log_scale.exp() * pre + bias).relu()


def top(pre: Tensor, k: int, rank: Callable[[Tensor], Tensor] = lambda pre: pre) -> Tensor:
    kept = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        for latent in sorted(range(LATENTS), key=lambda at: -float(rank(values.detach())[at]))[:k]:
            kept[row, latent] = values[latent]
    return kept


def group(pre: Tensor) -> Tensor:
    kept = torch.zeros_like(pre)
    for row, values in enumerate(pre.relu()):
        for first in range(0, LATENTS, LATENTS // 4):
            at = first + int(values[first : first + LATENTS // 4].argmax())
            kept[row, at] = values[at]
    return kept


KINDS: dict[str, tuple[Callable[[], Activation], Callable[[Tensor], Tensor]]] = {
    "relu": (ReLU, torch.relu),
    "top_k": (lambda: TopK(5), lambda pre: top(pre, 5).relu()),
    "top_k of more than are positive": (lambda: TopK(35), torch.relu),
    "top_k keeps negative": (lambda: TopK(35, negative=True), lambda pre: top(pre, 35)),
    "top_k signed": (lambda: TopK(5, signed=True), lambda pre: top(pre, 5, torch.abs)),
    "jump": (
        lambda: JumpReLU(numbers(LATENTS, seed=8)),
        lambda pre: pre.relu() * (pre > numbers(LATENTS, seed=8)),
    ),
    "one threshold": (
        lambda: JumpReLU(torch.tensor(0.7)),
        lambda pre: pre.relu() * (pre > 0.7),
    ),
    "jump keeps negative": (
        lambda: JumpReLU(numbers(LATENTS, seed=8), negative=True),
        lambda pre: pre * (pre > numbers(LATENTS, seed=8)),
    ),
    "gated": (lambda: Gated(*(numbers(LATENTS, seed=seed) for seed in (5, 6, 7))), gated),
    "group_max": (lambda: GroupMax(4), group),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subtracts", [True, False])
def test_encoding_is_the_dense_formula(kind: str, subtracts: bool) -> None:
    make, formula = KINDS[kind]
    ours = dictionary(make(), subtracts_b_dec=subtracts)
    x = 3 * numbers(2, 7, D, seed=9)
    read = x - ours.b_dec if subtracts else x
    expected = formula((read @ ours.W_enc + ours.b_enc).view(-1, LATENTS)).view(2, 7, LATENTS)
    codes = ours.encode(x)
    torch.testing.assert_close(codes.dense(), expected)
    assert torch.equal(codes.count, (expected != 0).sum(-1))
    assert torch.equal(codes.of(3), codes.dense()[..., 3])
    torch.testing.assert_close(ours(x), expected @ ours.W_dec + ours.b_dec)
    order = codes.values.abs() if "signed" in kind else codes.values
    assert all((row[row != 0].diff() <= 0).all() for row in order.flatten(0, -2))


def test_many_tokens_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(31, D, seed=9)
    for activation in (ReLU(), TopK(5)):
        whole = dictionary(activation).encode(x).dense()
        monkeypatch.setattr("neox_lab.sae.dictionary.DENSE", 4 * LATENTS)
        torch.testing.assert_close(dictionary(activation).encode(x).dense(), whole)
        monkeypatch.undo()


def test_codes_of_most_features_are_multiplied_as_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    x, scale = 3 * numbers(2, 7, D, seed=9), numbers(LATENTS, D, seed=3).norm(dim=-1)
    for activation in (ReLU(), TopK(20, scale=scale), TopK(35, negative=True)):
        ours = dictionary(activation)
        assert ours.encode(x).values.shape[-1] * 8 > LATENTS
        as_matrix = ours(x)
        monkeypatch.setattr("neox_lab.sae.bags.SPARSE", 0)
        torch.testing.assert_close(ours(x), as_matrix)
        monkeypatch.undo()


def test_gradients_are_those_of_the_dense_formula() -> None:
    ours = dictionary(TopK(5), subtracts_b_dec=True)
    x = numbers(6, D, seed=9).requires_grad_()
    ours(x).square().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in ours.parameters())]
    again = x.detach().requires_grad_()
    ours.zero_grad()
    pre = (again - ours.b_dec) @ ours.W_enc + ours.b_enc
    kept = pre.relu() * (pre >= pre.topk(5).values[..., -1:])
    (kept @ ours.W_dec + ours.b_dec).square().sum().backward()
    expected = [again.grad, *(parameter.grad for parameter in ours.parameters())]
    for left, right in zip(found, expected, strict=True):
        assert left is not None and right is not None
        torch.testing.assert_close(left, right)


def test_the_choice_may_be_made_by_what_features_write() -> None:
    norms = numbers(LATENTS, D, seed=3).norm(dim=-1)
    ours = dictionary(TopK(5, scale=norms))
    x = numbers(6, D, seed=9)
    scaled = top((x @ ours.W_enc + ours.b_enc) * norms, 5).relu()
    torch.testing.assert_close(ours.encode(x).dense(), scaled)
    torch.testing.assert_close(ours(x), (scaled / norms) @ ours.W_dec + ours.b_dec)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm", "factor"])
@pytest.mark.parametrize("site_out", [None, "blocks.0.hook_resid_post"])
def test_normalisation_is_undone_except_in_transcoders(kind: str, site_out: str | None) -> None:
    normalise = {
        "layer_norm": layer_norm,
        "constant_norm": constant_norm,
        "factor": constant_factor(0.3),
    }[kind]
    skip = numbers(D, D, seed=10) if site_out else None
    ours = dictionary(ReLU(), normalise=normalise, site_out=site_out, skip=skip)
    x = 3 * numbers(6, D, seed=9) + 1
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    back: Callable[[Tensor], Tensor]
    if kind == "layer_norm":
        read, back = (x - mean) / (std + 1e-5), lambda y: y * std + mean
    elif kind == "constant_norm":
        factor = D**0.5 / x.norm(dim=-1, keepdim=True)
        read, back = x * factor, lambda y: y / factor
    else:
        read, back = x * 0.3, lambda y: y / 0.3
    written = (read @ ours.W_enc + ours.b_enc).relu() @ ours.W_dec + ours.b_dec
    expected = written + x @ skip.T if skip is not None else back(written)
    torch.testing.assert_close(ours(x), expected)


def test_other_precisions_come_back_in_their_own() -> None:
    ours = dictionary(ReLU()).float()
    assert ours(numbers(3, D, seed=1).half()).dtype is torch.float16
    assert ours.encode(numbers(3, D, seed=1).half()).values.dtype is torch.float32


def test_nan_is_not_lost() -> None:
    x = numbers(3, D, seed=1)
    x[1] = torch.nan
    for make, _ in KINDS.values():
        assert dictionary(make())(x).isnan().any(-1).tolist() == [False, True, False]


def test_what_does_not_fit_is_refused() -> None:
    ours = dictionary(ReLU())
    with pytest.raises(
        InputError, match=r"reads what stands at blocks.0.hook_mlp_out, \[\*tokens, 12\]"
    ):
        ours.encode(numbers(3, D + 1, seed=1))
    others = Codes(torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1), 41)
    with pytest.raises(InputError, match="40"):
        ours.decode(others)
    with pytest.raises(InputError, match="slot"):
        Codes(torch.zeros(3, 1, dtype=torch.long), torch.ones(3), 41)
    skipping = dictionary(ReLU(), skip=numbers(D, D, seed=2))
    codes = skipping.encode(numbers(3, D, seed=1))
    with pytest.raises(InputError, match="part in the output"):
        skipping.decode(codes)
    with pytest.raises(ConfigError, match="at least 1"):
        TopK(0)
    with pytest.raises(ConfigError, match="groups of one size"):
        dictionary(GroupMax(7)).encode(numbers(3, D, seed=1))


@pytest.mark.parametrize("name", ["b_enc", "W_dec", "b_dec", "W_skip"])
def test_weights_that_do_not_fit_are_named(name: str) -> None:
    good = weights(numbers(D, D, seed=5))
    bad = getattr(good, name)
    for wrong, message in ((bad[1:], "must be"), (bad.clone().fill_(torch.nan), "NaN")):
        with pytest.raises(ConfigError, match=f"{name} .*{message}"):
            Dictionary(good._replace(**{name: wrong}), ReLU(), site_in=SITE, kind="test")


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.tensor(1.0), r"x is \[\]"),
        (torch.ones(2, 5), r"x is \[2, 5\].*\[\*tokens, 4\]"),
        (torch.ones(2, 4, dtype=torch.int64), r"x is torch\.int64 \[2, 4\]"),
        (torch.ones(2, 4, dtype=torch.complex64), "x is torch.complex64"),
        (torch.ones(2, 4).bool(), "x is torch.bool"),
        ([1.0, 2.0, 3.0, 4.0], r"x=\[1\.0, 2\.0"),
        (None, "x=None"),
    ],
)
def test_what_is_no_activations_is_refused(x: Any, words: str) -> None:
    dictionary = random_dictionary(4, "blocks.0.hook_resid_post", latents=3)
    with pytest.raises(InputError, match=words):
        dictionary(x)


@pytest.mark.parametrize("shape", [(4, 0, 4), (0, 3, 4), (4, 3, 0)])
def test_a_dictionary_of_nothing_is_refused(shape: tuple[int, int, int]) -> None:
    d_in, latents, d_out = shape
    weights = Weights(
        torch.ones(d_in, latents), torch.ones(latents), torch.ones(latents, d_out),
        torch.ones(d_out),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="there must be a feature"):
        Dictionary(weights, ReLU(), site_in="blocks.0.hook_resid_post", kind="ReLU")


@pytest.mark.parametrize("kind", ["TopK", "TopK signed", "JumpReLU"])
@pytest.mark.parametrize("shape", [(4,), (0, 4), (2, 0, 4), (1, 4)])
def test_few_tokens_are_encoded_too(kind: str, shape: tuple[int, ...]) -> None:
    dictionary = random_dictionary(4, "blocks.0.hook_resid_post", latents=3, kind=kind)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert dictionary(x).shape == shape
    assert dictionary.encode(x).dense().shape == (*shape[:-1], 3)
