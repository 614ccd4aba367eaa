"""Streamed models give the numbers of models in memory, bit for bit; all layers differ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files_of_models import LAYERS, both, gradient, tokens, written
from torch import Tensor

import neox_lab as nl
from neox_lab.dynamics.measures import fingerprint
from neox_lab.errors import DeviceError
from neox_lab.gym import planting
from neox_lab.streaming import store as storing
from neox_lab.streaming import store_of


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


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_weights_are_converted_on_the_way(
    tmp_path: Path, stored: torch.dtype, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "CONVERTED", 1000)  # many pieces, the last one shorter
    whole, streamed, _ = both(written(tmp_path, dtype=stored), dtype=dtype)
    assert streamed.dtype == getattr(torch, dtype)
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)


def test_a_file_of_several_dtypes_in_another_order(tmp_path: Path) -> None:
    """Every other matrix in bfloat16, names backwards; the budget counts what converting takes."""
    from safetensors.torch import load_file, save_file

    path = written(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    for number, name in enumerate(sorted(tensors)):
        if number % 2 and "layers" in name:
            tensors[name] = tensors[name].bfloat16()
    save_file(dict(reversed(tensors.items())), path, metadata={"format": "pt"})
    whole = nl.GPTNeoXForCausalLM.from_pretrained(tmp_path, dtype="float32")
    layer, largest = 4 * 12 * 32 * 32, 2 * 128 * 32
    fixed = whole.get_memory_footprint() - LAYERS * layer
    load = nl.GPTNeoXForCausalLM.from_pretrained
    with pytest.raises(DeviceError, match="too little"):
        load(tmp_path, dtype="float32", max_memory={"cpu": fixed + 2 * layer + largest - 1})
    streamed = load(tmp_path, dtype="float32", max_memory={"cpu": fixed + 2 * layer + largest})
    for _ in range(2):
        assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)
    store = store_of(streamed)
    assert store is not None
    assert store.nbytes == 2 * layer + largest


def test_what_reads_weights_by_the_names_of_parameters(models: Any) -> None:
    whole, streamed, _ = models
    other = copy.deepcopy(whole)
    with torch.no_grad():
        other.backbone.block(3).mlp.dense_h_to_4h.weight[0] += 1
    for model in (whole, streamed, other):
        model.tokenizer = planting.tokenizer()
    expected = nl.dynamics.compare(whole, other, "a cat")
    found = nl.dynamics.compare(streamed, other, "a cat")
    assert found.weights.equals(expected.weights)
    assert found.frame.equals(expected.frame)
    for one in (whole, streamed):
        assert fingerprint(lambda _, one=one: one) != fingerprint(lambda _, one=other: one)
    folded = [nl.folded(one, fold_value_biases=True) for one in (whole, streamed)]
    logits = [each.as_model()(tokens()).logits for each in folded]
    assert torch.equal(*logits)


def test_recomputed_activations_and_sampled_texts(models: Any) -> None:
    whole, streamed, _ = models
    given: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 5}
    for more in (
        {"do_sample": True, "top_k": 20},
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
    ):
        texts = []
        for model in (whole, streamed):
            torch.manual_seed(1)
            texts.append(model.generate(tokens(), **given, **more))
        assert torch.equal(*texts)
    slopes = []
    for model in (whole, streamed):
        model.activation_checkpointing_enable()
        slopes.append(gradient(model, lambda x, m=model: m(inputs_embeds=x).logits, tokens()))
        model.activation_checkpointing_disable()
    assert torch.equal(*slopes)


def test_shards(tmp_path: Path) -> None:
    whole, streamed, store = both(written(tmp_path, shards="60KB"), resident=0)
    assert len(store.files) > 2
    assert torch.equal(streamed(tokens()).logits, whole(tokens()).logits)
