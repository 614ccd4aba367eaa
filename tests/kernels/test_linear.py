"""The product by oneDNN is the product by PyTorch, in every use that autograd makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import CLASSES, pair, tokens
from torch import Tensor
from torch.autograd import forward_ad

from neox_lab.kernels import decoding_layout as layout
from neox_lab.kernels import linear as products


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every float32 product goes to oneDNN, whatever its size and the processor; each is noted."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch comes without oneDNN")
    taken: list[int] = []
    multiply = products._multiply

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        taken.append(x.numel())
        return multiply(x, weight, bias)

    monkeypatch.setattr(products, "SMALLEST", 1)
    monkeypatch.setattr(products, "onednn_pays", lambda: True)
    monkeypatch.setattr(products, "_multiply", noted)
    return taken


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_whole_models_and_their_gradients(name: str, parallel: bool, forced: list[int]) -> None:
    theirs, ours = pair(name, use_parallel_residual=parallel)
    ids = tokens()
    expected, found = theirs(ids), ours(ids)
    # 12 linear maps and, but for the bare model, a head that may be an ordinary nn.Linear.
    assert len(forced) >= 12
    for one, other in zip(expected.to_tuple(), found.to_tuple(), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-5)
    expected[0].square().mean().backward()
    found[0].square().mean().backward()
    assert len(forced) >= 36  # each has two more products on the way back
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        mine = gradients[key.replace("lm_head.", "embed_out.")].grad
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(mine, parameter.grad, atol=1e-5 * scale, rtol=1e-4)


@given(
    rows=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    in_columns=st.booleans(),
    strided=st.booleans(),
    has_bias=st.booleans(),
)
def test_any_shape_and_stride(
    rows: list[int], sizes: tuple[int, int], in_columns: bool, strided: bool, has_bias: bool
) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch comes without oneDNN")
    read, written = sizes
    x = torch.randn(*rows, 2 * read)[..., ::2] if strided else torch.randn(*rows, read)
    weight = torch.randn(read, written).t() if in_columns else torch.randn(written, read)
    bias = torch.randn(written) if has_bias else None
    found = products._Product.apply(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_slices_of_weights_stay_where_they_are(forced: list[int]) -> None:
    whole = torch.randn(6, 4, 5)  # [out, head, in]
    x = torch.randn(3, 5)
    torch.testing.assert_close(products.linear(x, whole[:, 1]), x @ whole[:, 1].t())
    assert not forced
    products.linear(x, whole[:, 1].contiguous())
    assert len(forced) == 1


BIASES: dict[str, Callable[[int], Tensor]] = {
    "every second number": lambda size: torch.arange(2.0 * size)[::2],
    "one number, expanded": lambda size: torch.ones(1).expand(size),
    "a column": lambda size: torch.arange(3.0 * size).view(size, 3)[:, 1],
    "one for all": lambda size: torch.ones(1),
    "no axis": lambda size: torch.tensor(2.0),
    "one a row": lambda size: torch.arange(3.0 * size).view(3, size),
}


@pytest.mark.parametrize("made", BIASES.values(), ids=BIASES)
def test_biases_of_any_stride_and_shape(made: Callable[[int], Tensor], forced: list[int]) -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(10, 8), made(10)
    torch.testing.assert_close(products.linear(x, weight, bias), x @ weight.t() + bias)
    module = products.Linear(8, 12)
    module.bias = torch.nn.Parameter(made(12))
    layout.prepare_for_decoding([module.eval()])
    assert module.decoding_copy is not None
    with torch.no_grad(), products.decoding():
        torch.testing.assert_close(module(x), x @ module.weight.t() + made(12))


def test_a_weight_of_one_axis_goes_to_pytorch(forced: list[int]) -> None:
    x, weight = torch.randn(3, 8), torch.randn(8)
    torch.testing.assert_close(products.linear(x, weight), x @ weight)


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(*s, generator=generator) for s in ((2, 6, 8), (10, 8), (10,)))
    x, weight, bias = (tensor.requires_grad_() for tensor in made)
    return x, weight, bias


def second_derivative(product: Callable[..., Tensor]) -> list[Tensor]:
    x, weight, bias = example()
    loss = product(x, weight, bias).square().sum()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return list(torch.autograd.grad(slope.square().sum(), (x, weight)))


def per_row(product: Callable[..., Tensor]) -> list[Tensor]:
    x, weight, bias = example()
    return [torch.func.vmap(lambda row: product(row, weight, bias))(x)]


def functional_gradient(product: Callable[..., Tensor]) -> list[Tensor]:
    x, weight, bias = example()
    return [torch.func.grad(lambda w: product(x, w, bias).square().sum())(weight)]


def forward_mode(product: Callable[..., Tensor]) -> list[Tensor]:
    x, weight, bias = (tensor.detach() for tensor in example())
    with forward_ad.dual_level():
        dual = product(forward_ad.make_dual(x, torch.ones_like(x)), weight, bias)
        tangent = forward_ad.unpack_dual(dual).tangent
        assert tangent is not None
        return [tangent]


def in_autocast(product: Callable[..., Tensor]) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        found = product(*example())
    assert found.dtype == torch.bfloat16
    return [found]


def frozen_weights(product: Callable[..., Tensor]) -> list[Tensor]:
    x, weight, bias = example()
    product(x, weight.detach(), bias.detach()).square().sum().backward()
    assert x.grad is not None
    return [x.grad]


def fixed_input(product: Callable[..., Tensor]) -> list[Tensor]:
    x, weight, bias = example()
    product(x.detach(), weight, bias).square().sum().backward()
    assert weight.grad is not None and bias.grad is not None
    return [weight.grad, bias.grad]


def beside_inference_tensors(product: Callable[..., Tensor]) -> list[Tensor]:
    """What is not needed on the way back may come from inference mode."""
    x, weight, bias = example()
    with torch.inference_mode():
        fixed = weight.detach().clone(), x.detach().clone()
    product(fixed[1], weight.detach(), bias).sum().backward()
    assert bias.grad is not None
    return [bias.grad]


USES: list[Any] = [
    beside_inference_tensors,
    second_derivative,
    per_row,
    functional_gradient,
    forward_mode,
    in_autocast,
    frozen_weights,
    fixed_input,
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.usefixtures("forced")
def test_uses_of_autograd(use: Callable[..., list[Tensor]]) -> None:
    for found, expected in zip(use(products.linear), use(F.linear), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("forced")
def test_a_weight_changed_before_the_backward_pass_is_an_error() -> None:
    x, weight, bias = example()
    loss = products.linear(x, weight, bias).sum()
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_does_not_gain_goes_to_pytorch(forced: list[int]) -> None:
    x, weight, bias = (tensor.detach() for tensor in example())
    products.linear(x[:, :0], weight, bias)  # no rows
    products.linear(x.double(), weight.double(), bias.double())
    products.linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert forced == []
    products.linear(x, weight, bias)
    assert len(forced) == 1


def test_a_few_rows_go_to_onednn_where_they_are_slow(
    forced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "onednn_pays", lambda: False)
    weight, bias = torch.randn(1024, 768), torch.randn(1024)

    def taken(x: Tensor, weight: Tensor = weight) -> bool:
        forced.clear()
        found = products.linear(x, weight, bias)
        exact = F.linear(x.double(), weight.double(), bias.double())
        torch.testing.assert_close(found.double(), exact, atol=2e-4, rtol=1e-5)
        return bool(forced)

    x = torch.randn(2, 7, 768)
    for slow in (False, True):
        monkeypatch.setattr(products, "few_rows_are_slow", lambda slow=slow: slow)
        assert taken(x) is taken(x[:1]) is taken(torch.randn(15, 768)) is slow
        for rows in (1, 6, 16):
            assert not taken(torch.randn(rows, 768))
        assert not taken(x, weight.t().contiguous().t())
    small = torch.randn(products.LARGE_WEIGHT // 768 - 1, 768)
    bias = torch.randn(len(small))
    assert not taken(x, small)


@pytest.mark.parametrize("maker", ["GenuineIntel", "AuthenticAMD"])
@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
@pytest.mark.parametrize("has_amx", [True, False])
def test_which_processors_are_slow_with_a_few_rows(
    maker: str, capability: str, has_amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_processor", lambda: maker)
    monkeypatch.setattr(products, "_has_onednn", lambda: capability == "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx, raising=False)
    expected = (maker, capability, has_amx) == ("GenuineIntel", "AVX512", True)
    assert products.few_rows_are_slow.__wrapped__() is expected
    pays = (maker, capability) == ("AuthenticAMD", "AVX512")
    assert products.onednn_pays.__wrapped__() is pays
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # an older PyTorch
    assert products.few_rows_are_slow.__wrapped__() is False


@pytest.mark.parametrize(
    ("capability", "processor", "expected"),
    [("AVX2", "AuthenticAMD", False), ("AVX512", "GenuineIntel", False), ("DEFAULT", "", False)],
)
def test_other_processors_keep_their_library(
    capability: str, processor: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(products, "_processor", lambda: processor)
    assert products.onednn_pays.__wrapped__() is expected


@pytest.mark.parametrize(
    "look", [products.onednn_pays, products.few_rows_are_slow, layout._bfloat16_works]
)
def test_looking_at_the_processor_draws_no_random_numbers(look: Any) -> None:
    before = torch.get_rng_state()
    found = look.__wrapped__()
    assert torch.equal(torch.get_rng_state(), before)
    assert found == look()
