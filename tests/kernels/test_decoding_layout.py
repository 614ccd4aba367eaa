"""Copies of weights for decoding: which layout, that they say what the weights say, and when."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import pair, tokens
from torch import nn

import neox_lab as nl
from neox_lab.kernels import decoding_layout as layout
from neox_lab.kernels.decoding_layout import Columns, DecodingCopy, Packed, prepare_for_decoding
from neox_lab.kernels.linear import Linear, decoding

CLOSE: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.bfloat16: {"rtol": 0.02, "atol": 0.1},
}


def linears(model: nn.Module) -> dict[str, Linear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear)}


def kinds(model: nn.Module) -> set[type | None]:
    """The layouts of the copies."""
    copies = [linear.decoding_copy for linear in linears(model).values()]
    return {None if copy is None else type(copy) for copy in copies}


def force(kind: type[DecodingCopy] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that reads every weight fastest in this layout."""
    if kind is Packed and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch comes without oneDNN")
    monkeypatch.setattr(layout, "fastest_layout", lambda dtype: kind)
    monkeypatch.setattr(Columns, "pays_from", 1)


COPIES = [(Columns, torch.float32), (Packed, torch.float32), (Packed, torch.bfloat16)]


@pytest.fixture(params=COPIES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def copied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose weights have been copied by generating."""
    kind, dtype = request.param
    if dtype == torch.bfloat16 and not layout._bfloat16_works():
        pytest.skip("this processor or PyTorch has no products with packed bfloat16 weights")
    force(kind, monkeypatch)
    model = pair()[1].to(dtype)
    model.generate(tokens(), max_new_tokens=2)
    assert kinds(model) == {kind}
    return model


def test_layout_of_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    for pays, bfloat16 in itertools.product((True, False), repeat=2):
        monkeypatch.setattr(layout, "onednn_pays", lambda pays=pays: pays)
        monkeypatch.setattr(layout, "_bfloat16_works", lambda works=bfloat16: works)
        assert layout.fastest_layout(torch.float32) is (Packed if pays else Columns)
        assert layout.fastest_layout(torch.bfloat16) is (Packed if bfloat16 else None)
        # Half-precision products from columns are slow.
        assert layout.fastest_layout(torch.float16) is layout.fastest_layout(torch.float64) is None


def test_copies_follow_the_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "onednn_pays", lambda: False)
    monkeypatch.setattr(layout, "_bfloat16_works", lambda: False)
    monkeypatch.setattr(Columns, "pays_from", 1)
    model, ids = pair()[1], tokens(1, 4)
    for convert, expected in (("float", Columns), ("half", None), ("bfloat16", None)) * 2:
        getattr(model, convert)()
        assert kinds(model) == {None}  # the copy of another dtype takes no memory any more
        model.generate(ids, max_new_tokens=2)
        assert kinds(model) == {expected}


def test_copies_give_the_same_products(copied: Any) -> None:
    plain, dtype = pair()[1].to(copied.dtype), copied.dtype
    with torch.no_grad(), decoding():
        for name, linear in linears(copied).items():
            for shape in ((1, 1), (3, 7), (2, 0)):
                x = torch.randn(*shape, linear.in_features).to(dtype)
                expected = linears(plain)[name](x)
                torch.testing.assert_close(linear(x), expected, **CLOSE[dtype])
        ids = tokens()
        logits = copied(ids).logits.float(), plain(ids).logits.float()
    torch.testing.assert_close(*logits, **CLOSE[dtype])
    with decoding():
        copied(ids, labels=ids).loss.backward()  # gradients go past the copy
    assert copied.embed_out.weight.grad.abs().max() > 0


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
def test_copies_follow_every_change(change: Any, copied: Any) -> None:
    model = copied
    change(model.embed_out.weight)
    fresh = pair()[1].to(model.dtype)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(1, 64).to(model.dtype)
    with torch.no_grad():
        expected = fresh.embed_out(x)
        torch.testing.assert_close(model.embed_out(x), expected, **CLOSE[model.dtype])
        prepare_for_decoding(model.modules())
        assert model.embed_out.decoding_copy is not None
        with decoding():
            torch.testing.assert_close(model.embed_out(x), expected, **CLOSE[model.dtype])


def test_few_tokens_are_written_from_the_weights_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "fastest_layout", lambda dtype: Columns)
    model, ids = pair()[1], tokens(1, 4)
    model.generate(ids, max_new_tokens=Columns.pays_from - 1)
    assert kinds(model) == {None}
    model.generate(ids, max_new_tokens=Columns.pays_from)
    assert kinds(model) == {Columns}
    through_data(model.embed_out.weight)  # the copy is out of date, and nobody looks at it
    fresh = pair()[1]
    fresh.load_state_dict(model.state_dict())
    expected = fresh.generate(
        ids, max_new_tokens=3, return_dict_in_generate=True, output_logits=True
    )
    found = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, output_logits=True)
    assert all(torch.equal(a, b) for a, b in zip(found.logits, expected.logits, strict=True))


def test_copies_are_made_once(copied: Any) -> None:
    before = [linear.decoding_copy for linear in linears(copied).values()]
    copied.generate(tokens(), max_new_tokens=2)
    after = [linear.decoding_copy for linear in linears(copied).values()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_counted_changes_hold_at_once(copied: Any) -> None:
    model = copied
    in_place(model.embed_out.weight)
    x = torch.randn(1, 64).to(model.dtype)
    with torch.no_grad(), decoding():
        expected = x @ model.embed_out.weight.t()
        torch.testing.assert_close(model.embed_out(x), expected, **CLOSE[model.dtype])
    model.embed_out.weight = nn.Parameter(torch.zeros_like(model.embed_out.weight))
    with torch.no_grad(), decoding():
        assert not model.embed_out(x).any()


def test_copies_are_no_part_of_the_model(tmp_path: Path, copied: Any) -> None:
    model = copied
    assert set(model.state_dict()) == set(pair()[1].state_dict())
    torch.save(model, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 1.5 * sum(p.nbytes for p in model.parameters())
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
        assert kinds(other) == {None}
        assert other.generate(tokens(), max_new_tokens=6).tolist() == (
            model.generate(tokens(), max_new_tokens=6).tolist()
        )


CHANGES: list[Callable[[Any], Any]] = [
    lambda model: model.train(),
    lambda model: model.double(),
    lambda model: model.to("meta"),
]


@pytest.mark.parametrize("change", CHANGES, ids=["train", "convert", "move"])
def test_training_converting_and_moving_drop_the_copies(change: Any, copied: Any) -> None:
    change(copied)
    assert kinds(copied) == {None}


def test_what_is_in_training_gets_no_copies(copied: Any) -> None:
    prepare_for_decoding(copied.train().modules())
    assert kinds(copied) == {None}


def test_weights_are_not_copied_where_memory_is_short(copied: Any) -> None:
    model, (kind,) = copied, kinds(copied)
    needed = sum(linear.weight.nbytes for linear in linears(model).values())
    for free, fits in ((2 * needed - 1, False), (2 * needed, True)):
        for linear in linears(model).values():
            linear.decoding_copy = None
        prepare_for_decoding(model.modules(), free)
        assert kinds(model) == {kind if fits else None}


@pytest.mark.parametrize("kind", [Columns, Packed])
def test_tied_weights_are_copied_too(
    kind: type[DecodingCopy], monkeypatch: pytest.MonkeyPatch
) -> None:
    force(kind, monkeypatch)
    model = pair(tie_word_embeddings=True)[1]
    texts = model.generate(tokens(1, 6), max_new_tokens=4)
    assert model.embed_out.weight is model.gpt_neox.embed_in.weight
    assert kinds(model) == {kind}
    with torch.no_grad():
        model.gpt_neox.embed_in.weight.neg_()
    assert model.generate(tokens(1, 6), max_new_tokens=4).tolist() != texts.tolist()
    fresh = pair(tie_word_embeddings=True)[1]
    fresh.load_state_dict(model.state_dict())
    expected = fresh.generate(tokens(1, 6), max_new_tokens=4)
    assert model.generate(tokens(1, 6), max_new_tokens=4).tolist() == expected.tolist()


def test_weights_that_cannot_be_followed_are_read_as_they_are() -> None:
    model = pair()[1]
    inner = model.gpt_neox.layers[0].mlp.dense_h_to_4h
    inner.weight.data = inner.weight.t().contiguous().t()  # the user's own layout
    with torch.inference_mode():
        model.embed_out.weight = nn.Parameter(model.embed_out.weight.clone(), requires_grad=False)
    odd = Linear(5, 3).eval()
    prepare_for_decoding([*model.modules(), odd])
    assert inner.decoding_copy is model.embed_out.decoding_copy is odd.decoding_copy is None
    assert model.generate(tokens(), max_new_tokens=4).shape[1] == tokens().shape[1] + 4


def test_weights_that_lie_in_one_vector_generate() -> None:
    """A weight that begins where no eight bytes begin is read as it is."""
    torch.manual_seed(0)
    config = nl.GPTNeoXConfig(
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=33,
        vocab_size=51,
        bos_token_id=0,
        eos_token_id=None,
    )
    model = nl.GPTNeoXForCausalLM(config).eval()
    ids = torch.tensor([[1, 2, 3]])
    expected = model.generate(ids, max_new_tokens=20)
    parameters = list(model.parameters())
    flat = torch.nn.utils.parameters_to_vector(parameters)
    torch.nn.utils.vector_to_parameters(flat, parameters)
    assert torch.equal(model.generate(ids, max_new_tokens=20), expected)
