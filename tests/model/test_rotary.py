"""The rotary embedding against transformers, against its own mathematics, and its promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.models.gpt_neox import modeling_gpt_neox as oracle

from neox_lab.config import GPTNeoXConfig, rope
from neox_lab.errors import ConfigError
from neox_lab.model import rotary
from neox_lab.model.rotary import RotaryTable, inverse_frequencies, rotate

TRAINED = 256
HEADS = [(64, 0.25), (96, 0.25), (80, 1.0), (128, 0.5), (128, 1.0), (16, 0.5), (40, 0.1)]


def longrope(pairs: int, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 0.7 * pair for pair in range(pairs)],
        "original_max_position_embeddings": 64,
        **more,
    }


def scalings(pairs: int) -> list[dict[str, Any]]:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    scales: list[dict[str, Any]] = [
        {"rope_type": "default"},
        {"rope_type": "default", "rope_theta": 500000.0},
        {"rope_type": "linear", "factor": 4.0},
        yarn,
        {**yarn, "truncate": False, "beta_fast": 20, "beta_slow": 2},
        {**yarn, "mscale": 0.7, "mscale_all_dim": 0.3},
        {**yarn, "attention_factor": 1.3, "original_max_position_embeddings": 2048},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        longrope(pairs),
        longrope(pairs, factor=4.0),
        longrope(pairs, attention_factor=1.1),
    ]
    if pairs > 1:
        scales += [{"rope_type": "dynamic", "factor": factor} for factor in (2, 3.7)]
    return scales


CASES = [
    pytest.param(head, pct, scaling, id=f"{head}-{pct}-{scaling['rope_type']}{index}")
    for head, pct in HEADS
    for index, scaling in enumerate(scalings(int(head * pct) // 2))
]


def arguments(head: int, pct: float, scaling: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": 2 * head,
        "num_attention_heads": 2,
        "max_position_embeddings": TRAINED,
        "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": pct, **scaling},
    }


def config_of(scaling: dict[str, Any], head: int = 32, pct: float = 0.5) -> GPTNeoXConfig:
    return GPTNeoXConfig(**arguments(head, pct, scaling))


def _unsigned(sin: torch.Tensor) -> torch.Tensor:
    """Without the minus sign that the first of each pair has."""
    first, second = sin.chunk(2, dim=-1)
    assert torch.equal(first, -second)
    return torch.cat((second, second), dim=-1)


@pytest.mark.parametrize(("head", "pct", "scaling"), CASES)
def test_angles_match_a_fresh_transformers_module(
    head: int, pct: float, scaling: dict[str, Any]
) -> None:
    theirs = transformers.GPTNeoXConfig(**arguments(head, pct, scaling))
    ours = config_of(scaling, head, pct)
    pairs = ours.rotary_ndims // 2
    for length in (10, 64, 65, TRAINED - 1, TRAINED, TRAINED + 1, 9000):
        positions = torch.arange(0, length, 1 if length <= TRAINED else 37)[None]
        positions[0, -1] = length - 1
        cos, sin = RotaryTable(ours).angles(positions)
        expected = oracle.GPTNeoXRotaryEmbedding(theirs)(torch.zeros(1), positions)

        assert cos.shape == sin.shape == (*positions.shape, 1, 2 * pairs)
        sin = _unsigned(sin)
        assert cos.dtype == sin.dtype == torch.float32
        for got, want in zip((cos, sin), expected, strict=True):
            assert want.shape[-1] == 2 * pairs
            torch.testing.assert_close(got[:, :, 0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pct", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("head", [2, 3, 4, 5, 6, 7, 10, 12, 20])
@pytest.mark.parametrize("scaling", [s for s in scalings(1) if s["rope_type"] != "longrope"])
def test_odd_shares_of_a_head_are_rounded_up(
    head: int, pct: float, scaling: dict[str, Any]
) -> None:
    asked = int(head * pct)
    if asked % 2 and (asked == head or (scaling["rope_type"] == "yarn" and asked > 3)):
        with pytest.raises(ConfigError, match="pairs"):  # there, tensors do not fit
            config_of(scaling, head, pct)
        return
    theirs = transformers.GPTNeoXConfig(**arguments(head, pct, scaling))
    positions = torch.arange(300)[None]
    cos, sin = RotaryTable(config_of(scaling, head, pct)).angles(positions)
    expected = oracle.GPTNeoXRotaryEmbedding(theirs)(torch.zeros(1), positions)
    torch.testing.assert_close(cos[:, :, 0], expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(_unsigned(sin)[:, :, 0], expected[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (2, 37)])
@pytest.mark.parametrize(("head", "pct"), HEADS)
def test_rotate_equals_transformers_bit_for_bit(
    head: int, pct: float, batch: int, length: int
) -> None:
    torch.manual_seed(head + length)
    config = config_of({"rope_type": "default"}, head, pct)
    positions = torch.randint(0, 5000, (batch, length))
    cos, sin = RotaryTable(config).angles(positions)
    # Views of one projection, as attention has them: [batch, pos, head, q | k | v].
    query, key, _ = torch.randn(batch, length, 2, 3 * head).mul(3).chunk(3, dim=-1)
    expected = oracle.apply_rotary_pos_emb(
        query.transpose(1, 2),
        key.transpose(1, 2),
        cos.squeeze(2),
        _unsigned(sin).squeeze(2),
    )
    for x, want in zip((query, key), expected, strict=True):
        assert torch.equal(rotate(x, cos, sin).transpose(1, 2), want)


def test_queries_and_keys_can_be_turned_in_one_call() -> None:
    cos, sin = RotaryTable(config_of({"rope_type": "default"})).angles(torch.arange(5)[None])
    both = torch.randn(2, 5, 4, 2, 32)  # [batch, pos, head, q or k, d_head]
    together = rotate(both, cos[..., None, :], sin[..., None, :])
    for part in range(2):
        assert torch.equal(together[..., part, :], rotate(both[..., part, :], cos, sin))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_turned_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    cos, sin = RotaryTable(config_of({"rope_type": "default"})).angles(torch.arange(9000)[None])
    x = torch.randn(1, 9000, 2, 32).to(dtype)
    turned = rotate(x, cos, sin)
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate(x.float(), cos, sin).to(dtype))


def test_float64_stays_float64_and_has_exact_gradients() -> None:
    cos, sin = RotaryTable(config_of({"rope_type": "default"})).angles(torch.arange(3)[None])
    x = torch.randn(1, 3, 1, 32, dtype=torch.float64, requires_grad=True)
    assert rotate(x, cos, sin).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 3000),
    st.integers(0, 3000),
    st.integers(0, 1000),
    st.sampled_from([(32, 0.25), (32, 1.0), (20, 0.5)]),
)
def test_a_product_depends_only_on_the_distance(
    query_at: int, key_at: int, shift: int, shape: tuple[int, float]
) -> None:
    head, pct = shape
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, head, generator=generator, dtype=torch.float64)
    table = RotaryTable(config_of({"rope_type": "default"}, head, pct))

    def score(at: int, other: int) -> float:
        turned = [
            rotate(x, *table.angles(torch.tensor([[position]])))
            for x, position in ((query, at), (key, other))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(query_at, key_at) == pytest.approx(
        score(query_at + shift, key_at + shift), abs=5e-3
    )
    assert rotate(query, *table.angles(torch.tensor([[query_at]]))).norm() == pytest.approx(
        float(query.norm()), rel=1e-5
    )


def test_the_numbers_after_rotary_ndims_pass_unchanged() -> None:
    cos, sin = RotaryTable(config_of({"rope_type": "default"}, 32, 0.25)).angles(
        torch.arange(1, 6)[None]
    )
    x = torch.randn(1, 5, 2, 32)
    turned = rotate(x, cos, sin)
    assert torch.equal(turned[..., 8:], x[..., 8:])
    assert not torch.isclose(turned[..., :4], x[..., :4]).all(dim=-1).any()


def test_rotary_pct_zero_turns_nothing() -> None:
    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=2, rotary_pct=0)
    x = torch.randn(1, 4, 2, 32)
    assert torch.equal(rotate(x, *RotaryTable(config).angles(torch.arange(4)[None])), x)


@pytest.mark.parametrize("scaling", [{"rope_type": "dynamic", "factor": 2.0}, longrope(8)])
def test_the_same_positions_always_give_the_same_angles(scaling: dict[str, Any]) -> None:
    short, middle, long = (torch.arange(length)[None] for length in (10, 400, 2000))
    used = RotaryTable(config_of(scaling))
    for positions in (long, middle, short, long):
        got = used.angles(positions)
        fresh = RotaryTable(config_of(scaling)).angles(positions)
        assert torch.equal(got[0], fresh[0])
        assert torch.equal(got[1], fresh[1])
    # It is the highest position that counts, not how many are given.
    last = used.angles(long[:, -1:])[0]
    assert torch.equal(last[0, 0], used.angles(long)[0][0, -1])
    assert not torch.allclose(used.angles(long)[0][:, :10], used.angles(short)[0])


@pytest.mark.parametrize("scaling", scalings(8))
def test_only_length_dependent_types_wait_for_the_device(
    scaling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = RotaryTable(config_of(scaling))
    waits = 0
    item = torch.Tensor.item

    def counted(tensor: torch.Tensor) -> Any:
        nonlocal waits
        waits += 1
        return item(tensor)

    monkeypatch.setattr(torch.Tensor, "item", counted)
    table.angles(torch.arange(5)[None])
    table.angles(torch.arange(5)[None])
    assert waits == (2 if scaling["rope_type"] in ("dynamic", "longrope") else 0)


def test_frequencies_ignore_the_ambient_dtype_and_device() -> None:
    config = config_of({"rope_type": "dynamic", "factor": 2.0})
    positions = torch.arange(2000)[None]
    expected = RotaryTable(config).angles(positions)[0]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):  # how large models are built before their weights arrive
            got = RotaryTable(config).angles(positions)[0]
            frequencies, _ = inverse_frequencies(config, 2000)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, expected)
    assert frequencies.dtype == torch.float32
    assert frequencies.device.type == "cpu"


def test_angles_from_inference_mode_can_be_trained_with_later() -> None:
    table = RotaryTable(config_of({"rope_type": "default"}))
    with torch.inference_mode():
        table.angles(torch.arange(4)[None])
    x = torch.randn(1, 4, 2, 32, requires_grad=True)
    rotate(x, *table.angles(torch.arange(4)[None])).sum().backward()
    assert x.grad is not None


def test_a_table_keeps_nothing_of_a_run_without_numbers() -> None:
    table = RotaryTable(config_of({"rope_type": "default"}))
    for _ in range(2):  # with nothing kept, and with numbers kept
        with FakeTensorMode():
            cos, _ = table.angles(torch.arange(4)[None])
        assert isinstance(cos, FakeTensor)
        cos, _ = table.angles(torch.arange(4)[None])
        assert type(cos) is torch.Tensor


def test_a_configuration_that_changes_later_changes_no_table() -> None:
    config = config_of({"rope_type": "linear", "factor": 2.0})
    table = RotaryTable(config)
    config.rope_parameters["factor"] = 8.0
    positions = torch.arange(4)[None]
    fresh = RotaryTable(config_of({"rope_type": "linear", "factor": 2.0}))
    assert torch.equal(table.angles(positions)[0], fresh.angles(positions)[0])


def test_every_type_of_the_configuration_has_a_formula_and_its_parameters_a_range() -> None:
    assert rotary._TYPES.keys() == rope._TYPES.keys()
    parameters = {key for entries in rope._TYPES.values() for key in (*entries[0], *entries[1])}
    assert parameters == rope._KINDS.keys()
