"""Streamed models give the numbers of models in memory, bit for bit; all layers differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, gradient, tokens, written
from torch import Tensor

import neox_lab as nl


@pytest.fixture(scope="module", params=[True, False], ids=["parallel", "sequential"])
def models(request: Any, tmp_path_factory: Any) -> Any:
    folder = written(tmp_path_factory.mktemp("model"), parallel=request.param)
    return both(folder)


MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1] * 9])


def test_forward_and_everything_in_a_cache(models: Any) -> None:
    whole, streamed, _ = models
    for mask in (None, MASK):
        expected, there = whole.run_with_cache(tokens(), attention_mask=mask)
        found, here = streamed.run_with_cache(tokens(), attention_mask=mask)
        assert torch.equal(found.logits, expected.logits)
        assert set(here) == set(there)
        assert all(torch.equal(here[name], there[name]) for name in there)


def test_a_lean_cache_makes_the_same_of_its_residual_streams(models: Any) -> None:
    whole, streamed, _ = models
    _, there = whole.run_with_cache(tokens(), lean=True)
    _, here = streamed.run_with_cache(tokens(), lean=True)
    assert all(torch.equal(here[name], there[name]) for name in there)


def test_generation_reads_the_layers_once_a_token(models: Any) -> None:
    whole, streamed, store = models
    expected = whole.generate(tokens(), attention_mask=MASK, max_new_tokens=4, do_sample=False)
    before = store.read.layers
    found = streamed.generate(tokens(), attention_mask=MASK, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)
    assert store.read.layers - before <= 4 * (LAYERS - 1)


def test_hooks_and_parts_of_the_network(models: Any) -> None:
    whole, streamed, _ = models

    def louder(tensor: Tensor, _hook: Any) -> Tensor:
        return tensor * 1.5

    for name in ("blocks.3.attn.hook_z", "blocks.2.attn.hook_result", "blocks.4.hook_q_input"):
        runs = [
            m.run_with_hooks(tokens(), fwd_hooks=[(name, louder)]).logits for m in (whole, streamed)
        ]
        assert torch.equal(*runs)
    halfway = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    parts = [
        m(inputs_embeds=halfway, start_at_layer=2, stop_at_layer=4).last_hidden_state
        for m in (whole, streamed)
    ]
    assert torch.equal(*parts)


def test_gradients_at_the_embeddings_and_at_hooks(models: Any) -> None:
    whole, streamed, store = models
    there, here = (
        gradient(m, lambda x, m=m: m(inputs_embeds=x, attention_mask=MASK).logits, tokens())
        for m in (whole, streamed)
    )
    assert torch.equal(here, there)
    there, here = (
        m.run_with_cache(tokens(), attention_mask=MASK, incl_bwd=lambda out: out.logits.sum())[1]
        for m in (whole, streamed)
    )
    assert any(name.endswith("_grad") for name in there)
    assert all(torch.equal(here[name], there[name]) for name in there)
    assert store.nbytes == 2 * 4 * 12 * 32 * 32  # nothing held more than two layers


QUESTIONS: dict[str, Callable[[Any], Tensor]] = {
    site: lambda model, site=site: (
        nl.patching.sweep(
            model, tokens(1), tokens(1, seed=5), nl.patching.logit_difference(3, 4), site=site
        ).values
    )
    for site in ("resid_pre", "attn_out", "mlp_out", "z", "v", "pattern_all_pos")
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_questions(models: Any, question: str) -> None:
    whole, streamed, _ = models
    assert torch.equal(QUESTIONS[question](streamed), QUESTIONS[question](whole))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_weights_are_converted_on_the_way(tmp_path: Path, dtype: str) -> None:
    whole, streamed, _ = both(written(tmp_path), dtype=dtype, resident=2)
    assert streamed.dtype == getattr(torch, dtype)
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)


def test_shards(tmp_path: Path) -> None:
    whole, streamed, store = both(written(tmp_path, shards="60KB"), resident=0)
    assert len(store.files) > 2
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)
