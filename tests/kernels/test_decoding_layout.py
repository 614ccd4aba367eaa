"""How weights lie in memory for decoding, and that nothing else can be told from it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import pair, tokens
from torch import nn

import neox_lab as nl
from neox_lab.kernels import decoding_layout as layout
from neox_lab.kernels.decoding_layout import for_decoding

CLOSE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.bfloat16: {"rtol": 0.02, "atol": 0.1},
}


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def in_columns(model: nn.Module) -> set[bool]:
    return {linear.weight.stride(0) == 1 for linear in linears(model).values()}


@pytest.fixture
def in_columns_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where oneDNN is no faster with float32."""
    monkeypatch.setattr(layout, "onednn_pays", lambda: False)


@pytest.mark.usefixtures("in_columns_only")
def test_layout_changes_strides_and_nothing_else(tmp_path: Path) -> None:
    model = pair()[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    ids = tokens(2, 6)
    with torch.no_grad():
        logits = model(ids).logits
    model.generate(ids, max_new_tokens=2)
    assert in_columns(model) == {True}
    assert all(parameters[name] is value for name, value in model.named_parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, logits)
    model.save_pretrained(tmp_path)
    again = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in again.state_dict().items())
    assert in_columns(copy.deepcopy(model)) == {True}
    assert again.generate(ids, max_new_tokens=8).tolist() == (
        model.generate(ids, max_new_tokens=8).tolist()
    )


@pytest.mark.usefixtures("in_columns_only")
def test_layout_follows_the_dtype() -> None:
    model = pair()[1]
    ids = tokens(1, 4)
    model.generate(ids, max_new_tokens=2)
    model.half().generate(ids, max_new_tokens=2)
    assert in_columns(model) == {False}  # half-precision products from columns are slow
    model.bfloat16().generate(ids, max_new_tokens=2)
    assert in_columns(model) == {False}
    model.float().generate(ids, max_new_tokens=2)
    assert in_columns(model) == {True}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def packed(request: pytest.FixtureRequest) -> Any:
    """A model whose weights have been packed by generating."""
    works = {torch.float32: layout.onednn_pays, torch.bfloat16: layout._bfloat16_works}
    if not works[request.param]():
        pytest.skip(f"this processor or PyTorch gains nothing by packed {request.param} weights")
    model = pair()[1].to(request.param)
    model.generate(tokens(), max_new_tokens=2)
    assert all(linear.packed is not None for linear in linears(model).values())
    assert in_columns(model) == {False}
    return model


def test_packed_weights_give_the_same_products(packed: Any) -> None:
    plain, dtype = pair()[1].to(packed.dtype), packed.dtype
    with torch.no_grad(), layout.decoding():
        for name, linear in linears(packed).items():
            for shape in ((1, 1), (3, 7), (2, 0)):
                x = torch.randn(*shape, linear.in_features).to(dtype)
                expected = linears(plain)[name](x)
                torch.testing.assert_close(linear(x), expected, **CLOSE[dtype])
        ids = tokens()
        logits = packed(ids).logits.float(), plain(ids).logits.float()
    torch.testing.assert_close(*logits, **CLOSE[dtype])
    packed.train()
    with layout.decoding():
        packed(ids, labels=ids).loss.backward()  # gradients go past the copy
    assert packed.embed_out.weight.grad.abs().max() > 0


def through_data(weight: torch.Tensor) -> None:
    weight.data.view(-1)[5] += 1  # PyTorch does not count this


def in_place(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.mul_(-1)


def rows_exchanged(weight: torch.Tensor) -> None:
    weight.data[[0, 1]] = weight.data[[1, 0]].clone()


def columns_exchanged(weight: torch.Tensor) -> None:
    weight.data[:, [0, 9]] = weight.data[:, [9, 0]].clone()


@pytest.mark.parametrize("change", [through_data, in_place, rows_exchanged, columns_exchanged])
def test_packed_weights_follow_every_change(change: Any, packed: Any) -> None:
    model = packed
    change(model.embed_out.weight)
    fresh = pair()[1].to(model.dtype)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(1, 64).to(model.dtype)
    with torch.no_grad():
        expected = fresh.embed_out(x)
        torch.testing.assert_close(model.embed_out(x), expected, **CLOSE[model.dtype])
        layout.for_decoding(model)
        assert model.embed_out.packed is not None
        with layout.decoding():
            torch.testing.assert_close(model.embed_out(x), expected, **CLOSE[model.dtype])


def test_counted_changes_hold_at_once(packed: Any) -> None:
    model = packed
    in_place(model.embed_out.weight)
    x = torch.randn(1, 64).to(model.dtype)
    with torch.no_grad(), layout.decoding():
        expected = x @ model.embed_out.weight.t()
        torch.testing.assert_close(model.embed_out(x), expected, **CLOSE[model.dtype])
    model.embed_out.weight = nn.Parameter(torch.zeros_like(model.embed_out.weight))
    with torch.no_grad(), layout.decoding():
        assert not model.embed_out(x).any()


def test_packed_weights_are_no_part_of_the_model(tmp_path: Path, packed: Any) -> None:
    model = packed
    assert set(model.state_dict()) == set(pair()[1].state_dict())
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), again):
        assert all(linear.packed is None for linear in linears(other).values())
        assert other.generate(tokens(), max_new_tokens=6).tolist() == (
            model.generate(tokens(), max_new_tokens=6).tolist()
        )


def test_weights_are_not_packed_where_memory_is_short(packed: Any) -> None:
    model = packed
    needed = sum(linear.weight.nbytes for linear in linears(model).values())
    for free, fits in ((2 * needed - 1, False), (2 * needed, True)):
        for linear in linears(model).values():
            linear.packed = None
        for_decoding(model, free)
        assert all((linear.packed is not None) == fits for linear in linears(model).values())
        # float32 then lies in columns, and by rows again once there is memory.
        assert in_columns(model) == {model.dtype == torch.float32 and not fits}


@pytest.mark.usefixtures("in_columns_only")
def test_layout_leaves_training_and_tied_weights_alone() -> None:
    model = pair(tie_word_embeddings=True)[1]
    for_decoding(model.train())
    assert in_columns(model) == {False}
    for_decoding(model.eval())
    assert model.embed_out.weight is model.gpt_neox.embed_in.weight
    assert model.embed_out.weight.is_contiguous()
    assert model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.stride(0) == 1
    model.train()
    model(tokens(1, 6), labels=tokens(1, 6)).loss.backward()
    gradients = {n: value.grad.clone() for n, value in model.named_parameters()}
    fresh = pair(tie_word_embeddings=True)[1]
    fresh(tokens(1, 6), labels=tokens(1, 6)).loss.backward()
    for name, value in fresh.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, atol=1e-4, rtol=1e-3)
