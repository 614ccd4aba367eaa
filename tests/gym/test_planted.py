"""The planted model does by hand-written weights what it says, and is a real checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import neox_lab as nl
from neox_lab.gym import planting

PREVIOUS, INDUCTION = (nl.gym.planted.HEADS[name] for name in ("previous_token", "induction"))


@pytest.fixture(scope="module")
def model() -> Any:
    return nl.gym.planted()


def repeated(length: int, gap: int, seed: int) -> Tensor:
    """Distinct tokens, ``gap`` other ones, and the first ones again: ids ``[1, pos]``."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(95, generator=generator)[: length + gap] + 1
    return torch.cat((drawn, drawn[:length]))[None]


def right(model: Any, tokens: Tensor, length: int, **arguments: Any) -> Tensor:
    """Probability of each right next token of the repeat ``[length - 1]``."""
    probability = model(tokens, **arguments).logits[0].softmax(-1)
    return probability[-length:-1].gather(1, tokens[0, 1 - length :, None])[:, 0]


@settings(max_examples=25)
@given(data=st.data(), length=st.integers(2, 95), seed=st.integers(0, 10**6))
def test_it_continues_what_comes_again(model: Any, data: Any, length: int, seed: int) -> None:
    gap = data.draw(st.integers(0, 95 - length), label="gap")
    tokens = repeated(length, gap, seed)
    with torch.no_grad():
        assert right(model, tokens, length).min() > 0.99


def test_up_to_its_last_position(model: Any) -> None:
    tokens = repeated(95, 0, 0)[:, :95].repeat(1, 3)[:, : model.config.max_position_embeddings]
    with torch.no_grad():
        assert tokens.shape[1] == 256
        assert right(model, tokens, 256 - 95).min() > 0.99


def test_both_heads_look_where_they_should(model: Any) -> None:
    tokens = repeated(60, 20, 1)
    _, cache = model.run_with_cache(tokens)
    layer, head = PREVIOUS
    assert cache["pattern", layer][0, head].diagonal(-1).min() > 0.999
    layer, head = INDUCTION
    query = torch.arange(80, 140)
    assert cache["pattern", layer][0, head][query, query - 80 + 1].min() > 0.999


def test_the_stream_holds_one_hot_areas(model: Any) -> None:
    tokens = repeated(40, 10, 2)
    _, cache = model.run_with_cache(tokens)
    between = cache["resid_post", 0][0]
    one_hot = torch.nn.functional.one_hot(tokens[0], 96).float()
    torch.testing.assert_close(between[:, planting.CURRENT], one_hot)
    before = torch.cat((one_hot[:1], one_hot[:-1]))
    torch.testing.assert_close(between[:, planting.PREVIOUS], before, rtol=0, atol=1e-5)
    assert between[:, planting.PREDICTION.start :].abs().max() < 1e-5
    prediction = cache["resid_post", 1][0, -40:-1, planting.PREDICTION]
    torch.testing.assert_close(prediction, 4 * one_hot[-39:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("layer", "head"), [(i, j) for i in range(2) for j in range(4)])
def test_it_needs_exactly_its_two_heads(model: Any, layer: int, head: int) -> None:
    def without(z: Tensor, hook: Any) -> None:
        z[:, :, head] = 0

    tokens = repeated(50, 0, 3)
    with torch.no_grad(), model.hooks([(f"blocks.{layer}.attn.hook_z", without)]):
        worst, best = right(model, tokens, 50).aminmax()
    if (layer, head) in nl.gym.planted.HEADS.values():
        assert best < 0.1
    else:
        assert worst > 0.99


def test_padding_in_front_changes_nothing(model: Any) -> None:
    tokens = repeated(30, 5, 4)
    padded = torch.nn.functional.pad(tokens, (7, 0))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (7, 0))
    with torch.no_grad():
        assert right(model, padded, 30, attention_mask=mask).min() > 0.99


def test_it_generates(model: Any) -> None:
    text = model.to_tokens("xyz abcdefghijk xyz a")
    assert model.to_string(model.generate(text, max_new_tokens=6)) == [
        "xyz abcdefghijk xyz abcdefg"
    ]


def test_its_letters(model: Any, tmp_path: Path) -> None:
    printable = "".join(map(chr, range(32, 127)))
    assert model.to_tokens(printable).tolist() == [list(range(1, 96))]
    assert model.to_str_tokens(printable) == list(printable)
    assert model.to_string(model.to_tokens(printable)[0]) == printable
    assert set(model.to_tokens("é\n")[0].tolist()) == {0}
    model.tokenizer.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(printable).input_ids == list(range(1, 96))


def test_saved_it_is_a_checkpoint_for_all(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    ours = nl.load(tmp_path)
    theirs = transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path).eval()
    tokens = repeated(50, 10, 5)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.equal(ours(tokens).logits, expected)
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=0, atol=1e-4)
        assert right(theirs, tokens, 50).min() > 0.99
    assert ours.to_tokens("cat").tolist() == model.to_tokens("cat").tolist()


def test_planting_leaves_the_generator_of_torch_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    nl.gym.planted()
    assert torch.equal(torch.rand(4), wanted)
