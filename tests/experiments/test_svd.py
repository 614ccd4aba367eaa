"""Matrices taken apart, against decompositions of the whole products, token by token."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from oracle import SIZES, pair
from torch import Tensor

import neox_lab as nl
from neox_lab.errors import ConfigError, InputError
from neox_lab.gym import planting

SIDES = {
    "OV": ["reads", "writes"],
    "QK": ["query", "key"],
    "W_in": ["reads"],
    "W_out": ["writes"],
}


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def model(request: pytest.FixtureRequest) -> Any:
    made: Any = pair(use_parallel_residual=request.param)[1]
    made.tokenizer = None
    return made


def whole(model: Any, matrix: str, layer: int, head: int) -> Tensor:
    """The matrix with the layer norm before it and centred after it, by hand, float64."""
    block = model.gpt_neox.layers[layer]
    norm = block.post_attention_layernorm if matrix == "W_in" else block.input_layernorm
    centring = torch.eye(64, dtype=torch.float64) - 1 / 64
    scale = centring @ torch.diag(norm.weight.detach().double())
    weights = model.blocks[layer]
    parts = {
        "OV": lambda: scale @ weights.W_V[head].double() @ weights.W_O[head].double() @ centring,
        "QK": lambda: scale @ weights.W_Q[head].double() @ weights.W_K[head].double().T @ scale.T,
        "W_in": lambda: scale @ weights.W_in.double(),
        "W_out": lambda: weights.W_out.double() @ centring,
    }
    return parts[matrix]().detach()


def numbers(model: Any, vector: Tensor, side: str) -> Tensor:
    """What a direction of the stream is to every token."""
    if side == "writes":
        scaled = torch.diag(model.gpt_neox.final_layer_norm.weight.detach().double())
        unembedding = scaled @ model.W_U.detach().double()
        unembedding -= unembedding.mean(dim=0)
        return (vector @ unembedding) - (vector @ unembedding).mean()
    embedding = model.W_E.detach().double()
    embedding = embedding - embedding.mean(dim=1, keepdim=True)
    return embedding @ vector / (embedding.square().mean(dim=1) + 1e-5).sqrt()


def chosen(frame: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """The rows that hold these values."""
    for name, value in columns.items():
        frame = frame[frame[name] == value]
    return frame


@pytest.mark.parametrize("matrix", ["OV", "QK", "W_in", "W_out"])
def test_every_token_is_that_of_the_whole_matrix(model: Any, matrix: str) -> None:
    head = 2 if matrix in ("OV", "QK") else None
    found = nl.lens.svd(model, matrix, -1, head, count=3, top_k=6)  # type: ignore[arg-type]
    left, values, right = torch.linalg.svd(whole(model, matrix, 2, 2), full_matrices=False)
    assert (found.layer, found.head) == (2, head)
    rank = len(found.singular_values)
    assert rank == (16 if head is not None else 64)
    torch.testing.assert_close(found.singular_values.double(), values[:rank], rtol=1e-4, atol=1e-4)
    shares = values.square() / values.square().sum()
    torch.testing.assert_close(found.share.double(), shares[:rank], rtol=1e-4, atol=1e-6)
    frame = found.frame
    assert len(frame) == 3 * len(SIDES[matrix]) * 2 * 6
    for vector in range(3):
        ends = {"reads": left[:, vector], "query": left[:, vector]}
        ends |= {"writes": right[vector], "key": right[vector]}
        mine = found.right[:, vector].double()
        sign = torch.sign(mine @ right[vector])
        torch.testing.assert_close(mine, sign * right[vector], rtol=0, atol=1e-4)
        mine = found.left[:, vector].double()
        torch.testing.assert_close(mine, sign * left[:, vector], rtol=0, atol=1e-4)
        for side in SIDES[matrix]:
            expected = sign * numbers(model, ends[side], side)
            for name, direction in (("+", 1), ("-", -1)):
                rows = chosen(frame, vector=vector, side=side, sign=name)
                assert rows["rank"].tolist() == list(range(6))
                logits = expected[rows["token_id"].tolist()]
                wanted = (direction * expected).topk(6).values * direction
                torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-3)
                assert rows["logit"].tolist() == pytest.approx(wanted.tolist(), abs=1e-3)
                assert rows["token"].tolist() == [f"⟨{token}⟩" for token in rows["token_id"]]
                assert rows["share"].iloc[0] == pytest.approx(float(shares[vector]), rel=1e-4)
        last = chosen(frame, vector=vector, side=SIDES[matrix][-1], rank=0)
        farthest = last.set_index("sign")["logit"]
        assert farthest["+"] >= -farthest["-"], "the end farthest out is called +"


def test_the_control_is_a_random_matrix_of_the_same_norm(model: Any) -> None:
    state = torch.random.get_rng_state()
    found = nl.lens.svd(model, "OV", 0, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((64, 16), (16, 64)))
    values = torch.linalg.svdvals(a @ b)[:16]
    expected = values * (found.singular_values.norm() / values.norm())
    torch.testing.assert_close(found.random_values, expected, rtol=1e-4, atol=1e-5)
    assert nl.lens.svd(model, "OV", 0, 1) == found
    other = nl.lens.svd(model, "OV", 0, 1, seed=1)
    assert not torch.equal(other.random_values, found.random_values)
    lines = found.spectrum().lines
    assert list(lines) == ["OV of L0H1", "random matrix"]
    assert sum(lines["random matrix"].y) == pytest.approx(1)
    # The model's weights were drawn, too, so its spectrum is the control's.
    assert float((found.singular_values / found.random_values - 1).abs().max()) < 0.3


def test_a_copying_head_reads_and_writes_the_same_tokens() -> None:
    """Where reading and writing are known: the planted induction head copies ``current``."""
    model = nl.gym.planted()
    found = nl.lens.svd(model, "OV", 1, 2, count=20, top_k=1)
    assert found.name == "OV of L1H2"
    pairs = found.frame.pivot(index=["vector", "sign"], columns="side", values="token_id")
    assert (pairs["reads"] == pairs["writes"]).mean() > 0.9
    assert set(found.frame["token"]) <= {planting.tokenizer().piece_text(i) for i in range(96)}


def test_ids_beyond_the_tokenizer_are_left_out() -> None:
    model: Any = pair(vocab_size=211)[1]
    model.tokenizer = planting.tokenizer()
    model.W_U.detach()[:, 150] *= 100
    model.W_E.detach()[150] = torch.randn(64)
    frame = nl.lens.svd(model, "OV", 0, 0, top_k=96).frame
    assert frame["token_id"].max() == 95
    with pytest.raises(InputError, match="top_k=97; expected a whole number from 1 to 96"):
        nl.lens.svd(model, "OV", 0, 0, top_k=97)


def test_the_view_has_every_end(model: Any) -> None:
    found = nl.lens.svd(model, "QK", 1, 3, count=2, top_k=3)
    view = found.view()
    assert view.title == "Singular vectors: QK of L1H3"
    first, _ = view.groups.values()
    assert [row[0] for row in first] == ["query +", "query −", "key +", "key −"]
    rows = chosen(found.frame, vector=0, side="key", sign="-")
    assert first[3][1:] == rows["token"].tolist()
    assert list(view.groups)[1].startswith("Vector 1, σ = ")
    assert "random matrix" in repr(found)


def test_a_matrix_of_zeros() -> None:
    found = nl.lens.svd(nl.gym.planted(), "OV", 0, 0, count=2)
    assert found.share.tolist() == [0] * 128
    assert "0.0 % of the squared norm" in repr(found)


def test_what_is_refused(model: Any) -> None:
    for arguments, message in (
        (("OV", 0), "give head="),
        (("QK", 0), "give head="),
        (("W_in", 0, 1), "W_in is a matrix of the MLP, which has no heads"),
        (("W_out", 0, 0), "no heads"),
        (("OV", 0, 4), "head=4"),
        (("W_in", 3), "layer=3"),
        (("w_in", 0), "matrix='w_in'"),
    ):
        with pytest.raises(InputError, match=message):
            nl.lens.svd(model, *arguments)
    with pytest.raises(InputError, match="count=17"):
        nl.lens.svd(model, "OV", 0, 0, count=17)


def test_models_without_an_unembedding() -> None:
    sizes = SIZES | {"num_hidden_layers": 1}
    body = nl.GPTNeoXModel(nl.GPTNeoXConfig(**sizes)).eval()
    assert len(nl.lens.svd(body, "QK", 0, 1).frame) == 5 * 4 * 8  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no head"):
        nl.lens.svd(body, "OV", 0, 1)  # type: ignore[arg-type]


def test_weights_that_are_nan_are_named(model: Any) -> None:
    weight = model.gpt_neox.layers[0].mlp.dense_4h_to_h.weight
    before = weight.detach().clone()
    try:
        weight.detach()[0, 0] = torch.nan
        with pytest.raises(InputError, match=r"W_out holds NaN.*model.check"):
            nl.lens.svd(model, "W_out", 0)
    finally:
        weight.detach().copy_(before)
